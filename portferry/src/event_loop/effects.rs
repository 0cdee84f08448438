//! What the engine asks for, carried out.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};

use engine::gateway::Effect;
use engine::gateways::Place;
use engine::ssdp::Outgoing;
use engine::time::Duration;
use wire::error::UpnpError;

use super::{Datagram, Links, Outcome, Shell};
use crate::clock::now;
use crate::hooks::Told;
use crate::sockets::{self, Reading, Spec};
use crate::store::Store;
use crate::{isp_router, notify};

/// When it is tried again to write what could not be stored.
pub(super) const STORE_RETRY: Duration = Duration::from_secs(30);

impl Shell {
    pub(super) async fn perform(&mut self, place: Place, effect: Effect) {
        // One for all changes of a turn; what only this router sees does not wait for it.
        if !matches!(
            effect,
            Effect::Store(_)
                | Effect::Notice(_)
                | Effect::Nat { .. }
                | Effect::Firewall { .. }
                | Effect::FindFlow { .. }
        ) {
            self.sync();
        }
        match effect {
            Effect::Reply { request, answer } => {
                // A success counts on what was stored.
                let stored = !self.uplinks[place].store_failed;
                let answer = if stored { answer } else { answer.and(Err(UpnpError::ACTION_FAILED)) };
                if let Some(reply) = self.waiting.remove(&request) {
                    // The control point may have hung up.
                    let _ = reply.send(answer);
                }
            }
            Effect::Subscribed { request, answer } => {
                if let Some(reply) = self.subscribing.remove(&request) {
                    let _ = reply.send(answer);
                }
            }
            Effect::Notify(event) => {
                // A slow subscriber delays nobody; the gateway keeps one event for each on its way.
                let (delivered, sockets) = (self.delivered.0.clone(), self.kernel.sockets());
                let interface = self.lan.keys().find(|(index, _)| *index == event.interface);
                let interface = interface.map(|(_, name)| name.clone()).unwrap_or_default();
                tokio::spawn(async move {
                    let delivery = notify::deliver(&event, &interface, &sockets).await;
                    let _ = delivered.send((place, event.sid, delivery)).await;
                });
            }
            Effect::Resolve { lookup, name } => {
                // A slow resolver delays nobody; the gateway bounds how many there are.
                let (resolved, found) = (self.resolved.0.clone(), self.kernel.resolve(name));
                tokio::spawn(async move {
                    let _ = resolved.send((place, lookup, found.await)).await;
                });
            }
            Effect::ReadCounters { request } => {
                let counters = match self.uplinks[place].index {
                    Some(index) => self.links.counters(index).await,
                    None => None,
                };
                self.outcomes.push_back((place, Outcome::Counters(request, counters)));
            }
            Effect::OpenUplink { server } => self.open_uplink(place, server).await,
            Effect::CloseUplink => self.uplinks[place].socket = None,
            Effect::Send { to, bytes } => {
                // What was for the server before this one is lost with its socket; it is none of this one's business.
                let socket = self.uplinks[place].socket.as_ref().filter(|(server, _)| *server == to);
                if let Some((_, uplink)) = socket
                    && let Err(error) = uplink.sender.send(&bytes)
                {
                    // As if lost on the way: it is sent again. The error may be that of the last one.
                    tracing::debug!("to {to}: {error}");
                    if sockets::is_refused(&error) {
                        self.outcomes.push_back((place, Outcome::UplinkUnreachable(to)));
                    }
                }
            }
            Effect::Search { to, bytes } => self.seek(place, to, &bytes).await,
            Effect::EndSearch => self.uplinks[place].search = None,
            Effect::Http(request) => {
                // A slow router delays nobody; the gateway has a few on their way at most.
                let (exchanged, sockets) = (self.exchanged.0.clone(), self.kernel.sockets());
                let interface = self.uplinks[place].interface().to_owned();
                tokio::spawn(async move {
                    let outcome = isp_router::exchange(&interface, &request, &sockets).await;
                    let _ = exchanged.send((place, request.id, outcome)).await;
                });
            }
            Effect::Scout { to, bytes } => self.scout(place, to, &bytes).await,
            Effect::Ssdp(Outgoing { interface, local, to, bytes }) => {
                let sockets = self.lan.iter().find(|((index, _), _)| *index == interface);
                let socket = sockets.and_then(|(_, sockets)| sockets.ssdp_from(local));
                if let Some(Err(error)) = socket.map(|socket| socket.sender.send_to(&bytes, to)) {
                    tracing::debug!("SSDP to {to}: {error}");
                }
            }
            // A success counts on what was stored; who is not answered asks again.
            Effect::LanSend { to, .. } if self.uplinks[place].store_failed && !to.ip().is_multicast() => {}
            Effect::LanSend { interface, local, to, bytes } => {
                let sockets = self.lan.iter().find(|((index, _), _)| *index == interface);
                let socket = sockets.and_then(|(_, sockets)| sockets.pcp.get(&local));
                if let Some(Err(error)) = socket.map(|socket| socket.sender.send_to(&bytes, to)) {
                    tracing::debug!("PCP to {to}: {error}");
                }
            }
            Effect::Nat { ticket, change } => {
                let outcome = self.kernel.change_nat(place, change.into()).await;
                self.outcomes.push_back((place, Outcome::Nat(ticket, outcome)));
            }
            Effect::Firewall { ticket, change } => {
                let outcome = self.change_firewall(place, change).await;
                self.outcomes.push_back((place, Outcome::Nat(ticket, outcome)));
            }
            Effect::FirewallUplink(effect) => self.perform_firewall_uplink(place, effect).await,
            Effect::ReadPinhole { request, what } => {
                let value = self.read_pinhole(place, what).await;
                self.outcomes.push_back((place, Outcome::PinholeRead(request, value)));
            }
            Effect::FindFlow { request, protocol, internal, remote } => {
                let port = self.kernel.find_flow(place, protocol.0, internal, remote).await;
                self.outcomes.push_back((place, Outcome::FlowFound(request, port)));
            }
            Effect::Store(record) => {
                self.write(place, |store| store.append(&record));
            }
            Effect::Changed(change) => self.hooks.tell(Told { uplink: self.name(place), change }),
            Effect::Notice(notice) if place > 0 => {
                let line = format!("{}: {notice}", self.name(place));
                self.notices.line(now(), notice.level(), &line);
            }
            Effect::Notice(notice) => self.notices.write(now(), &notice),
            Effect::Stopped => self.stopped = true,
        }
    }

    /// What was stored survives a power cut from now on.
    pub(super) fn sync(&mut self) {
        for place in 0..self.uplinks.len() {
            self.write(place, Store::sync);
        }
    }

    /// Nothing may have to be stored for a long time.
    pub(super) fn catch_up(&mut self, place: Place) {
        self.write(place, |store| if store.is_behind() { store.catch_up() } else { Ok(()) });
    }

    /// The gateway hears of a failure before anything else.
    pub(super) fn write(&mut self, place: Place, what: impl FnOnce(&mut Store) -> std::io::Result<()>) {
        let uplink = &mut self.uplinks[place];
        let Some(store) = &mut uplink.store else { return };
        let before = store.is_behind();
        match what(store) {
            Err(error) => {
                uplink.store_failed = true;
                uplink.store_retry = Some(now() + STORE_RETRY);
                self.outcomes.push_front((place, Outcome::StoreFailed(error.to_string())));
            }
            Ok(()) if before && !store.is_behind() => self.outcomes.push_back((place, Outcome::StoreWorks)),
            Ok(()) => {}
        }
    }

    /// Another source address than the system's choice.
    pub(super) fn fixed_source(&self) -> Option<IpAddr> {
        match &self.links {
            Links::Kernel(_) => None,
            Links::Fixed(_, from) => Some(*from),
        }
    }

    async fn scout(&mut self, place: Place, to: SocketAddr, bytes: &[u8]) {
        let from = self.fixed_source();
        let uplink = &mut self.uplinks[place];
        let way = (uplink.interface().to_owned(), to.is_ipv6());
        uplink.scouts.retain(|(interface, _), _| *interface == way.0);
        if !uplink.scouts.contains_key(&way) {
            let wrap = move |from, bytes| (place, Datagram::Scouted { from, bytes });
            let spec = Spec::Scout { interface: way.0.clone(), v6: way.1, from };
            let opened = self.kernel.sockets().open(spec, 0).await;
            let opened =
                opened.and_then(|socket| Reading::start(socket.into(), self.datagrams.0.clone(), wrap));
            match opened {
                Ok(reading) => drop(uplink.scouts.insert(way.clone(), reading)),
                Err(error) => return tracing::debug!("no socket to look for {to}: {error}"),
            }
        }
        if let Some(Err(error)) = uplink.scouts.get(&way).map(|scout| scout.sender.send_to(bytes, to)) {
            // It is looked at again; the interface may be another one by then.
            tracing::debug!("to {to}: {error}");
            uplink.scouts.remove(&way);
        }
    }

    async fn open_uplink(&mut self, place: Place, server: SocketAddr) {
        self.uplinks[place].socket = None;
        let wrap = |from, bytes| Datagram::Uplink { from, bytes };
        let refused = move || Datagram::UplinkUnreachable(server);
        let outcome = match self.connect(place, server, wrap, refused).await {
            Ok((reading, source)) => {
                self.uplinks[place].socket = Some((server, reading));
                Outcome::UplinkOpened(server, source)
            }
            Err(error) => Outcome::UplinkFailed(server, error.to_string()),
        };
        self.outcomes.push_back((place, outcome));
    }

    /// A socket to a server, from the WAN interface and a random port, and its own address. What comes is wrapped; `refused` says
    /// that nobody listens there.
    pub(super) async fn connect(
        &self,
        place: Place,
        server: SocketAddr,
        wrap: impl Fn(SocketAddr, Vec<u8>) -> Datagram + Send + 'static,
        refused: impl Fn() -> Datagram + Send + 'static,
    ) -> std::io::Result<(Reading, IpAddr)> {
        let interface = self.uplinks[place].interface().to_owned();
        let spec = Spec::Uplink { interface, server, from: self.fixed_source() };
        let socket = UdpSocket::from(self.kernel.sockets().open(spec, 0).await?);
        let source = socket.local_addr()?.ip();
        let wrap = move |from, bytes| (place, wrap(from, bytes));
        let refused = move || Some((place, refused()));
        let reading = Reading::start_with(socket, self.datagrams.0.clone(), wrap, refused)?;
        Ok((reading, source))
    }

    /// Sends a search; its socket is opened with the first one.
    async fn seek(&mut self, place: Place, to: SocketAddrV4, bytes: &[u8]) {
        let uplink = &mut self.uplinks[place];
        if uplink.search.is_none() {
            let wrap = move |from, bytes| (place, Datagram::SearchAnswer { from, bytes });
            let spec = Spec::Search { interface: uplink.interface().to_owned() };
            let socket = self.kernel.sockets().open(spec, 0).await;
            let queue = self.datagrams.0.clone();
            match socket.and_then(|socket| Reading::start(socket.into(), queue, wrap)) {
                Ok(reading) => uplink.search = Some(reading),
                Err(error) => {
                    return tracing::warn!("no socket to search for the provider's router: {error}");
                }
            }
        }
        if let Some(search) = &uplink.search
            && let Err(error) = search.sender.send_to(bytes, to)
        {
            tracing::debug!("search to {to}: {error}");
        }
    }
}

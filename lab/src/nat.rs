//! The table of a carrier's NAT: who inside has which address and port outside (RFC 4787, RFC 5382, RFC 6146, RFC 6888).
//!
//! A host inside is told apart by its softwire and its address, so that any number of subscribers may have the same
//! addresses (RFC 6333 §6.6). Explicit [`Binding`]s come from a PCP server; what hosts send out makes mappings of its own,
//! the same one for every destination (endpoint-independent), that let in only answers (address- and port-dependent). Time
//! is what the caller says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::provider::{Binding, Inside};
use engine::time::{Duration, Instant, Timers};
use wire::pcp::Protocol;

use crate::packet::{Prefix64, Refused, TcpFlags};

mod binding;
#[cfg(test)]
mod tests;

pub use binding::{Taken, read_binding};

/// Ports, and identifiers of echoes, that what hosts send out is given. The rest is for explicit mappings, so that a PCP
/// server finds its suggestions free; 0–1023 are nobody's (RFC 6908 §2.11).
const DYNAMIC: std::ops::RangeInclusive<u16> = 32_768..=65_535;

/// How long nothing may happen before a flow is forgotten.
mod idle {
    use super::Duration;

    /// RFC 4787 REQ-5.
    pub(super) const UDP: Duration = Duration::from_secs(5 * 60);
    /// RFC 5382 REQ-5, a connection both ends of which have been heard.
    pub(super) const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
    /// RFC 5382 REQ-5, any other.
    pub(super) const TCP_TRANSITORY: Duration = Duration::from_secs(4 * 60);
    /// RFC 5508 REQ-1.
    pub(super) const ICMP: Duration = Duration::from_secs(60);
}

/// Protocol, address and port outside.
type External = (Protocol, Ipv4Addr, u16);

/// One flow, as seen inside.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Flow {
    inside: Inside,
    protocol: Protocol,
    port: u16,
    remote: SocketAddrV4,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    external: SocketAddrV4,
    /// TCP: heard from inside, from outside, and whether it is ending.
    heard: (bool, bool),
    ending: bool,
}

/// What hosts inside made by sending.
#[derive(Clone, Copy, Debug)]
struct Dynamic {
    external: SocketAddrV4,
    /// It goes with the last of them.
    flows: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Direction {
    Out,
    In,
}

/// See the module's description.
#[derive(Debug)]
pub struct Nat {
    pool: Vec<Ipv4Addr>,
    prefix: Option<Prefix64>,
    bindings: binding::Bindings,
    sessions: BTreeMap<Flow, Session>,
    ends: Timers<Flow>,
    dynamic: BTreeMap<(Inside, Protocol, u16), Dynamic>,
    by_external: BTreeMap<External, (Inside, u16)>,
    /// Whose flows use an external port, whatever lets them, and how many.
    in_use: BTreeMap<External, ((Inside, u16), usize)>,
    next_address: usize,
    next_port: u16,
}

impl Nat {
    /// With these external addresses. `prefix` is a NAT64's, by which hosts inside know remote peers.
    ///
    /// # Panics
    ///
    /// Without any address.
    #[must_use]
    pub fn new(pool: Vec<Ipv4Addr>, prefix: Option<Prefix64>) -> Self {
        assert!(!pool.is_empty(), "a NAT has an external address");
        Self {
            pool,
            prefix,
            bindings: binding::Bindings::default(),
            sessions: BTreeMap::new(),
            ends: Timers::default(),
            dynamic: BTreeMap::new(),
            by_external: BTreeMap::new(),
            in_use: BTreeMap::new(),
            next_address: 0,
            next_port: *DYNAMIC.start(),
        }
    }

    /// Whether an address is one of its external ones.
    #[must_use]
    pub fn owns(&self, addr: Ipv4Addr) -> bool {
        self.pool.contains(&addr)
    }

    /// Where an internal endpoint goes out that has sent something by itself.
    #[must_use]
    pub fn goes_out(&self, inside: Inside, protocol: Protocol, port: u16) -> Option<SocketAddrV4> {
        self.dynamic.get(&(inside, protocol, port)).map(|dynamic| dynamic.external)
    }

    /// Lets a binding in from now on.
    ///
    /// # Errors
    ///
    /// [`Taken`] when another binding, or what another host made by sending, is in the way, or the address is not one of
    /// the pool. Nothing has changed then.
    pub fn open(&mut self, binding: Binding) -> Result<(), Taken> {
        let external = self.external_of(&binding).ok_or(Taken)?;
        let in_use = |port: u16| {
            let other = self.by_external.get(&(binding.protocol, *external.ip(), port));
            other.is_some_and(|&(inside, own)| {
                inside != binding.inside
                    || own != binding.internal_port.saturating_add(port - external.port())
            })
        };
        let mut ports = external.port()..=external.port().saturating_add(binding.ports.saturating_sub(1));
        // A binding for all ports leaves those to their hosts that have been given out.
        if external.port() != 0 && ports.any(in_use) {
            return Err(Taken);
        }
        let (protocol, ports) = (binding.protocol, binding.ports);
        self.bindings.insert(external, binding)?;
        self.end_lost(protocol, external, ports, false);
        Ok(())
    }

    /// Lets it in no more, and ends the flows that it let in. Unknown ones are passed over.
    pub fn close(&mut self, binding: &Binding) {
        let Some(external) = self.external_of(binding) else { return };
        if self.bindings.remove(external, binding) {
            self.end_lost(binding.protocol, external, binding.ports, true);
        }
    }

    /// Puts one binding in the place of another, or leaves the old one.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn replace(&mut self, old: &Binding, new: Binding) -> Result<(), Taken> {
        self.close(old);
        self.open(new).inspect_err(|_| {
            self.open(old.clone()).expect("its place has been free since it was closed just now");
        })
    }

    /// A packet from inside leaves for `remote`: where it comes from outside. Protocols without ports, and those of
    /// ICMP errors, have port 0; an echo has its identifier, and no remote port.
    ///
    /// # Errors
    ///
    /// [`Refused::NoMapping`] when it is no beginning of a flow, [`Refused::NoPort`], [`Refused::Protocol`] for what only a
    /// binding could translate.
    pub fn outbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        (inside, port): (Inside, u16),
        remote: SocketAddrV4,
        flags: TcpFlags,
    ) -> Result<SocketAddrV4, Refused> {
        let flow = Flow { inside, protocol, port, remote };
        if let Some(session) = self.sessions.get(&flow) {
            let external = session.external;
            self.touch(now, flow, Direction::Out, flags);
            return Ok(external);
        }
        let external = match self.bindings.outbound(protocol, inside, port, remote, self.prefix) {
            Some(external) if self.leads_back(protocol, external, remote, (inside, port)) => external,
            _ => self.make_dynamic(protocol, (inside, port), flags)?,
        };
        self.begin(now, flow, external, Direction::Out, flags);
        Ok(external)
    }

    /// A packet from `remote` has come to an external address and port: which host and port inside it is for.
    ///
    /// # Errors
    ///
    /// [`Refused::NoMapping`], [`Refused::Filtered`].
    pub fn inbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        external: SocketAddrV4,
        remote: SocketAddrV4,
        flags: TcpFlags,
    ) -> Result<(Inside, u16), Refused> {
        let (inside, port, bound) = self.host_of(protocol, external, remote)?;
        let flow = Flow { inside, protocol, port, remote };
        let known = self.sessions.get(&flow).is_some_and(|session| session.external == external);
        match (known, bound) {
            (true, _) => self.touch(now, flow, Direction::In, flags),
            (false, Some(true)) => {
                self.end(flow); // it was going by another external address or port
                self.begin(now, flow, external, Direction::In, flags);
            }
            (false, Some(false)) => return Err(Refused::Filtered),
            (false, None) => return Err(Refused::NoMapping),
        }
        Ok((inside, port))
    }

    /// The external address and port of a flow that there is; nothing is made or kept alive by it.
    #[must_use]
    pub fn external(
        &self,
        protocol: Protocol,
        (inside, port): (Inside, u16),
        remote: SocketAddrV4,
    ) -> Option<SocketAddrV4> {
        self.sessions.get(&Flow { inside, protocol, port, remote }).map(|session| session.external)
    }

    /// The host and port inside of a flow that there is; nothing is made or kept alive by it.
    #[must_use]
    pub fn inside(
        &self,
        protocol: Protocol,
        external: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Option<(Inside, u16)> {
        let (inside, port, _) = self.host_of(protocol, external, remote).ok()?;
        (self.external(protocol, (inside, port), remote)? == external).then_some((inside, port))
    }

    /// Forgets flows that have been idle for too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(flow) = self.ends.pop_due(now) {
            self.end(flow);
        }
    }

    /// When the next flow will have been idle for too long.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.ends.next()
    }

    /// How many flows there are.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.sessions.len()
    }

    /// Ends the flows at these external ports whose answers would go to another host now; with `strict`, those too that
    /// nothing lets in but that they are there.
    fn end_lost(&mut self, protocol: Protocol, external: SocketAddrV4, ports: u16, strict: bool) {
        let (address, first) = (*external.ip(), external.port());
        let last = if first == 0 { u16::MAX } else { first + (ports - 1) };
        let concerned: Vec<External> = if protocol == Protocol::ALL {
            self.in_use.keys().filter(|key| key.1 == address).copied().collect()
        } else {
            self.in_use
                .range((protocol, address, first)..=(protocol, address, last))
                .map(|(key, _)| *key)
                .collect()
        };
        let mut lost = Vec::new();
        for (protocol, address, port) in concerned {
            let ((inside, own), _) = self.in_use[&(protocol, address, port)];
            let external = SocketAddrV4::new(address, port);
            let from =
                |addr, port| Flow { inside, protocol, port: own, remote: SocketAddrV4::new(addr, port) };
            let flows = from(Ipv4Addr::UNSPECIFIED, 0)..=from(Ipv4Addr::BROADCAST, u16::MAX);
            for (flow, _) in self.sessions.range(flows).filter(|(_, session)| session.external == external) {
                let stays = self.host_of(protocol, external, flow.remote).is_ok_and(|(host, port, bound)| {
                    (host, port) == (inside, own) && (bound != Some(false) || !strict)
                });
                if !stays {
                    lost.push(*flow);
                }
            }
        }
        lost.into_iter().for_each(|flow| self.end(flow));
    }

    /// Who has an external port, and whether a binding lets this remote peer in; `None` where there is no binding.
    fn host_of(
        &self,
        protocol: Protocol,
        external: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Result<(Inside, u16, Option<bool>), Refused> {
        let Self { bindings, prefix, .. } = self;
        if let Some((inside, port, allowed)) = bindings.inbound(protocol, external, remote, *prefix) {
            return Ok((inside, port, Some(allowed)));
        }
        if let Some(&(inside, port)) = self.by_external.get(&(protocol, *external.ip(), external.port())) {
            return Ok((inside, port, None));
        }
        let wide = bindings.inbound_wide(protocol, external, remote, *prefix);
        wide.map(|(inside, port, allowed)| (inside, port, Some(allowed))).ok_or(Refused::NoMapping)
    }

    fn external_of(&self, binding: &Binding) -> Option<SocketAddrV4> {
        let SocketAddr::V4(external) = binding.external else { return None };
        self.owns(*external.ip()).then_some(external)
    }

    /// A binding for all ports does not take what somebody else has in particular.
    fn leads_back(
        &self,
        protocol: Protocol,
        external: SocketAddrV4,
        remote: SocketAddrV4,
        own: (Inside, u16),
    ) -> bool {
        self.host_of(protocol, external, remote).is_ok_and(|(inside, port, _)| (inside, port) == own)
    }

    fn make_dynamic(
        &mut self,
        protocol: Protocol,
        (inside, port): (Inside, u16),
        flags: TcpFlags,
    ) -> Result<SocketAddrV4, Refused> {
        if let Some(dynamic) = self.dynamic.get(&(inside, protocol, port)) {
            return Ok(dynamic.external);
        }
        match protocol {
            Protocol::TCP if !flags.syn || flags.ack => return Err(Refused::NoMapping),
            Protocol::TCP | Protocol::UDP | ICMP => {}
            _ => return Err(Refused::Protocol),
        }
        let external = self.pick(protocol, inside)?;
        self.dynamic.insert((inside, protocol, port), Dynamic { external, flows: 0 });
        self.by_external.insert((protocol, *external.ip(), external.port()), (inside, port));
        Ok(external)
    }

    /// A free address and port. A host keeps to one address (RFC 6888 REQ-2), the next host gets the next one.
    fn pick(&mut self, protocol: Protocol, inside: Inside) -> Result<SocketAddrV4, Refused> {
        let from = (inside, Protocol(0), 0);
        let own = self.dynamic.range(from..).next().filter(|((host, _, _), _)| *host == inside);
        let own = own.map(|(_, dynamic)| *dynamic.external.ip()).or_else(|| self.bindings.address_of(inside));
        let address = own.unwrap_or_else(|| {
            self.next_address = (self.next_address + 1) % self.pool.len();
            self.pool[self.next_address]
        });
        for _ in DYNAMIC {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(*DYNAMIC.start());
            let external = SocketAddrV4::new(address, port);
            let key = (protocol, address, port);
            let taken = self.by_external.contains_key(&key) || self.in_use.contains_key(&key);
            if !taken && self.bindings.owner(protocol, external).is_none() {
                return Ok(external);
            }
        }
        Err(Refused::NoPort)
    }

    fn begin(
        &mut self,
        now: Instant,
        flow: Flow,
        external: SocketAddrV4,
        direction: Direction,
        flags: TcpFlags,
    ) {
        self.sessions.insert(flow, Session { external, heard: (false, false), ending: false });
        let used = (flow.protocol, *external.ip(), external.port());
        self.in_use.entry(used).or_insert(((flow.inside, flow.port), 0)).1 += 1;
        if let Some(dynamic) = self.dynamic_of(flow, external) {
            dynamic.flows += 1;
        }
        self.touch(now, flow, direction, flags);
    }

    fn touch(&mut self, now: Instant, flow: Flow, direction: Direction, flags: TcpFlags) {
        let session = self.sessions.get_mut(&flow).expect("the caller has seen it");
        match direction {
            Direction::Out => session.heard.0 = true,
            Direction::In => session.heard.1 = true,
        }
        // A new connection may have the ports of one that has ended.
        session.ending = flags.end || session.ending && !flags.syn;
        let idle = match flow.protocol {
            Protocol::TCP if session.heard == (true, true) && !session.ending => idle::TCP_ESTABLISHED,
            Protocol::TCP => idle::TCP_TRANSITORY,
            ICMP => idle::ICMP,
            _ => idle::UDP,
        };
        self.ends.set(flow, now + idle);
    }

    fn end(&mut self, flow: Flow) {
        self.ends.cancel(flow);
        let Some(session) = self.sessions.remove(&flow) else { return };
        let used = (flow.protocol, *session.external.ip(), session.external.port());
        let (_, flows) = self.in_use.get_mut(&used).expect("the flow was counted when it began");
        *flows -= 1;
        if *flows == 0 {
            self.in_use.remove(&used);
        }
        let Some(dynamic) = self.dynamic_of(flow, session.external) else { return };
        dynamic.flows -= 1;
        if dynamic.flows == 0 {
            self.dynamic.remove(&(flow.inside, flow.protocol, flow.port));
            self.by_external.remove(&(flow.protocol, *session.external.ip(), session.external.port()));
        }
    }

    fn dynamic_of(&mut self, flow: Flow, external: SocketAddrV4) -> Option<&mut Dynamic> {
        let dynamic = self.dynamic.get_mut(&(flow.inside, flow.protocol, flow.port));
        dynamic.filter(|dynamic| dynamic.external == external)
    }
}

/// Echoes, by their identifier.
pub(crate) const ICMP: Protocol = Protocol(1);

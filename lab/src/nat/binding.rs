//! Explicit mappings, as the data plane holds them.

use super::{BTreeMap, Binding, Inside, IpAddr, Ipv4Addr, Prefix64, Protocol, SocketAddr, SocketAddrV4};

/// `tcp/192.168.77.10:80@2001:db8::2=203.0.114.1:8080`: a protocol (or its number), the host inside with its port, its
/// softwire if it has one, and address and port outside.
///
/// `None` when it is not of this form.
#[must_use]
pub fn read_binding(text: &str) -> Option<Binding> {
    let (protocol, rest) = text.split_once('/')?;
    let protocol = match protocol {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        number => Protocol(number.parse().ok()?),
    };
    let (inside, external) = rest.split_once('=')?;
    let (internal, softwire) = match inside.split_once('@') {
        Some((internal, softwire)) => (internal, Some(softwire.parse().ok()?)),
        None => (inside, None),
    };
    let internal: SocketAddr = internal.parse().ok()?;
    Some(Binding {
        protocol,
        inside: Inside { softwire, addr: internal.ip() },
        internal_port: internal.port(),
        external: external.parse().ok()?,
        ports: 1,
        filters: Vec::new(),
        peer: None,
    })
}

/// The external address and port are somebody else's, or not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Taken;

/// All bindings: by each of their external ports, and the same by each of their internal ones. Port 0 is where those for
/// all ports are, protocol 0 where those for all protocols are.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    by_external: BTreeMap<(Protocol, Ipv4Addr, u16), Vec<Binding>>,
    by_inside: BTreeMap<(Inside, Protocol, u16), Vec<Binding>>,
}

impl Bindings {
    /// `external` is the binding's own.
    pub(super) fn insert(&mut self, external: SocketAddrV4, binding: Binding) -> Result<(), Taken> {
        let last = binding.ports.checked_sub(1).ok_or(Taken)?;
        let all = external.port() == 0;
        let fits =
            external.port().checked_add(last).is_some() && binding.internal_port.checked_add(last).is_some();
        let all_or_one = all == (binding.internal_port == 0) && (!all || last == 0);
        if !fits || !all_or_one || (binding.protocol == Protocol::ALL && !all) {
            return Err(Taken);
        }
        for (key, (_, internal_port)) in keys(external, &binding) {
            // Several PEERs, and a MAP, may share a port that is one host's.
            let shared = |other: &Binding| {
                let own_port = covers(port_of(other), other.ports, key.2).map(|at| other.internal_port + at);
                other.inside == binding.inside
                    && own_port == Some(internal_port)
                    && other.peer != binding.peer
            };
            if self.by_external.get(&key).is_some_and(|others| !others.iter().all(shared)) {
                return Err(Taken);
            }
        }
        for (key, inside) in keys(external, &binding) {
            self.by_external.entry(key).or_default().push(binding.clone());
            let (host, port) = inside;
            self.by_inside.entry((host, key.0, port)).or_default().push(binding.clone());
        }
        Ok(())
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, external: SocketAddrV4, binding: &Binding) -> bool {
        let mut found = false;
        for (key, (host, port)) in keys(external, binding) {
            found |= remove(&mut self.by_external, key, binding);
            remove(&mut self.by_inside, (host, key.0, port), binding);
        }
        found
    }

    /// The binding for exactly this external port: its host and internal port, and whether the remote peer may come in.
    pub(super) fn inbound(
        &self,
        protocol: Protocol,
        external: SocketAddrV4,
        remote: SocketAddrV4,
        prefix: Option<Prefix64>,
    ) -> Option<(Inside, u16, bool)> {
        if external.port() == 0 {
            return None; // no port at all: only a binding for all of them
        }
        let found = self.by_external.get(&(protocol, *external.ip(), external.port()))?;
        let first = found.first()?;
        let at = covers(port_of(first), first.ports, external.port())?;
        let allowed = found.iter().any(|binding| allows(binding, remote, prefix));
        Some((first.inside, first.internal_port + at, allowed))
    }

    /// The binding for all ports, or else all protocols, of this external address.
    pub(super) fn inbound_wide(
        &self,
        protocol: Protocol,
        external: SocketAddrV4,
        remote: SocketAddrV4,
        prefix: Option<Prefix64>,
    ) -> Option<(Inside, u16, bool)> {
        let found = |protocol| self.by_external.get(&(protocol, *external.ip(), 0));
        let found = found(protocol).or_else(|| found(Protocol::ALL))?;
        let allowed = found.iter().any(|binding| allows(binding, remote, prefix));
        Some((found.first()?.inside, external.port(), allowed))
    }

    /// What a host's packets to `remote` come from outside.
    pub(super) fn outbound(
        &self,
        protocol: Protocol,
        inside: Inside,
        port: u16,
        remote: SocketAddrV4,
        prefix: Option<Prefix64>,
    ) -> Option<SocketAddrV4> {
        let exact = self.by_inside.get(&(inside, protocol, port)).filter(|_| port != 0);
        if let Some(found) = exact {
            let peer = found.iter().find(|binding| binding.peer.is_some() && allows(binding, remote, prefix));
            let binding = peer.or_else(|| found.iter().find(|binding| binding.peer.is_none()));
            // A PEER to somebody else has made a mapping nevertheless, the same one for every destination.
            let binding = binding.or(found.first())?;
            let at = port - binding.internal_port;
            return Some(SocketAddrV4::new(address_of(binding)?, port_of(binding) + at));
        }
        let wide = |protocol| self.by_inside.get(&(inside, protocol, 0));
        let found = wide(protocol).or_else(|| wide(Protocol::ALL))?;
        Some(SocketAddrV4::new(address_of(found.first()?)?, port))
    }

    /// Whose an external port is in particular.
    pub(super) fn owner(&self, protocol: Protocol, external: SocketAddrV4) -> Option<(Inside, u16)> {
        let binding = self.by_external.get(&(protocol, *external.ip(), external.port()))?.first()?;
        let at = covers(port_of(binding), binding.ports, external.port())?;
        Some((
            binding.inside,
            if port_of(binding) == 0 { external.port() } else { binding.internal_port + at },
        ))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_external.is_empty() && self.by_inside.is_empty()
    }

    /// An external address that a host has already.
    pub(super) fn address_of(&self, inside: Inside) -> Option<Ipv4Addr> {
        let (key, found) = self.by_inside.range((inside, Protocol(0), 0)..).next()?;
        address_of(found.first().filter(|_| key.0 == inside)?)
    }
}

/// How far an external port is behind the first of `ports`; 0 for a binding of all ports.
pub(super) fn covers(first: u16, ports: u16, port: u16) -> Option<u16> {
    if first == 0 {
        return Some(0);
    }
    port.checked_sub(first).filter(|&at| at < ports)
}

/// Every external port of a binding, and what it is inside; those of one that does not fit only as far as there are any.
fn keys(
    external: SocketAddrV4,
    binding: &Binding,
) -> impl Iterator<Item = ((Protocol, Ipv4Addr, u16), (Inside, u16))> + use<> {
    let (protocol, inside, internal_port) = (binding.protocol, binding.inside, binding.internal_port);
    (0..binding.ports).map_while(move |at| {
        let key = (protocol, *external.ip(), external.port().checked_add(at)?);
        Some((key, (inside, internal_port.checked_add(at)?)))
    })
}

fn remove<K: Ord>(map: &mut BTreeMap<K, Vec<Binding>>, key: K, binding: &Binding) -> bool {
    let Some(all) = map.get_mut(&key) else { return false };
    let before = all.len();
    all.retain(|own| own != binding);
    let found = all.len() < before;
    if all.is_empty() {
        map.remove(&key);
    }
    found
}

fn port_of(binding: &Binding) -> u16 {
    binding.external.port()
}

fn address_of(binding: &Binding) -> Option<Ipv4Addr> {
    match binding.external {
        SocketAddr::V4(external) => Some(*external.ip()),
        SocketAddr::V6(_) => None,
    }
}

/// Whether a remote peer may come in. It is named as hosts inside know it: behind a NAT64 by the prefix.
fn allows(binding: &Binding, remote: SocketAddrV4, prefix: Option<Prefix64>) -> bool {
    let embedded = prefix.map(|prefix| prefix.embed(*remote.ip()).into());
    let names = [Some(IpAddr::V4(*remote.ip())), embedded];
    names.into_iter().flatten().any(|name| binding.lets_in(SocketAddr::new(name, remote.port())))
}

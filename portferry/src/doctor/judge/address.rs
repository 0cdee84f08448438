//! What kind of an IPv4 address it is (RFC 6890 and its registry).

use std::net::Ipv4Addr;

/// Whom an address can be reached by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Everybody in the Internet.
    Public,
    /// RFC 1918.
    Private,
    /// RFC 6598: between a provider's NAT and its subscribers.
    Shared,
    /// RFC 3927: nobody gave one.
    LinkLocal,
    /// RFC 6333: a softwire's inside.
    DsLite,
    /// For examples in documents (RFC 5737).
    Documentation,
    /// Anything else that is no unicast address of the Internet.
    Reserved,
}

impl Kind {
    pub(crate) fn of(addr: Ipv4Addr) -> Self {
        let [a, b, c, d] = addr.octets();
        match (a, b, c) {
            (10, ..) | (192, 168, _) => Kind::Private,
            (172, 16..=31, _) => Kind::Private,
            (100, 64..=127, _) => Kind::Shared,
            (169, 254, _) => Kind::LinkLocal,
            (192, 0, 0) if d < 8 => Kind::DsLite,
            (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Kind::Documentation,
            (0 | 127 | 224.., ..)
            | (192, 0, 0)
            | (192, 88, 99)
            | (192, 31, 196)
            | (192, 52, 193)
            | (192, 175, 48)
            | (198, 18..=19, _) => Kind::Reserved,
            _ => Kind::Public,
        }
    }

    /// In a sentence: "is a … address".
    pub(crate) fn words(self) -> &'static str {
        match self {
            Kind::Public => "public",
            Kind::Private => "private (RFC 1918)",
            Kind::Shared => "shared (100.64.0.0/10, carrier-grade NAT)",
            Kind::LinkLocal => "link-local (169.254.0.0/16)",
            Kind::DsLite => "DS-Lite (192.0.0.0/29)",
            Kind::Documentation => "documentation (RFC 5737)",
            Kind::Reserved => "reserved",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (addr, kind) in [
            ("9.9.9.9", Kind::Public),
            ("10.1.2.3", Kind::Private),
            ("172.15.0.1", Kind::Public),
            ("172.31.0.1", Kind::Private),
            ("192.168.1.1", Kind::Private),
            ("100.63.0.1", Kind::Public),
            ("100.127.0.1", Kind::Shared),
            ("169.254.3.4", Kind::LinkLocal),
            ("192.0.0.2", Kind::DsLite),
            ("192.0.0.9", Kind::Reserved),
            ("198.51.100.7", Kind::Documentation),
            ("203.0.114.1", Kind::Public),
            ("198.19.0.1", Kind::Reserved),
            ("240.0.0.1", Kind::Reserved),
            ("0.0.0.0", Kind::Reserved),
        ] {
            assert_eq!(Kind::of(addr.parse().unwrap()), kind, "{addr}");
        }
    }
}

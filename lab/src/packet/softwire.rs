//! IPv4 in IPv6: the softwire between a B4 and its AFTR (RFC 6333 §5, RFC 2473).

use std::net::Ipv6Addr;

use super::protocol::IPV4;
use super::{Ipv4, Ipv6, Refused};

/// The two bits of congestion notification in a traffic class (RFC 3168 §5).
const ECN: u8 = 0b11;
const CONGESTION_EXPERIENCED: u8 = 0b11;

/// Puts an IPv4 packet into the softwire from `src` to `dst`. The traffic class is the inner one (RFC 2983 §3.1, RFC 6040
/// §4.1).
#[must_use]
pub fn encapsulate(src: Ipv6Addr, dst: Ipv6Addr, inner: &Ipv4) -> Ipv6 {
    Ipv6 { traffic_class: inner.tos, ..Ipv6::new(src, dst, IPV4, inner.to_bytes()) }
}

/// Takes the IPv4 packet out of a softwire. Congestion that was marked outside is marked inside (RFC 6040 §4.2).
///
/// # Errors
///
/// [`Refused::Protocol`] when there is no IPv4 packet in it, [`Refused::Congestion`], and those of [`Ipv6::upper`] and
/// [`Ipv4::parse`].
pub fn decapsulate(outer: &Ipv6) -> Result<Ipv4, Refused> {
    let (protocol, at) = outer.upper()?;
    if protocol != IPV4 {
        return Err(Refused::Protocol);
    }
    let mut inner = Ipv4::parse(&outer.payload[at..])?;
    if outer.traffic_class & ECN == CONGESTION_EXPERIENCED {
        if inner.tos & ECN == 0 {
            return Err(Refused::Congestion);
        }
        inner.tos |= CONGESTION_EXPERIENCED;
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{TCP, UDP};
    use super::*;

    const B4: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    const AFTR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

    fn inner(tos: u8) -> Ipv4 {
        Ipv4 { tos, ..Ipv4::new([192, 168, 77, 10].into(), [198, 51, 100, 20].into(), UDP, vec![1, 2, 3]) }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let outer = encapsulate(B4, AFTR, &inner(0xb9));
        assert_eq!((outer.src, outer.dst, outer.next_header, outer.traffic_class), (B4, AFTR, 4, 0xb9));
        assert_eq!(outer.payload, inner(0xb9).to_bytes());
        assert_eq!(decapsulate(&outer), Ok(inner(0xb9)));
        assert_eq!(decapsulate(&Ipv6 { next_header: TCP, ..outer }), Err(Refused::Protocol));
    }

    /// RFC 6040 §4.2, the last column of figure 4.
    #[test]
    fn congestion_is_told_to_who_understands_it() {
        let through = |tos| {
            let outer = encapsulate(B4, AFTR, &inner(tos));
            decapsulate(&Ipv6 { traffic_class: tos | CONGESTION_EXPERIENCED, ..outer })
        };
        assert_eq!(through(0), Err(Refused::Congestion));
        for tos in [1, 2, 3] {
            assert_eq!(through(tos), Ok(inner(3)));
        }
    }
}

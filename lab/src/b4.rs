//! The home router's end of a softwire (RFC 6333 §5): IPv4 goes to the AFTR inside of IPv6, and what comes from there is
//! taken out. There is no NAT here, and no state.

use std::net::Ipv6Addr;

use crate::packet::{Ipv4, Ipv6, Refused, decapsulate, encapsulate};

/// The B4's IPv4 address inside the softwire (RFC 6333 §5.7).
pub const B4_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 2);

/// A softwire as seen from its subscriber.
#[derive(Clone, Copy, Debug)]
pub struct B4 {
    /// Its own IPv6 address.
    pub own: Ipv6Addr,
    /// The AFTR's.
    pub aftr: Ipv6Addr,
}

impl B4 {
    /// What becomes of a packet of either version.
    ///
    /// # Errors
    ///
    /// Why it goes no further.
    pub fn handle_packet(&self, packet: &[u8]) -> Result<Vec<u8>, Refused> {
        if packet.first().is_some_and(|first| first >> 4 == 4) {
            let inner = Ipv4::parse(packet)?;
            return Ok(encapsulate(self.own, self.aftr, &inner).to_bytes());
        }
        let outer = Ipv6::parse(packet)?;
        // RFC 6333 §5.4 and RFC 2473 §3.1: anybody could send IPv4 packets in from elsewhere.
        if (outer.src, outer.dst) != (self.aftr, self.own) {
            return Err(Refused::Address);
        }
        Ok(decapsulate(&outer)?.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::udp_v4;

    #[test]
    fn what_goes_out_comes_in_again_from_the_aftr_only() {
        let b4 = B4 { own: "2001:db8::2".parse().unwrap(), aftr: "2001:db8::1".parse().unwrap() };
        let other_end = B4 { own: b4.aftr, aftr: b4.own };
        let packet = udp_v4((B4_ADDRESS, 1), ([192, 0, 2, 1].into(), 2), b"data").to_bytes();
        let outer = b4.handle_packet(&packet).unwrap();
        assert_eq!(other_end.handle_packet(&outer), Ok(packet));
        assert_eq!(b4.handle_packet(&outer), Err(Refused::Address));
        let elsewhere = B4 { own: "2001:db8::3".parse().unwrap(), ..other_end };
        assert_eq!(elsewhere.handle_packet(&outer), Err(Refused::Address));
        assert_eq!(b4.handle_packet(&[]), Err(Refused::Malformed));
    }
}

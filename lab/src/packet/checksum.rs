//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::{Ipv4Addr, Ipv6Addr};

/// A ones' complement sum of 16-bit words; it grows by what is added, in any order of whole words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds octets; an odd last one is followed by a zero.
    #[must_use]
    pub fn octets(self, octets: &[u8]) -> Self {
        let words = octets.chunks(2).map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(u16::from_be_bytes([high, 0])),
            _ => unreachable!("chunks are neither empty nor longer"),
        });
        Self(self.0 + words.sum::<u64>())
    }

    /// Adds one word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Adds the pseudo-header that TCP and UDP count over IPv4 (RFC 9293 §3.1): both addresses, protocol, length.
    #[must_use]
    pub fn pseudo_v4(self, src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: usize) -> Self {
        self.octets(&src.octets()).octets(&dst.octets()).word(protocol.into()).length(len)
    }

    /// Adds the pseudo-header that everything counts over IPv6 (RFC 8200 §8.1).
    #[must_use]
    pub fn pseudo_v6(self, src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: usize) -> Self {
        self.octets(&src.octets()).octets(&dst.octets()).word(protocol.into()).length(len)
    }

    fn length(self, len: usize) -> Self {
        Self(self.0 + len as u64)
    }

    /// What stands in a header whose other words were added: the complement.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// Whether words that include their own checksum are what was sent.
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.folded() == 0xffff
    }

    fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).expect("folded until it fits")
    }

    /// The checksum after the words of `self` in its packet became those of `new` (RFC 1624, equation 3).
    #[must_use]
    pub fn update(self, checksum: u16, new: Self) -> u16 {
        Self(0).word(!checksum).word(!self.folded()).word(new.folded()).checksum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §3.
    #[test]
    fn the_sum_of_the_standard() {
        let sum = Sum::default().octets(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    /// RFC 1624 §4: the case that the equation of RFC 1141 gets wrong.
    #[test]
    fn an_update_as_the_standard_has_it() {
        let (old, new) = (Sum::default().word(0x5555), Sum::default().word(0x3285));
        assert_eq!(old.update(0xdd2f, new), 0x0000);
    }

    proptest! {
        #[test]
        fn an_update_is_the_sum_made_anew(
            mut words in proptest::collection::vec(any::<u16>(), 2..40), at in any::<proptest::sample::Index>(), new in any::<u16>(),
        ) {
            words[0] |= 1; // a header is never all zeros, whose sum has two names
            let at = 1 + at.index(words.len() - 1);
            let sum = |words: &[u16]| words.iter().fold(Sum::default(), |sum, &word| sum.word(word));
            let before = sum(&words).checksum();
            let old = std::mem::replace(&mut words[at], new);
            prop_assert_eq!(Sum::default().word(old).update(before, Sum::default().word(new)), sum(&words).checksum());
        }
    }
}

//! Reading and writing octets: what every binary message of this crate is made from.
//!
//! Nothing here may panic, whatever the octets are, and nothing here allocates while reading.

use core::fmt;

/// The octets are not what the specification allows.
///
/// It carries no detail: the peer hears silence or its protocol's own answer, and we count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed message")
    }
}

impl core::error::Error for Malformed {}

/// A cursor over received octets. All numbers are big-endian.
///
/// A read either succeeds and moves on, or fails with [`Malformed`] and moves nothing.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the first octet of `octets`.
    pub fn new(octets: &'a [u8]) -> Self {
        Self { left: octets }
    }

    /// The next `N` octets.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.left.split_first_chunk::<N>().ok_or(Malformed)?;
        self.left = tail;
        Ok(*head)
    }

    /// The next octet.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next two octets as a number.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four octets as a number.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next `n` octets.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.left.split_at_checked(n).ok_or(Malformed)?;
        self.left = tail;
        Ok(head)
    }

    /// All octets not read yet; the reader is empty afterwards.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.left)
    }

    /// How many octets have not been read yet.
    pub fn remaining(&self) -> usize {
        self.left.len()
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

/// A value with one place in a binary message.
///
/// Two laws hold: decoding what `encode` wrote gives the value back and leaves what follows unread, and every
/// strict prefix of an encoding is [`Malformed`].
pub trait Wire: Sized {
    /// Reads one value.
    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed>;
    /// Appends the value to `w`.
    fn encode(&self, w: &mut Vec<u8>);
}

/// Declares an open newtype from its registry: every number is a value, the registered ones have names.
///
/// The string after the representation is what precedes an unregistered number in print.
macro_rules! registry {
    (
        $(#[$attribute:meta])*
        $type:ident($repr:ty), $unknown:literal, {
            $($name:ident = $value:literal, $text:literal;)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $type(pub $repr);

        impl $type {
            $(#[doc = $text] pub const $name: Self = Self($value);)+

            /// Every registered value, in registry order.
            pub const KNOWN: &[Self] = &[$(Self::$name),+];

            /// The registered name.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }

        impl ::core::fmt::Display for $type {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, concat!($unknown, " {}"), self.0),
                }
            }
        }

        impl ::core::fmt::Debug for $type {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Display::fmt(self, f)
            }
        }
    };
}
pub(crate) use registry;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_read_moves_nothing() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u32(), Err(Malformed));
        assert_eq!(r.take(4), Err(Malformed));
        assert_eq!(r.remaining(), 3);
        assert_eq!(r.u16(), Ok(0x0102));
        assert_eq!(r.u8(), Ok(3));
        assert!(r.is_empty());
        assert_eq!(r.u8(), Err(Malformed));
        assert_eq!(r.take(0), Ok(&[][..]));
    }

    #[test]
    fn rest_empties_the_reader() {
        let mut r = Reader::new(&[1, 2, 3, 4, 5]);
        assert_eq!(r.array(), Ok([1]));
        assert_eq!(r.u16(), Ok(0x0203));
        assert_eq!(r.rest(), [4, 5]);
        assert!(r.is_empty() && r.rest().is_empty());
    }
}

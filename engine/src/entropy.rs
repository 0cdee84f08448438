//! Randomness as an argument: the engine draws it, the caller makes it.

use crate::time::Duration;

/// A source of random octets. The daemon's is the kernel's; a test's is seeded, so that a run replays exactly.
pub trait Entropy {
    /// Fills `bytes` with random octets.
    fn fill(&mut self, bytes: &mut [u8]);

    /// Octets that are the same for the same `name` in every life of this installation, and that nobody else can tell.
    fn derive(&self, name: &[u8]) -> [u8; 16];

    /// A number uniform in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        f64::from(u32::from_be_bytes(bytes)) / 4_294_967_296.0
    }

    /// A duration uniform in `[0, limit)`.
    fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.unit())
    }
}

impl<E: Entropy + ?Sized> Entropy for Box<E> {
    fn fill(&mut self, bytes: &mut [u8]) {
        (**self).fill(bytes);
    }

    fn derive(&self, name: &[u8]) -> [u8; 16] {
        (**self).derive(name)
    }
}

/// A small seeded generator (xorshift64*) for tests, scenarios and simulation; never for nonces in the field.
#[derive(Clone, Debug)]
pub struct SeededEntropy(u64);

impl SeededEntropy {
    /// A generator that always yields the same octets for the same `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
}

impl Entropy for SeededEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// There is one installation in a test, whatever its seeds; what it derives is no secret (FNV-1a).
    fn derive(&self, name: &[u8]) -> [u8; 16] {
        let mix = |hash: u128, octet: &u8| {
            (hash ^ u128::from(*octet)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
        };
        name.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, mix).to_be_bytes()
    }
}

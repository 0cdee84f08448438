//! Randomness: the kernel's, and what is derived from this installation's secret.

use std::hash::Hasher;

use engine::entropy::Entropy;
use siphasher::sip128::{Hasher128, SipHasher24};

/// The kernel's random octets, and a secret.
pub struct KernelEntropy {
    key: [u8; 16],
}

impl KernelEntropy {
    /// What is derived depends on `key`, which nobody else knows.
    pub fn new(key: [u8; 16]) -> Self {
        Self { key }
    }
}

impl Entropy for KernelEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        // Without randomness every nonce could be guessed: nothing may go on.
        getrandom::fill(bytes).expect("the kernel gives random octets");
    }

    /// SipHash-2-4 with 128 bits, a pseudorandom function: who sees some of what is derived can tell nothing else of it.
    fn derive(&self, name: &[u8]) -> [u8; 16] {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(name);
        hasher.finish128().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An update of portferry must not change it: a provider knows the mappings of before by it.
    #[test]
    fn the_same_for_ever() {
        let entropy = KernelEntropy::new(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        let message: Vec<u8> = (0..15).collect();
        let expected = 0x5493_e999_33b0_a811_7e08_ec0f_97cf_c3d9_u128.to_be_bytes();
        assert_eq!(entropy.derive(&message), expected, "the reference implementation's vector 15");
        assert_ne!(entropy.derive(b"other"), expected);
    }
}

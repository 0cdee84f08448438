//! A memory of bounded size: what was remembered longest ago is forgotten first.

use std::collections::BTreeMap;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Remembered<K, V> {
    most: usize,
    kept: BTreeMap<K, (V, u64)>,
    order: BTreeMap<u64, K>,
    next: u64,
}

impl<K: Copy + Ord, V> Remembered<K, V> {
    /// Room for `most` of them.
    pub(super) fn new(most: usize) -> Self {
        Self { most, kept: BTreeMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// Remembers `value`, in place of an older one of the same key.
    pub(super) fn keep(&mut self, key: K, value: V) {
        self.take(key);
        self.next += 1;
        self.kept.insert(key, (value, self.next));
        self.order.insert(self.next, key);
        if self.kept.len() > self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.kept.remove(&oldest);
        }
    }

    /// What is remembered of `key`.
    pub(super) fn peek(&self, key: K) -> Option<&V> {
        self.kept.get(&key).map(|(value, _)| value)
    }

    /// The same; it is forgotten now.
    pub(super) fn take(&mut self, key: K) -> Option<V> {
        let (value, at) = self.kept.remove(&key)?;
        self.order.remove(&at);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let mut memory = Remembered::new(100);
        memory.keep(1, 'a');
        memory.keep(1, 'b');
        assert_eq!(memory.peek(1), Some(&'b'));
        assert_eq!((memory.take(1), memory.take(1)), (Some('b'), None));
        for key in 0..150 {
            memory.keep(key, 'c');
            memory.keep(60, 'd');
        }
        assert_eq!((memory.kept.len(), memory.order.len()), (100, 100));
        assert_eq!((memory.peek(0), memory.peek(149)), (None, Some(&'c')));
        assert!(memory.peek(60).is_some(), "it was remembered again and again");
    }
}

//! How many of something one holder has open at a time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

/// Counts what each holder, such as a session, has open. The lock is held for a count, never while
/// anything is waited for.
#[derive(Clone, Debug)]
pub struct Slots<K = Uuid> {
    open: Arc<Mutex<HashMap<K, usize>>>,
    most: usize,
}

/// One open thing; dropping it gives its place back.
#[derive(Debug)]
pub struct Slot<K: Copy + Eq + Hash = Uuid> {
    slots: Slots<K>,
    holder: K,
}

impl<K: Copy + Eq + Hash> Slots<K> {
    /// Gives each holder `most` places.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { open: Arc::default(), most }
    }

    /// Takes a place; nothing when the holder has taken all of its own.
    #[must_use]
    pub fn take(&self, holder: K) -> Option<Slot<K>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.get(&holder).copied().unwrap_or_default();
        if count >= self.most {
            return None;
        }
        open.insert(holder, count + 1);
        Some(Slot { slots: self.clone(), holder })
    }
}

impl<K: Copy + Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut open = self.slots.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                open.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_with_all_places_taken_gets_one_again_when_it_gives_one_back() {
        let (slots, holder) = (Slots::new(2), Uuid::now_v7());
        let first = slots.take(holder);
        let second = slots.take(holder);

        assert!(first.is_some() && second.is_some());
        assert!(slots.take(holder).is_none());
        assert!(slots.take(Uuid::now_v7()).is_some(), "another holder is not concerned");

        drop(second);
        assert!(slots.take(holder).is_some());
        drop(first);
        assert!(slots.open.lock().unwrap().is_empty(), "nothing is kept of who has nothing open");
    }
}

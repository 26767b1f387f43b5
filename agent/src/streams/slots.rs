//! How many streams go into one instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tianqi_common::id::InstanceId;

/// Counts the open streams of each instance.
#[derive(Clone)]
pub(super) struct Slots {
    most: usize,
    open: Arc<Mutex<HashMap<InstanceId, usize>>>,
}

/// One open stream; dropping it gives its place back.
pub(super) struct Slot {
    slots: Slots,
    instance: InstanceId,
}

impl Slots {
    /// Lets `most` into each instance.
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    /// Takes a place; nothing when all are taken.
    pub(super) fn take(&self, instance: InstanceId) -> Option<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(instance).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Slot { slots: self.clone(), instance })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.slots.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.instance) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.instance);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_instance_refuses_one_more_and_another_instance_does_not() {
        let slots = Slots::new(4);
        let (full, other) = (InstanceId::new(), InstanceId::new());
        let mut taken: Vec<_> = (0..4).map(|_| slots.take(full).unwrap()).collect();

        assert!(slots.take(full).is_none());
        assert!(slots.take(other).is_some());

        taken.pop();
        assert!(slots.take(full).is_some());
    }
}

//! The queue of samples from all agents: when it is full, the oldest batch goes and is counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tianqi_common::id::NodeId;
use tianqi_common::wire::telemetry::SampleBatch;
use tokio::sync::Notify;

#[derive(Debug)]
struct Shared {
    queue: Mutex<VecDeque<(NodeId, SampleBatch)>>,
    capacity: usize,
    dropped: AtomicU64,
    filled: Notify,
}

/// Where connections put what agents send.
#[derive(Clone, Debug)]
pub struct SampleSender(Arc<Shared>);

/// Where telemetry takes it. One reader.
#[derive(Debug)]
pub struct SampleReceiver(Arc<Shared>);

/// Makes a queue of at most `capacity` batches.
#[must_use]
pub fn queue(capacity: usize) -> (SampleSender, SampleReceiver) {
    let shared = Arc::new(Shared {
        queue: Mutex::default(),
        capacity: capacity.max(1),
        dropped: AtomicU64::new(0),
        filled: Notify::new(),
    });
    (SampleSender(shared.clone()), SampleReceiver(shared))
}

impl SampleSender {
    /// Adds a batch; never waits.
    pub fn push(&self, node: NodeId, batch: SampleBatch) {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= self.0.capacity {
            queue.pop_front();
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        queue.push_back((node, batch));
        drop(queue);
        self.0.filled.notify_one();
    }
}

impl SampleReceiver {
    /// Waits for the oldest batch.
    pub async fn recv(&mut self) -> (NodeId, SampleBatch) {
        loop {
            let next = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(next) = next {
                return next;
            }
            self.0.filled.notified().await;
        }
    }

    /// Returns how many batches were dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_drops_the_oldest_and_counts_it() {
        let (sender, mut receiver) = queue(2);
        let node = NodeId::new();

        for dropped in 0..5 {
            sender.push(node, SampleBatch { dropped, samples: Vec::new() });
        }

        assert_eq!(receiver.recv().await.1.dropped, 3);
        assert_eq!(receiver.recv().await.1.dropped, 4);
        assert_eq!(receiver.dropped(), 3);
    }
}

//! The ring in which samples wait for the controller.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tianqi_common::wire::telemetry::{Sample, SampleBatch};
use tokio::sync::Notify;

/// Samples that wait while the controller is out of reach: twenty minutes at one in five seconds,
/// about a megabyte with eight cards and twenty instances.
pub const CAPACITY: usize = 240;

/// A bounded queue of samples. When it is full the oldest sample goes and is counted, because new
/// numbers matter more than old ones.
#[derive(Debug)]
pub struct SampleQueue {
    capacity: usize,
    inner: Mutex<Inner>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    samples: VecDeque<Sample>,
    dropped: u64,
}

impl Default for SampleQueue {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl SampleQueue {
    /// Makes an empty queue for `capacity` samples, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), inner: Mutex::default(), arrived: Notify::new() }
    }

    /// Adds a sample. Never waits.
    pub fn push(&self, sample: Sample) {
        let mut inner = self.lock();
        if inner.samples.len() >= self.capacity {
            inner.samples.pop_front();
            inner.dropped = inner.dropped.saturating_add(1);
        }
        inner.samples.push_back(sample);
        drop(inner);
        self.arrived.notify_one();
    }

    /// Waits until there is a sample and takes up to `most` of the oldest, with the count of those
    /// dropped since the last batch. Meant for one reader.
    pub async fn next(&self, most: usize) -> SampleBatch {
        loop {
            let arrived = self.arrived.notified();
            let batch = self.take(most.max(1));
            if !batch.samples.is_empty() {
                return batch;
            }
            arrived.await;
        }
    }

    /// Puts a batch back that could not be sent, as far as there is room; the rest counts as dropped.
    pub fn give_back(&self, batch: SampleBatch) {
        let mut inner = self.lock();
        inner.dropped = inner.dropped.saturating_add(batch.dropped);
        for sample in batch.samples.into_iter().rev() {
            if inner.samples.len() < self.capacity {
                inner.samples.push_front(sample);
            } else {
                inner.dropped = inner.dropped.saturating_add(1);
            }
        }
        drop(inner);
        self.arrived.notify_one();
    }

    fn take(&self, most: usize) -> SampleBatch {
        let mut inner = self.lock();
        let count = most.min(inner.samples.len());
        let samples: Vec<Sample> = inner.samples.drain(..count).collect();
        let dropped = if samples.is_empty() { 0 } else { std::mem::take(&mut inner.dropped) };
        SampleBatch { dropped, samples }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tianqi_common::clock::UnixMillis;
    use tianqi_common::wire::telemetry::NodeSample;

    use super::*;

    fn sample(at: i64) -> Sample {
        let node = NodeSample::default();
        Sample { at: UnixMillis(at), node, gpus: Vec::new(), instances: Vec::new() }
    }

    fn times(batch: &SampleBatch) -> Vec<i64> {
        batch.samples.iter().map(|sample| sample.at.0).collect()
    }

    #[tokio::test]
    async fn a_full_queue_drops_the_oldest_and_counts_them() {
        let queue = SampleQueue::new(3);
        for at in 1..=5 {
            queue.push(sample(at));
        }

        let batch = queue.next(2).await;
        assert_eq!((times(&batch), batch.dropped), (vec![3, 4], 2));
        let batch = queue.next(2).await;
        assert_eq!((times(&batch), batch.dropped), (vec![5], 0), "what was told is not told again");
    }

    #[tokio::test]
    async fn a_batch_that_comes_back_stays_in_order_and_loses_only_what_has_no_room() {
        let queue = SampleQueue::new(3);
        for at in 1..=3 {
            queue.push(sample(at));
        }
        let batch = queue.next(3).await;
        queue.push(sample(4));

        queue.give_back(batch);

        let batch = queue.next(9).await;
        assert_eq!((times(&batch), batch.dropped), (vec![2, 3, 4], 1));
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let queue = Arc::new(SampleQueue::default());
        let reader = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.next(1).await }
        });
        tokio::task::yield_now().await;

        queue.push(sample(1));

        assert_eq!(times(&reader.await.unwrap()), [1]);
    }
}

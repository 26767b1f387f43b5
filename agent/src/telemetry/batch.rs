//! The ring in which samples wait for the controller.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tianqi_common::wire::telemetry::{Sample, SampleBatch};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Samples that wait while the controller is out of reach: twenty minutes at one in five seconds,
/// about a megabyte with eight cards and twenty instances.
pub const CAPACITY: usize = 240;

/// Most samples of one batch.
const MOST_SAMPLES: usize = 16;
/// Most cards and instances, over all samples of one batch: about 600 kB, where a frame holds 1 MiB.
/// A single sample is sent whatever its size.
const MOST_ROWS: usize = 4096;

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

    /// Moves batches into `to` until it is closed or `cancel`. While nobody takes them there, samples
    /// wait here, so that the newest are kept.
    pub async fn forward(&self, to: mpsc::Sender<SampleBatch>, cancel: CancellationToken) {
        let moved = async {
            while let Ok(place) = to.reserve().await {
                place.send(self.next(MOST_SAMPLES).await);
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = moved => {}
        }
    }

    fn take(&self, most: usize) -> SampleBatch {
        let mut inner = self.lock();
        let mut rows = 0_usize;
        let fits = |sample: &&Sample| {
            rows = rows.saturating_add(sample.instances.len()).saturating_add(sample.gpus.len());
            rows <= MOST_ROWS
        };
        let count = inner.samples.iter().take(most).take_while(fits).count().max(1);
        let count = count.min(inner.samples.len());
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
    use tianqi_common::id::InstanceId;
    use tianqi_common::wire::telemetry::{InstanceSample, NodeSample};

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
    async fn a_batch_stays_small_enough_for_its_frame() {
        let queue = SampleQueue::default();
        let instance = InstanceSample {
            id: InstanceId::new(),
            cpu_millicores: u64::MAX,
            memory_used_bytes: u64::MAX,
            memory_limit_bytes: u64::MAX,
            network_rx_bytes: u64::MAX,
            network_tx_bytes: u64::MAX,
            block_read_bytes: u64::MAX,
            block_write_bytes: u64::MAX,
            pids: u64::MAX,
            gpu_memory_used_bytes: Some(u64::MAX),
        };
        for at in 1..=4 {
            queue.push(Sample { instances: vec![instance.clone(); 1500], ..sample(at) });
        }

        let batch = queue.next(16).await;

        assert_eq!(times(&batch), [1, 2]);
        assert!(postcard::to_allocvec(&batch).unwrap().len() < 1 << 20);
    }

    #[tokio::test]
    async fn samples_wait_in_the_queue_while_nobody_takes_them() {
        let queue = Arc::new(SampleQueue::new(3));
        let (to, mut from) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let forwarding = tokio::spawn({
            let (queue, cancel) = (Arc::clone(&queue), cancel.clone());
            async move { queue.forward(to, cancel).await }
        });
        queue.push(sample(1));
        while from.is_empty() {
            tokio::task::yield_now().await;
        }
        for at in 2..=5 {
            queue.push(sample(at));
        }

        assert_eq!(times(&from.recv().await.unwrap()), [1]);
        let batch = from.recv().await.unwrap();
        assert_eq!((times(&batch), batch.dropped), (vec![3, 4, 5], 1));
        cancel.cancel();
        forwarding.await.unwrap();
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

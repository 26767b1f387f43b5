//! Datagrams in batches: read many by one system call, and grouped so that many are sent by one.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Mutex, PoisonError};

use quinn_udp::{BATCH_SIZE, RecvMeta};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of one slot: the longest datagram, or many short ones that the kernel put together.
const SLOT: usize = 64 << 10;
/// Batches of all forwards together; whoever wants one more waits, and the kernel drops what comes
/// meanwhile once its own buffer is full.
const BATCHES: usize = 16;
/// Longest datagram that is put together with others: what an Ethernet frame holds. A longer one may
/// have to be cut up on its way, which is done for single datagrams alone.
const JOINED_MAX: usize = 1_472;
/// Most bytes and datagrams that are sent by one call.
const RUN_BYTES: usize = 60_000;
const RUN_DATAGRAMS: usize = 60;

/// Buffers that take turns.
#[derive(Debug)]
pub(crate) struct Batches {
    permits: Semaphore,
    free: Mutex<Vec<Batch>>,
}

/// Datagrams that were read by one call.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
    count: usize,
    joined: Vec<u8>,
}

/// A batch on loan.
#[derive(Debug)]
pub(crate) struct Loan<'a> {
    batch: Batch,
    pool: &'a Batches,
    _permit: Option<SemaphorePermit<'a>>,
}

/// Datagrams of one sender, all of `size` bytes but the last, which may be shorter.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// Who sent them.
    pub from: SocketAddr,
    /// The address of this machine to which they were sent.
    pub to: Option<IpAddr>,
    /// Their bytes, one after the other.
    pub bytes: &'a [u8],
    /// The bytes of each.
    pub size: usize,
}

impl Default for Batches {
    fn default() -> Self {
        Self { permits: Semaphore::new(BATCHES), free: Mutex::default() }
    }
}

impl Batches {
    /// Lends a batch; waits while all of them are on loan.
    pub(crate) async fn take(&self) -> Loan<'_> {
        // The semaphore is never closed.
        let permit = self.permits.acquire().await.ok();
        let spare = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Loan { batch: spare.unwrap_or_else(Batch::with_room), pool: self, _permit: permit }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
    }
}

impl Deref for Loan<'_> {
    type Target = Batch;

    fn deref(&self) -> &Batch {
        &self.batch
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Batch {
        &mut self.batch
    }
}

impl Default for Batch {
    fn default() -> Self {
        let metas = [RecvMeta::default(); BATCH_SIZE];
        Self { bytes: Vec::new(), metas, count: 0, joined: Vec::new() }
    }
}

impl Batch {
    /// The kernel gives the pages of a slot when something is written there.
    fn with_room() -> Self {
        Self { bytes: vec![0; SLOT * BATCH_SIZE], ..Self::default() }
    }

    /// Reads by `receive`, which is given the slots and says how many it filled.
    pub(crate) fn fill(
        &mut self,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.count = 0;
        let mut slots: Vec<IoSliceMut<'_>> =
            self.bytes.chunks_mut(SLOT).map(IoSliceMut::new).collect();
        self.count = receive(&mut slots, &mut self.metas)?;
        Ok(())
    }

    /// Returns which datagrams go together.
    pub(crate) fn groups(&self) -> Vec<Range<usize>> {
        groups(self.metas.get(..self.count).unwrap_or_default())
    }

    /// Returns the datagrams of one group, one after the other.
    pub(crate) fn run(&mut self, group: Range<usize>) -> Option<Run<'_>> {
        let first = *self.metas.get(group.start)?;
        let size = first.stride.min(first.len);
        let bytes = if group.len() == 1 {
            let start = group.start.checked_mul(SLOT)?;
            self.bytes.get(start..start.checked_add(first.len)?)?
        } else {
            self.joined.clear();
            for index in group {
                let len = self.metas.get(index)?.len;
                let start = index.checked_mul(SLOT)?;
                self.joined.extend_from_slice(self.bytes.get(start..start.checked_add(len)?)?);
            }
            &self.joined
        };
        Some(Run { from: first.addr, to: first.dst_ip, bytes, size })
    }
}

/// Puts neighbours together that have the same sender, were sent to the same address and are equally
/// long, the last of them perhaps shorter. What the kernel put together already stays by itself.
fn groups(metas: &[RecvMeta]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::with_capacity(metas.len());
    let (mut bytes, mut is_open) = (0, false);
    for (index, meta) in metas.iter().enumerate() {
        let is_single = meta.len == meta.stride && (1..=JOINED_MAX).contains(&meta.len);
        if let Some(group) = groups.last_mut()
            && let Some(first) = metas.get(group.start)
            && is_open
            && is_single
            && (meta.addr, meta.dst_ip) == (first.addr, first.dst_ip)
            && meta.len <= first.len
            && bytes + meta.len <= RUN_BYTES
            && group.len() < RUN_DATAGRAMS
        {
            group.end = index + 1;
            bytes += meta.len;
            // A shorter one is the last.
            is_open = meta.len == first.len;
            continue;
        }
        groups.push(index..index + 1);
        (bytes, is_open) = (meta.len, is_single);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(from: u16, len: usize, stride: usize) -> RecvMeta {
        let addr = SocketAddr::from(([127, 0, 0, 1], from));
        RecvMeta { addr, len, stride, ecn: None, dst_ip: None }
    }

    fn single(from: u16, len: usize) -> RecvMeta {
        meta(from, len, len)
    }

    #[test]
    fn equal_neighbours_of_one_sender_go_together_and_nothing_else_does() {
        let cases: [(&[RecvMeta], Vec<Range<usize>>); 8] = [
            (&[], vec![]),
            (&[single(1, 9), single(1, 9), single(1, 9)], std::iter::once(0..3).collect()),
            (&[single(1, 9), single(1, 4), single(1, 4)], vec![0..2, 2..3]),
            (&[single(1, 4), single(1, 9)], vec![0..1, 1..2]),
            (&[single(1, 9), single(2, 9), single(1, 9)], vec![0..1, 1..2, 2..3]),
            (&[single(1, 0), single(1, 0)], vec![0..1, 1..2]),
            (&[single(1, 1_473), single(1, 1_473)], vec![0..1, 1..2]),
            (&[meta(1, 27, 9), single(1, 9), single(1, 9)], vec![0..1, 1..3]),
        ];
        for (metas, expected) in cases {
            assert_eq!(groups(metas), expected, "{metas:?}");
        }
        let many = vec![single(1, 1_472); 50];
        assert!(groups(&many).iter().all(|group| group.len() * 1_472 <= RUN_BYTES));
    }

    #[test]
    fn a_group_is_the_bytes_of_its_datagrams_in_their_order() {
        let mut batch = Batch::with_room();
        batch
            .fill(|slots, metas| {
                for (index, text) in [&b"one"[..], b"two", b"x", b"other"].into_iter().enumerate() {
                    slots[index][..text.len()].copy_from_slice(text);
                    metas[index] = single(if index < 3 { 1 } else { 2 }, text.len());
                }
                Ok(4)
            })
            .unwrap();

        let groups = batch.groups();

        assert_eq!(groups, [0..3, 3..4]);
        let run = batch.run(0..3).unwrap();
        assert_eq!((run.bytes, run.size), (&b"onetwox"[..], 3));
        let run = batch.run(3..4).unwrap();
        assert_eq!((run.bytes, run.size, run.from.port()), (&b"other"[..], 5, 2));
    }
}

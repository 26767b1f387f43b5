//! What listens now, in numbers: read by everybody who asks, written by those who carry.
//!
//! Numbers are counted since the controller started and survive every change of a forward.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::ForwardId;
use tokio::sync::watch;

use super::admit::{Limits, Refusal};
use super::view::{LiveView, State};
use crate::core::timestamp::Timestamp;

/// How long an answer waits for a change to take effect, so that it can say what came of it.
const SETTLED: Duration = Duration::from_secs(2);

/// Every forward's numbers. Cheap to clone. The lock is held to look something up, never longer.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    meters: RwLock<HashMap<ForwardId, Arc<Meter>>>,
    /// Grows when a forward has been brought in line with its row.
    turns: watch::Sender<u64>,
    is_kept: AtomicBool,
    connections: Arc<AtomicU64>,
    flows: Arc<AtomicU64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            meters: RwLock::default(),
            turns: watch::channel(0).0,
            is_kept: AtomicBool::new(false),
            connections: Arc::default(),
            flows: Arc::default(),
        }
    }
}

/// One forward's numbers.
#[derive(Debug, Default)]
pub(super) struct Meter {
    state: Mutex<(State, String)>,
    /// The generation of the row that it was last brought in line with.
    generation: AtomicI64,
    open: AtomicU64,
    total: AtomicU64,
    refused: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    last_error: Mutex<Option<(UnixMillis, String)>>,
}

/// What a forward has carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Connections or flows.
    pub total: u64,
    /// Those that were turned away.
    pub refused: u64,
    /// Bytes to the target.
    pub bytes_in: u64,
    /// Bytes from it.
    pub bytes_out: u64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the target.
    In,
    /// From it.
    Out,
}

/// A place among the open connections, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    meter: Arc<Meter>,
    all: Arc<AtomicU64>,
}

/// Counts the bytes of one connection, and of its forward.
#[derive(Debug, Default)]
pub(super) struct Tally {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Ports {
    /// Says that somebody keeps the forwards in line with their rows from here on, or no longer.
    pub(super) fn kept(&self, is_kept: bool) {
        self.0.is_kept.store(is_kept, Ordering::Release);
    }

    /// Whether somebody keeps them.
    pub(super) fn is_kept(&self) -> bool {
        self.0.is_kept.load(Ordering::Acquire)
    }

    /// Returns a forward's numbers, which begin now when there were none.
    pub(super) fn meter(&self, id: ForwardId) -> Arc<Meter> {
        let mut meters = self.0.meters.write().unwrap_or_else(PoisonError::into_inner);
        meters.entry(id).or_default().clone()
    }

    fn find(&self, id: ForwardId) -> Option<Arc<Meter>> {
        let meters = self.0.meters.read().unwrap_or_else(PoisonError::into_inner);
        meters.get(&id).cloned()
    }

    /// Forgets a forward that is gone.
    pub(super) fn forget(&self, id: ForwardId) {
        let mut meters = self.0.meters.write().unwrap_or_else(PoisonError::into_inner);
        meters.remove(&id);
    }

    /// Returns how a forward stands now. One that nobody has brought in line yet is stopped.
    pub(super) fn view(&self, id: ForwardId) -> LiveView {
        self.find(id).map(|meter| meter.view()).unwrap_or_default()
    }

    /// Says that a forward is in line with this generation of its row, or gone.
    pub(super) fn turned(&self, id: ForwardId, generation: i64) {
        if let Some(meter) = self.find(id) {
            meter.generation.store(generation, Ordering::Release);
        }
        self.0.turns.send_modify(|turns| *turns = turns.wrapping_add(1));
    }

    /// Waits until a change has taken effect, a while at most; not at all when nobody keeps them.
    pub(super) async fn settled(&self, id: ForwardId, generation: i64) {
        if !self.is_kept() {
            return;
        }
        let mut turns = self.0.turns.subscribe();
        let is_done = |_: &u64| {
            let meter = self.find(id);
            meter.is_some_and(|meter| meter.generation.load(Ordering::Acquire) >= generation)
        };
        // Whoever is still waiting reads what stands, and the next read shows what came of it.
        let _ = tokio::time::timeout(SETTLED, turns.wait_for(is_done)).await;
    }

    /// What counts the connections of TCP of all forwards.
    pub(super) fn connections(&self) -> Arc<AtomicU64> {
        self.0.connections.clone()
    }

    /// What counts the flows of UDP of all forwards.
    pub(super) fn flows(&self) -> Arc<AtomicU64> {
        self.0.flows.clone()
    }
}

impl Meter {
    /// Says how the forward stands.
    pub(super) fn stands(&self, state: State, reason: impl Into<String>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (state, reason.into());
    }

    /// Notes what went wrong.
    pub(super) fn failed(&self, at: UnixMillis, what: impl Into<String>) {
        let what = what.into();
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, what));
    }

    /// Takes a place for somebody from `source`.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; it is counted.
    pub(super) fn admit(
        self: &Arc<Self>,
        all: &Arc<AtomicU64>,
        limits: &Limits,
        source: IpAddr,
    ) -> Result<Place, Refusal> {
        let own = self.open.fetch_add(1, Ordering::Relaxed);
        let everywhere = all.fetch_add(1, Ordering::Relaxed);
        let place = Place { meter: self.clone(), all: all.clone() };
        if let Err(refusal) = limits.admit(source, own, everywhere) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(refusal);
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        Ok(place)
    }

    /// Counts bytes.
    pub(super) fn count(&self, way: Way, bytes: u64) {
        match way {
            Way::In => self.bytes_in.fetch_add(bytes, Ordering::Relaxed),
            Way::Out => self.bytes_out.fetch_add(bytes, Ordering::Relaxed),
        };
    }

    /// Returns what was carried so far.
    pub(super) fn carried(&self) -> Carried {
        Carried {
            total: self.total.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }

    fn view(&self) -> LiveView {
        let (state, reason) = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Carried { total, refused, bytes_in, bytes_out } = self.carried();
        LiveView {
            state,
            reason,
            connections: self.open.load(Ordering::Relaxed),
            total_connections: total,
            refused_connections: refused,
            bytes_in,
            bytes_out,
            last_error_at: last.as_ref().map(|(at, _)| Timestamp::from(*at)),
            last_error: last.map(|(_, what)| what),
        }
    }
}

impl Carried {
    /// Returns what was carried since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            refused: self.refused.saturating_sub(earlier.refused),
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
        }
    }
}

impl Place {
    /// The forward's numbers.
    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.meter.open.fetch_sub(1, Ordering::Relaxed);
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    /// Counts bytes here and in the forward's numbers.
    pub(super) fn count(&self, meter: &Meter, way: Way, bytes: usize) {
        self.note(way, bytes);
        meter.count(way, u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Counts bytes here alone.
    pub(super) fn note(&self, way: Way, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        match way {
            Way::In => self.bytes_in.fetch_add(bytes, Ordering::Relaxed),
            Way::Out => self.bytes_out.fetch_add(bytes, Ordering::Relaxed),
        };
    }

    /// Returns the bytes to the target and from it.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.bytes_in.load(Ordering::Relaxed), self.bytes_out.load(Ordering::Relaxed))
    }
}

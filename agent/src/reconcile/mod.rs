//! The loop of the agent: compare desired and observed, act, until they are equal.
//!
//! One task owns everything; steps run beside it, one per instance at a time and
//! [`Settings::steps_at_once`] over all, so that a slow stop holds nobody else up. The ledger is
//! written before a step begins. Woken by a new desired state, Docker's events, a pull that ended,
//! a step that ended, and every 30 s.

mod act;
mod events;
pub mod ledger;
mod pass;
pub mod plan;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::NodeDesired;
use tianqi_common::wire::observed::{DockerState, DockerStatus, NodeObserved, Removed};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::act::Outcome;
use self::ledger::{Book, Ledger, Opened};
use self::plan::ContainerAction;
use crate::docker::walls::NetworkGuard;
use crate::docker::{Container, Docker, DockerHandle, NetworkSpec};
use crate::gpu::inject::SliceInjector;

/// Between two looks when nothing happens.
const TICK: Duration = Duration::from_secs(30);

/// What the node's configuration says about the loop.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network that instances stand on.
    pub network: NetworkSpec,
    /// The guest's program; an instance runs without it when the file is missing.
    pub guest: Option<PathBuf>,
    /// Where the folders of the guests' sockets are; absolute, as an engine binds them.
    pub guest_folders: PathBuf,
    /// Steps on the way at once; more wait their turn.
    pub steps_at_once: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            network: NetworkSpec::default(),
            guest: None,
            guest_folders: PathBuf::from("guests"),
            steps_at_once: 8,
        }
    }
}

/// The loop, ready to run.
pub struct Reconciler {
    docker: DockerHandle,
    injector: Arc<dyn SliceInjector>,
    guard: Arc<dyn NetworkGuard>,
    clock: SharedClock,
    settings: Settings,
    ledger: Arc<Ledger>,
    book: Book,
    /// Why the book is not on disk; empty when it is.
    unwritten: String,
    /// The generations carried out, as they are on disk.
    acted_on_disk: BTreeMap<InstanceId, u64>,
    is_dirty: bool,
    /// The engine that was looked at last.
    engine: Option<Arc<dyn Docker>>,
    state: DockerState,
    containers: Vec<Container>,
    down_since: Option<UnixMillis>,
    outage: Option<(UnixMillis, UnixMillis)>,
    walls_due: bool,
    walls: Result<(), String>,
    steps: BTreeMap<InstanceId, ContainerAction>,
    removed: BTreeMap<InstanceId, Removed>,
    image_missing: BTreeSet<InstanceId>,
    boot: String,
    has_said_guest_is_missing: bool,
    permits: Arc<Semaphore>,
}

/// A step that ended.
type Ended = (InstanceId, u64, Outcome);

impl Reconciler {
    /// Puts the loop together; `ledger` is what [`Ledger::open`] gave.
    #[must_use]
    pub fn new(
        docker: DockerHandle,
        ledger: Opened,
        injector: Arc<dyn SliceInjector>,
        guard: Arc<dyn NetworkGuard>,
        clock: SharedClock,
        settings: Settings,
    ) -> Self {
        Self {
            docker,
            injector,
            guard,
            clock,
            permits: Arc::new(Semaphore::new(settings.steps_at_once.max(1))),
            settings,
            ledger: Arc::new(ledger.ledger),
            acted_on_disk: ledger.book.acted(),
            book: ledger.book,
            unwritten: String::new(),
            is_dirty: false,
            engine: None,
            state: DockerState::default(),
            containers: Vec::new(),
            down_since: None,
            outage: None,
            walls_due: true,
            walls: Err("not tried yet".to_owned()),
            steps: BTreeMap::new(),
            removed: BTreeMap::new(),
            image_missing: BTreeSet::new(),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim().to_owned())
                .unwrap_or_default(),
            has_said_guest_is_missing: false,
        }
    }

    /// Runs until `cancel`. Steps on the way are dropped then; what they began is taken up again
    /// at the next start. `wake` says that an image may have come.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<NodeDesired>>,
        wake: Arc<Notify>,
        observed: watch::Sender<NodeObserved>,
        cancel: CancellationToken,
    ) {
        let poke = Arc::new(Notify::new());
        let following = cancel.child_token();
        let _stop_following = following.clone().drop_guard();
        tokio::spawn(events::follow(self.docker.clone(), poke.clone(), following));
        let mut steps: JoinSet<Ended> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut has_sender = true;
        let newest = desired.borrow_and_update().clone();
        self.take_in(newest);
        loop {
            let rest = tokio::select! {
                () = cancel.cancelled() => return,
                rest = self.pass(&mut steps) => rest,
            };
            let report = self.report();
            observed.send_if_modified(|old| {
                let is_new = *old != report;
                *old = report;
                is_new
            });
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = desired.changed(), if has_sender => {
                    has_sender = changed.is_ok();
                    let newest = desired.borrow_and_update().clone();
                    self.take_in(newest);
                }
                () = wake.notified() => self.look_for_images_again(),
                () = poke.notified() => {}
                Some(ended) = steps.join_next() => {
                    self.settle(ended);
                    while let Some(ended) = steps.try_join_next() {
                        self.settle(ended);
                    }
                }
                _ = tick.tick() => self.walls_due = true,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Takes a desired state in, unless it is older than what is known.
    fn take_in(&mut self, newest: Option<NodeDesired>) {
        let Some(newest) = newest else {
            return;
        };
        if let Some(known) = &self.book.desired {
            if newest.revision < known.revision || newest == *known {
                return;
            }
            for instance in &newest.instances {
                let before = known.instances.iter().find(|old| old.id == instance.id);
                // Somebody asked for something: earlier failures do not hold it up.
                if before.is_some_and(|before| before.generation != instance.generation)
                    && let Some(record) = self.book.records.get_mut(&instance.id)
                {
                    record.retry_at = None;
                    record.failures = 0;
                    record.failure.clear();
                }
            }
        }
        let is_known = |id: &InstanceId| {
            newest.tombstones.contains(id) || newest.instances.iter().any(|i| i.id == *id)
        };
        self.book.records.retain(|id, _| is_known(id));
        self.removed.retain(|id, _| newest.tombstones.contains(id));
        self.image_missing.retain(is_known);
        self.book.desired = Some(newest);
        self.is_dirty = true;
    }

    fn look_for_images_again(&mut self) {
        for id in std::mem::take(&mut self.image_missing) {
            if let Some(record) = self.book.records.get_mut(&id) {
                record.retry_at = None;
            }
        }
    }

    fn is_connected(&self) -> bool {
        self.state.status == DockerStatus::Connected
    }
}

#[cfg(test)]
mod tests;

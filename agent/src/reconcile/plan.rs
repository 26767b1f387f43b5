//! Pure: what to do next. `desired − observed`, one step per instance at a time.
//!
//! Nothing is removed but what a tombstone names, and second containers of one instance. Every
//! step may run twice. A step's result is seen in the next observation, never assumed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::{InstanceDesired, NodeDesired, RestartPolicy, Run as Wanted};
use tianqi_common::wire::observed::Removed;

use super::ledger::{Ended, Record};
use crate::docker::{Container, Run};

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// An instance that ran this long begins its pauses anew.
const GOOD_RUN: Duration = Duration::from_secs(600);
/// An end is believed to be the process's own after this long: whoever removes a container by
/// force ends it a moment before.
const SETTLED: Duration = Duration::from_secs(5);
/// Ends this near to an outage of the engine belong to it.
const OUTAGE_MARGIN: Duration = Duration::from_secs(30);

/// One step for one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerAction {
    /// Make the container.
    Create(InstanceId),
    /// Start it, because a person asked for it or something interrupted it.
    Start(InstanceId, String),
    /// Start it by its restart policy.
    Restart(InstanceId, String),
    /// Stop it.
    Stop(InstanceId, String),
    /// Remove a second container of the instance; its named volumes stay.
    RemoveDouble(InstanceId, String),
    /// Remove its containers and volumes.
    Purge(InstanceId),
}

impl ContainerAction {
    /// Returns whose step it is.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        match self {
            Self::Create(id)
            | Self::Start(id, _)
            | Self::Restart(id, _)
            | Self::Stop(id, _)
            | Self::RemoveDouble(id, _)
            | Self::Purge(id) => *id,
        }
    }
}

/// Everything the plan is made from.
#[derive(Debug)]
pub struct Situation<'a> {
    /// What should be.
    pub desired: &'a NodeDesired,
    /// What was done before.
    pub records: &'a BTreeMap<InstanceId, Record>,
    /// What there is: every container with our label.
    pub containers: &'a [Container],
    /// Tombstones carried out by this process.
    pub removed: &'a BTreeMap<InstanceId, Removed>,
    /// Instances with a step on the way.
    pub busy: &'a BTreeSet<InstanceId>,
    /// Why nothing new may be made; nothing when it may.
    pub no_creates: bool,
    /// The last time the engine was away: from, to.
    pub outage: Option<(UnixMillis, UnixMillis)>,
    /// This boot of the machine.
    pub boot: &'a str,
    /// The time.
    pub now: UnixMillis,
}

/// What to do, and what has become clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps, at most one per instance.
    pub actions: Vec<ContainerAction>,
    /// Generations that are carried out, to be written down.
    pub reached: Vec<(InstanceId, u64)>,
    /// Instances that ended by themselves for good, to be written down.
    pub ended: Vec<(InstanceId, Ended)>,
    /// When something falls due that no event announces.
    pub wake_at: Option<UnixMillis>,
}

/// Returns the container that stands for an instance: one that runs before one that does not, then
/// the newest.
#[must_use]
pub fn keeper(containers: &[Container], instance: InstanceId) -> Option<&Container> {
    containers
        .iter()
        .filter(|container| container.instance == instance)
        .max_by_key(|c| (c.run.is_running(), c.run != Run::Removing, c.created_at, c.id.clone()))
}

/// Returns the pause after `times` attempts: 1 s, 2 s, 4 s and so on, at most five minutes.
#[must_use]
pub fn pause(times: u32) -> Duration {
    let seconds = 1_u64.checked_shl(times.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(PAUSE_MAX)
}

/// Returns how many restarts in a row an end adds to; none after a good run.
#[must_use]
pub fn streak(record: &Record, container: &Container) -> u32 {
    match (container.started_at, container.finished_at) {
        (Some(started), Some(finished)) if finished.since(started) >= GOOD_RUN => 0,
        _ => record.streak,
    }
}

/// Returns what to do next.
#[must_use]
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    let tombstones: BTreeSet<InstanceId> = situation.desired.tombstones.iter().copied().collect();
    for id in &tombstones {
        if situation.busy.contains(id) {
            continue;
        }
        let has_container = situation.containers.iter().any(|c| c.instance == *id);
        let is_clean = situation.removed.get(id).is_some_and(|done| done.leftovers.is_empty());
        if (has_container || !is_clean) && plan.is_due(situation, situation.records.get(id)) {
            plan.actions.push(ContainerAction::Purge(*id));
        }
    }
    for instance in &situation.desired.instances {
        if !tombstones.contains(&instance.id) && !situation.busy.contains(&instance.id) {
            plan.step(situation, instance);
        }
    }
    plan
}

impl Plan {
    fn step(&mut self, situation: &Situation<'_>, instance: &InstanceDesired) {
        let kept = keeper(situation.containers, instance.id);
        let double = situation
            .containers
            .iter()
            .find(|c| c.instance == instance.id && kept.is_some_and(|kept| kept.id != c.id));
        if let Some(double) = double {
            if self.is_due(situation, situation.records.get(&instance.id)) {
                let id = double.id.clone();
                self.actions.push(ContainerAction::RemoveDouble(instance.id, id));
            }
            return;
        }
        match instance.run {
            Wanted::Running => self.towards_running(situation, instance, kept),
            Wanted::Stopped => match kept {
                Some(kept) if kept.run.is_running() => {
                    self.push_due(situation, ContainerAction::Stop(instance.id, kept.id.clone()));
                }
                _ => self.reach(situation, instance),
            },
        }
    }

    fn towards_running(
        &mut self,
        situation: &Situation<'_>,
        instance: &InstanceDesired,
        kept: Option<&Container>,
    ) {
        let id = instance.id;
        let record = situation.records.get(&id);
        let is_acted = record.is_some_and(|record| record.acted >= instance.generation);
        let Some(kept) = kept else {
            let has_ended = is_acted && record.is_some_and(|record| record.ended.is_some());
            if !has_ended && !situation.no_creates {
                self.push_due(situation, ContainerAction::Create(id));
            }
            return;
        };
        match &kept.run {
            Run::Running if is_acted => {}
            Run::Running if is_started_for(record, instance, kept) => {
                self.reach(situation, instance)
            }
            // A restart that a person asked for: stop, then start in the next step.
            Run::Running => {
                self.push_due(situation, ContainerAction::Stop(id, kept.id.clone()));
            }
            Run::Created => self.push_due(situation, ContainerAction::Start(id, kept.id.clone())),
            // Docker finishes or the container shows up again as something else.
            Run::Removing => {}
            Run::Exited { code, out_of_memory, .. } => {
                let ended = Ended { code: *code, out_of_memory: *out_of_memory };
                if !is_acted || record.is_some_and(|r| is_interrupted(situation, r, kept)) {
                    self.push_due(situation, ContainerAction::Start(id, kept.id.clone()));
                } else {
                    self.after_end(situation, instance, kept, ended);
                }
            }
        }
    }

    /// The process ended by itself: the restart policy decides.
    fn after_end(
        &mut self,
        situation: &Situation<'_>,
        instance: &InstanceDesired,
        kept: &Container,
        ended: Ended,
    ) {
        let record = situation.records.get(&instance.id).cloned().unwrap_or_default();
        let restarts = match instance.spec.restart {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => ended.code != 0,
            RestartPolicy::Always => true,
        };
        let finished = kept.finished_at.unwrap_or(situation.now);
        if restarts {
            let due = finished.plus(pause(streak(&record, kept) + 1));
            let due = due.max(record.retry_at.unwrap_or(due));
            if self.is_past(situation, due) {
                let id = kept.id.clone();
                self.actions.push(ContainerAction::Restart(instance.id, id));
            }
        } else if record.ended != Some(ended) && self.is_past(situation, finished.plus(SETTLED)) {
            self.ended.push((instance.id, ended));
        }
    }

    fn reach(&mut self, situation: &Situation<'_>, instance: &InstanceDesired) {
        let acted = situation.records.get(&instance.id).map_or(0, |record| record.acted);
        if acted < instance.generation {
            self.reached.push((instance.id, instance.generation));
        }
    }

    fn push_due(&mut self, situation: &Situation<'_>, action: ContainerAction) {
        if self.is_due(situation, situation.records.get(&action.instance())) {
            self.actions.push(action);
        }
    }

    fn is_due(&mut self, situation: &Situation<'_>, record: Option<&Record>) -> bool {
        record.and_then(|record| record.retry_at).is_none_or(|at| self.is_past(situation, at))
    }

    fn is_past(&mut self, situation: &Situation<'_>, at: UnixMillis) -> bool {
        let is_past = at <= situation.now;
        if !is_past {
            self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
        }
        is_past
    }
}

/// Whether the running container was started for this generation: after it was begun, or made for
/// it, or found by an agent that knows nothing of the instance (a lost ledger must not restart the
/// whole node).
fn is_started_for(
    record: Option<&Record>,
    instance: &InstanceDesired,
    container: &Container,
) -> bool {
    let Some(record) = record else {
        return true;
    };
    let is_after_begin = record.begun.is_some_and(|begun| {
        begun.generation == instance.generation
            && container.started_at.is_some_and(|started| started >= begun.at)
    });
    is_after_begin || container.generation == instance.generation
}

/// Whether the end was not the process's own: the machine went down, or the engine did.
fn is_interrupted(situation: &Situation<'_>, record: &Record, container: &Container) -> bool {
    if record.ended.is_some() {
        return false;
    }
    let is_other_boot = !record.boot.is_empty() && record.boot != situation.boot;
    let is_in_outage =
        situation.outage.zip(container.finished_at).is_some_and(|((from, to), finished)| {
            // What was started after the outage does not end with it.
            container.started_at.is_none_or(|started| started < to)
                && finished.plus(OUTAGE_MARGIN) >= from
                && finished <= to.plus(OUTAGE_MARGIN)
        });
    is_other_boot || is_in_outage
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

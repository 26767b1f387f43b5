//! Pure: what the agent tells the controller of its instances.

use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::{InstanceDesired, Run as Wanted};
use tianqi_common::wire::observed::{
    ContainerState, DockerState, DockerStatus, InstanceObserved, LimitKind, LimitState,
    NodeObserved, Removed,
};

use super::ledger::{Book, Ended, Record};
use super::plan::{ContainerAction, keeper};
use crate::docker::{Container, Run, sweep};

/// Everything a report is made from.
pub(super) struct Seen<'a> {
    pub(super) book: &'a Book,
    pub(super) docker: DockerState,
    pub(super) containers: &'a [Container],
    pub(super) steps: &'a BTreeMap<InstanceId, ContainerAction>,
    pub(super) removed: &'a BTreeMap<InstanceId, Removed>,
    pub(super) image_missing: &'a BTreeSet<InstanceId>,
    /// Why the book is not on disk, so that nothing new is made; empty when it is.
    pub(super) no_creates: &'a str,
    /// The generations carried out, as they are on disk.
    pub(super) acted_on_disk: &'a BTreeMap<InstanceId, u64>,
    pub(super) network: LimitState,
}

/// Returns the report.
pub(super) fn report(seen: &Seen<'_>) -> NodeObserved {
    let Some(desired) = &seen.book.desired else {
        return NodeObserved { docker: seen.docker.clone(), ..NodeObserved::default() };
    };
    // A tombstone that is not on disk would be forgotten with this process: the next one would make
    // the instance again, and the controller, told that it is gone, would never say so again.
    let is_told = |done: &Removed| {
        let is_on_disk = seen.no_creates.is_empty();
        desired.tombstones.contains(&done.id) && (is_on_disk || !done.leftovers.is_empty())
    };
    NodeObserved {
        revision: desired.revision,
        docker: seen.docker.clone(),
        instances: desired.instances.iter().map(|instance| seen.instance(instance)).collect(),
        removed: seen.removed.values().filter(|done| is_told(done)).cloned().collect(),
        orphans: sweep::orphans(seen.containers, desired),
    }
}

impl Seen<'_> {
    fn instance(&self, instance: &InstanceDesired) -> InstanceObserved {
        let unknown = Record::default();
        let record = self.book.records.get(&instance.id).unwrap_or(&unknown);
        let container = keeper(self.containers, instance.id);
        InstanceObserved {
            id: instance.id,
            generation: self.generation(instance, record),
            state: if self.docker.status == DockerStatus::Connected {
                self.state(instance, record, container)
            } else {
                ContainerState::Unknown
            },
            container_id: container.map(|c| c.id.clone()),
            started_at: container.and_then(|c| c.started_at),
            restarts: record.restarts,
            limits: container.map(|c| self.limits(record, c)).unwrap_or_default(),
            gpus: container.map(|c| c.gpus.clone()).unwrap_or_default(),
        }
    }

    /// Returns the generation that was carried out. A stop that is not on disk does not count: the
    /// ledger still says that the instance should run, and its capacity must not go to others.
    fn generation(&self, instance: &InstanceDesired, record: &Record) -> u64 {
        if instance.run == Wanted::Stopped && !self.no_creates.is_empty() {
            let on_disk = self.acted_on_disk.get(&instance.id).copied();
            return on_disk.unwrap_or_default().min(record.acted);
        }
        record.acted
    }

    fn limits(&self, record: &Record, container: &Container) -> Vec<LimitState> {
        let mut limits = container.limits.clone();
        for limit in limits.iter_mut().filter(|limit| limit.kind == LimitKind::Slice) {
            if !record.slice_idle.is_empty() {
                limit.enforced = false;
                limit.reason.clone_from(&record.slice_idle);
            }
        }
        limits.push(self.network.clone());
        limits
    }

    fn state(
        &self,
        instance: &InstanceDesired,
        record: &Record,
        container: Option<&Container>,
    ) -> ContainerState {
        use ContainerAction as Act;
        match self.steps.get(&instance.id) {
            Some(Act::Create(_) | Act::Start(..) | Act::Restart(..)) => {
                return ContainerState::Creating;
            }
            Some(Act::Stop(..)) => return ContainerState::Stopping,
            Some(Act::RemoveDouble(..) | Act::Purge(_)) | None => {}
        }
        let should_run = instance.run == Wanted::Running;
        let is_acted = record.acted >= instance.generation;
        let failed = (!record.failure.is_empty())
            .then(|| ContainerState::Failed { message: record.failure.clone(), retrying: true });
        let Some(container) = container else {
            return self.state_without(instance, record, failed);
        };
        match &container.run {
            Run::Running if !should_run => failed.unwrap_or(ContainerState::Stopping),
            Run::Running if !is_acted => failed.unwrap_or(ContainerState::Creating),
            Run::Running => ContainerState::Running,
            Run::Removing => ContainerState::Stopping,
            Run::Created if should_run => failed.unwrap_or(ContainerState::Creating),
            Run::Created => exited(Ended { code: 0, out_of_memory: false }, "it was never started"),
            Run::Exited { .. } if should_run && failed.is_some() => {
                failed.unwrap_or(ContainerState::Creating)
            }
            Run::Exited { .. } if should_run && !is_acted => ContainerState::Creating,
            Run::Exited { code, out_of_memory, error } => {
                let message = if should_run { error.as_str() } else { "stopped" };
                exited(Ended { code: *code, out_of_memory: *out_of_memory }, message)
            }
        }
    }

    fn state_without(
        &self,
        instance: &InstanceDesired,
        record: &Record,
        failed: Option<ContainerState>,
    ) -> ContainerState {
        if instance.run == Wanted::Stopped {
            return ContainerState::Absent;
        }
        if let Some(ended) = record.ended.filter(|_| record.acted >= instance.generation) {
            return exited(ended, "its container was removed after it ended");
        }
        if self.image_missing.contains(&instance.id) {
            return ContainerState::ImageMissing;
        }
        if !self.no_creates.is_empty() {
            let message = self.no_creates.to_owned();
            return ContainerState::Failed { message, retrying: true };
        }
        failed.unwrap_or(ContainerState::Creating)
    }
}

fn exited(ended: Ended, message: &str) -> ContainerState {
    ContainerState::Exited {
        code: ended.code,
        out_of_memory: ended.out_of_memory,
        message: message.to_owned(),
    }
}

//! One turn of the loop: look, plan, write down, begin steps; and what an ended step means.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::InstanceDesired;
use tianqi_common::wire::observed::{
    DockerState, DockerStatus, LimitKind, LimitState, NodeObserved,
};
use tokio::task::JoinSet;

use super::act::{Outcome, Step, chain};
use super::ledger::Begun;
use super::plan::{self, ContainerAction, Plan, Situation};
use super::report::{Seen, report};
use super::{Ended, Reconciler, TICK};
use crate::docker::{Container, DockerError, spec};

/// Between two attempts to reach an engine that does not answer.
const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// Between two attempts to write a ledger that could not be written.
const LEDGER_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks for an image that nobody says has come.
const IMAGE_PAUSE: Duration = Duration::from_secs(30);

impl Reconciler {
    /// Looks at the node and begins what is due. Returns how long nothing needs to be done.
    pub(super) async fn pass(&mut self, running: &mut JoinSet<Ended>) -> Duration {
        self.write_down().await;
        match self.look().await {
            Ok(containers) => self.containers = containers,
            Err(error) => {
                self.lose_engine(&error);
                return ENGINE_PAUSE;
            }
        }
        if self.walls_due {
            self.raise_walls().await;
        }
        let Some(desired) = self.book.desired.clone() else {
            return TICK;
        };
        let busy: BTreeSet<InstanceId> = self.steps.keys().copied().collect();
        let now = self.clock.now();
        let plan = plan::plan(&Situation {
            desired: &desired,
            records: &self.book.records,
            containers: &self.containers,
            removed: &self.removed,
            busy: &busy,
            no_creates: !self.unwritten.is_empty(),
            outage: self.outage,
            boot: &self.boot,
            now,
        });
        self.note(&plan, &desired.instances);
        self.write_down().await;
        for action in plan.actions {
            // Nothing is made that would be forgotten after a power cut.
            if !self.unwritten.is_empty() && matches!(action, ContainerAction::Create(_)) {
                continue;
            }
            self.begin(running, action, &desired.instances);
        }
        let due = plan.wake_at.map_or(TICK, |at| at.since(now) + Duration::from_millis(1));
        if self.unwritten.is_empty() { due } else { due.min(LEDGER_PAUSE) }
    }

    /// Returns every container with our label; also finds out whether the engine is one we serve.
    async fn look(&mut self) -> Result<Vec<Container>, DockerError> {
        let engine = self.docker.current();
        let is_same = self.engine.as_ref().is_some_and(|known| Arc::ptr_eq(known, &engine));
        if !is_same || !self.is_connected() {
            engine.engine().await?;
            self.walls_due = true;
        }
        if !is_same {
            // What was true of another engine says nothing about this one.
            self.removed.clear();
            self.outage = None;
        }
        let containers = engine.containers(None).await?;
        if !self.is_connected() {
            tracing::info!("docker engine answers");
        }
        if let Some(since) = self.down_since.take() {
            self.outage = Some((since, self.clock.now()));
        }
        self.engine = Some(engine);
        self.state = DockerState { status: DockerStatus::Connected, reason: String::new() };
        Ok(containers)
    }

    fn lose_engine(&mut self, error: &DockerError) {
        let reason = error.to_string();
        if self.state.reason != reason {
            tracing::warn!(error = reason, "docker engine is not usable; trying again");
        }
        self.down_since.get_or_insert(self.clock.now());
        self.state = DockerState { status: DockerStatus::Failed, reason };
    }

    async fn raise_walls(&mut self) {
        let engine = self.docker.current();
        let raised = async {
            let facts = engine.facts().await.map_err(|error| error.to_string())?;
            let network = engine.ensure_network(&self.settings.network).await;
            let network = network.map_err(|error| error.to_string())?;
            if !facts.local {
                return Err("the docker engine is on another host".to_owned());
            }
            self.guard.enforce(&network).await
        };
        let raised = raised.await;
        if let (Err(reason), true) = (&raised, raised != self.walls) {
            tracing::warn!(error = reason, "instances are not walled in");
        }
        self.walls = raised;
        self.walls_due = false;
    }

    /// Writes into the book what the plan found out and what is about to begin.
    fn note(&mut self, plan: &Plan, instances: &[InstanceDesired]) {
        let now = self.clock.now();
        for (id, generation) in &plan.reached {
            let record = self.book.records.entry(*id).or_default();
            record.acted = *generation;
            record.begun = None;
            if record.boot.is_empty() {
                record.boot.clone_from(&self.boot);
            }
        }
        for (id, ended) in &plan.ended {
            self.book.records.entry(*id).or_default().ended = Some(*ended);
        }
        for action in &plan.actions {
            let id = action.instance();
            let Some(instance) = instances.iter().find(|instance| instance.id == id) else {
                continue;
            };
            let kept = plan::keeper(&self.containers, id);
            let record = self.book.records.entry(id).or_default();
            match action {
                ContainerAction::Create(_) | ContainerAction::Start(..) => {
                    if record.acted < instance.generation {
                        record.restarts = 0;
                        record.streak = 0;
                    }
                    record.begun = Some(Begun { generation: instance.generation, at: now });
                }
                ContainerAction::Restart(..) => {
                    record.streak = kept.map_or(0, |kept| plan::streak(record, kept)) + 1;
                    record.restarts = record.restarts.saturating_add(1);
                }
                ContainerAction::Stop(..)
                | ContainerAction::RemoveDouble(..)
                | ContainerAction::Purge(_) => continue,
            }
            record.ended = None;
            record.boot.clone_from(&self.boot);
        }
        self.is_dirty |=
            !(plan.reached.is_empty() && plan.ended.is_empty() && plan.actions.is_empty());
    }

    fn begin(
        &mut self,
        running: &mut JoinSet<Ended>,
        action: ContainerAction,
        instances: &[InstanceDesired],
    ) {
        let id = action.instance();
        let desired = instances.iter().find(|instance| instance.id == id).cloned();
        let generation = desired.as_ref().map_or(0, |desired| desired.generation);
        let step = Step {
            action: action.clone(),
            desired,
            containers: self.containers.iter().filter(|c| c.instance == id).cloned().collect(),
            docker: self.docker.current(),
            injector: self.injector.clone(),
            network: self.settings.network.clone(),
            guest: self.guest(),
            guest_folder: spec::guest_folder(&self.settings.guest_folders, id),
        };
        let permits = self.permits.clone();
        tracing::debug!(instance.id = %id, ?action, "step begins");
        self.steps.insert(id, action);
        running.spawn(async move {
            let _permit = permits.acquire_owned().await;
            (id, generation, step.perform().await)
        });
    }

    fn guest(&mut self) -> Option<String> {
        let path = self.settings.guest.as_ref()?;
        if path.is_file() {
            return path.to_str().map(str::to_owned);
        }
        if !self.has_said_guest_is_missing {
            self.has_said_guest_is_missing = true;
            tracing::warn!(
                "guest {} is missing: instances run without it, so images that only start a shell \
                 may end at once",
                path.display()
            );
        }
        None
    }

    /// Takes in how a step ended.
    pub(super) fn settle(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let (id, generation, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A step that panicked names nobody: every step is looked at anew.
                tracing::error!(error = chain(&error), "a step ended without an answer");
                self.steps.clear();
                return;
            }
        };
        let action = self.steps.remove(&id);
        let now = self.clock.now();
        let record = self.book.records.entry(id).or_default();
        self.image_missing.remove(&id);
        self.is_dirty = true;
        match outcome {
            Outcome::Done { slice_idle } => {
                record.failures = 0;
                record.failure.clear();
                record.retry_at = None;
                if let Some(slice_idle) = slice_idle {
                    record.slice_idle = slice_idle;
                }
                let is_start =
                    matches!(action, Some(ContainerAction::Create(_) | ContainerAction::Start(..)));
                if is_start && generation > record.acted {
                    record.acted = generation;
                }
            }
            Outcome::ImageMissing => {
                record.failure.clear();
                record.retry_at = Some(now.plus(IMAGE_PAUSE));
                self.image_missing.insert(id);
            }
            Outcome::Failed { is_engine_down: true, message } => {
                tracing::debug!(instance.id = %id, error = message, "step met no engine");
                record.retry_at = Some(now.plus(ENGINE_PAUSE));
            }
            Outcome::Failed { is_engine_down: false, message } => {
                tracing::warn!(instance.id = %id, error = message, "instance {id}: step failed");
                record.failures = record.failures.saturating_add(1);
                record.retry_at = Some(now.plus(plan::pause(record.failures)));
                record.failure = message;
            }
            Outcome::Purged(removed) => {
                record.failures = record.failures.saturating_add(1);
                let is_clean = removed.leftovers.is_empty();
                record.retry_at = (!is_clean).then(|| now.plus(plan::pause(record.failures)));
                self.removed.insert(id, removed);
            }
        }
    }

    /// Writes the book to disk when it changed, or could not be written before.
    async fn write_down(&mut self) {
        if !self.is_dirty && self.unwritten.is_empty() {
            return;
        }
        let (ledger, book) = (self.ledger.clone(), self.book.clone());
        let written = tokio::task::spawn_blocking(move || ledger.write(&book)).await;
        let problem = match written {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => chain(&error),
            Err(error) => chain(&error),
        };
        if problem.is_empty() {
            self.is_dirty = false;
            self.acted_on_disk = self.book.acted();
        } else if problem != self.unwritten {
            tracing::error!(error = problem, "the ledger is not on disk; nothing new is made");
        }
        self.unwritten = problem;
    }

    pub(super) fn report(&self) -> NodeObserved {
        let reason = self.walls.as_ref().err().cloned().unwrap_or_default();
        report(&Seen {
            book: &self.book,
            docker: self.state.clone(),
            containers: &self.containers,
            steps: &self.steps,
            removed: &self.removed,
            image_missing: &self.image_missing,
            no_creates: &self.unwritten,
            acted_on_disk: &self.acted_on_disk,
            network: LimitState { kind: LimitKind::Network, enforced: reason.is_empty(), reason },
        })
    }
}

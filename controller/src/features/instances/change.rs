//! One step of an instance's life, written down: state, grants, history.

use tianqi_common::clock::UnixMillis;

use super::lifecycle::{Desired, Phase, State};
use super::store::{self, Instance, Why};
use crate::core::db::{DbError, Tx};

/// A step that was decided and is to be written.
#[derive(Clone, Debug)]
pub struct Change {
    /// The instance as it was read.
    pub before: Instance,
    /// The instance as it should be.
    pub after: Instance,
    /// Kind and sentence for its history; none for a step that people need not read.
    pub note: Option<(&'static str, String)>,
}

impl Change {
    /// Decides the step from `before` to `state`. `acts` says that the node must act although it is
    /// told the same as before: a restart.
    #[must_use]
    pub fn to(before: &Instance, state: State, why: Why, acts: bool, now: UnixMillis) -> Self {
        let mut after = before.clone();
        after.state = state;
        after.why = why;
        if acts || before.state.runs_on_node() != state.runs_on_node() {
            after.generation = before.generation.saturating_add(1);
        }
        if state.phase == Phase::Pending && before.state.phase != Phase::Pending {
            after.queued_at = now;
            after.exit_code = None;
            after.restarts = 0;
        }
        Self { before: before.clone(), after, note: None }
    }

    /// Adds a line to the instance's history.
    #[must_use]
    pub fn noting(mut self, kind: &'static str, message: impl Into<String>) -> Self {
        self.note = Some((kind, message.into()));
        self
    }

    /// Whether what the node is told changes.
    #[must_use]
    pub fn concerns_node(&self) -> bool {
        self.before.generation != self.after.generation
            || (self.after.state.desired == Desired::Deleted
                && self.before.state.desired != Desired::Deleted)
    }

    /// Writes the step; the caller has locked the node's row before. Returns whether it was written:
    /// when somebody else was faster, it was not, and the transaction must be dropped.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn write(&self, tx: &mut Tx, now: UnixMillis) -> Result<bool, DbError> {
        if !store::save(tx, &self.before, &self.after, now).await? {
            return Ok(false);
        }
        if self.before.state.keeps_capacity() && !self.after.state.keeps_capacity() {
            store::release(tx, self.before.id).await?;
        }
        if let Some((kind, message)) = &self.note {
            store::note(tx, self.before.id, now, kind, message).await?;
        }
        Ok(true)
    }
}

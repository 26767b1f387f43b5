//! Somebody in somebody's container: terminal, program, output, files, forward.
//!
//! Every face writes two rows through here: one when the stream opens or is refused, one when it
//! ends, with how long it was open, the bytes each way and how it ended. Both name the same `access`.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tianqi_common::clock::SharedClock;
use tianqi_common::id::InstanceId;
use uuid::Uuid;

use super::{Doer, Entry, Outcome, record_alone};
use crate::core::db::{Db, DbError};

/// One stream into an instance, from its opening to its end.
#[derive(Clone)]
pub struct Access {
    db: Db,
    clock: SharedClock,
    doer: Doer,
    action: &'static str,
    face: &'static str,
    instance: InstanceId,
    id: Uuid,
    began: Duration,
}

/// How a stream ended and what it carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// In one word, such as `exit` or `client_left`.
    pub reason: String,
    /// The program's exit code, when it ended by itself.
    pub exit_code: Option<i32>,
    /// Bytes into the instance.
    pub bytes_in: u64,
    /// Bytes out of it.
    pub bytes_out: u64,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("id", &self.id)
            .field("face", &self.face)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// Begins to count. `action` is the permission's name, `face` is `terminal`, `exec`, `logs` and so
    /// on.
    #[must_use]
    pub fn begin(
        db: &Db,
        clock: &SharedClock,
        doer: Doer,
        (action, face): (&'static str, &'static str),
        instance: InstanceId,
    ) -> Self {
        Self {
            db: db.clone(),
            clock: clock.clone(),
            doer,
            action,
            face,
            instance,
            id: Uuid::now_v7(),
            began: clock.monotonic(),
        }
    }

    /// Writes that the stream is open. Without this row nobody may be let in. The fields of `detail`
    /// stand in the row beside its own.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn opened(&self, detail: Value) -> Result<(), DbError> {
        self.write(Outcome::Done, "opened", detail).await
    }

    /// Writes that the stream could not be opened, and the problem's code.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn refused(&self, code: &str) -> Result<(), DbError> {
        self.write(Outcome::Failed, "refused", json!({ "code": code })).await
    }

    /// Writes that the stream has ended.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn closed(self, ending: Ending) -> Result<(), DbError> {
        self.closed_with(ending, Value::Null).await
    }

    /// As [`Access::closed`]; the fields of `more` stand in the row beside its own.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub async fn closed_with(self, ending: Ending, more: Value) -> Result<(), DbError> {
        let lasted = self.clock.monotonic().saturating_sub(self.began);
        let mut detail = json!({
            "duration_ms": u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            "reason": ending.reason,
            "exit_code": ending.exit_code,
            "bytes_in": ending.bytes_in,
            "bytes_out": ending.bytes_out,
        });
        if let (Value::Object(fields), Value::Object(more)) = (&mut detail, more) {
            fields.extend(more);
        }
        self.write(Outcome::Done, "closed", detail).await
    }

    async fn write(
        &self,
        outcome: Outcome,
        event: &'static str,
        detail: Value,
    ) -> Result<(), DbError> {
        let own = json!({ "event": event, "access": self.id, "face": self.face });
        let fields = [own, detail].into_iter().filter_map(|it| match it {
            Value::Object(fields) => Some(fields),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => None,
        });
        let entry = Entry {
            doer: &self.doer,
            action: self.action,
            target_kind: "instance",
            target_id: self.instance.to_string(),
            outcome,
            detail: Value::Object(fields.flatten().collect::<Map<_, _>>()),
        };
        record_alone(&self.db, self.clock.now(), &entry).await
    }
}

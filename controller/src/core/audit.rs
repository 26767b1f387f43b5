//! Writing who did what. Reading it is the room `audit`.

use std::fmt;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::db::{Db, DbError, Tx, args};

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doer {
    /// The account, when it was one.
    pub id: Option<UserId>,
    /// The account's name, or a word such as `system`.
    pub name: String,
    /// `user`, `node`, `system`, `local` (the admin socket) or `anonymous`.
    pub kind: &'static str,
    /// Where the request came from; empty for the system itself.
    pub remote_address: String,
    /// The request's id; empty outside requests.
    pub request_id: String,
}

impl Doer {
    /// The controller itself.
    #[must_use]
    pub fn system() -> Self {
        Self::named("system", "system")
    }

    /// Somebody without an account, such as a machine that tries to join.
    #[must_use]
    pub fn anonymous(remote_address: impl fmt::Display) -> Self {
        Self { remote_address: remote_address.to_string(), ..Self::named("anonymous", "anonymous") }
    }

    /// Somebody at the controller's own admin socket.
    #[must_use]
    pub fn local() -> Self {
        Self::named("local", "local")
    }

    fn named(name: &str, kind: &'static str) -> Self {
        Self {
            id: None,
            name: name.to_owned(),
            kind,
            remote_address: String::new(),
            request_id: String::new(),
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
    /// It failed.
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was done, refused or failed.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Who.
    pub doer: &'a Doer,
    /// What, such as `instances:create`; the permission's name where there is one.
    pub action: &'static str,
    /// Kind of the thing it was done to, such as `instance`.
    pub target_kind: &'static str,
    /// Id or name of the thing; may be empty.
    pub target_id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What else matters. Never a secret: fields are named here one by one, bodies are not stored.
    pub detail: serde_json::Value,
}

const INSERT: &str = "insert into audit_events (id, at, actor_id, actor_name, actor_kind, action, \
     target_kind, target_id, outcome, detail, remote_address, request_id) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

/// Writes `entry` in the transaction of the change itself, so that neither stands alone.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn record(tx: &mut Tx, now: UnixMillis, entry: &Entry<'_>) -> Result<(), DbError> {
    tx.run(INSERT, values(now, entry)).await.map(|_| ())
}

/// Writes `entry` by itself, for refusals that change nothing.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn record_alone(db: &Db, now: UnixMillis, entry: &Entry<'_>) -> Result<(), DbError> {
    db.run(INSERT, values(now, entry)).await.map(|_| ())
}

/// Longest text of a column that may be indexed, in characters; MySQL allows no more in a key.
const KEY_LENGTH: usize = 191;

fn values(now: UnixMillis, entry: &Entry<'_>) -> Vec<super::db::Value> {
    let target_id: String = entry.target_id.chars().take(KEY_LENGTH).collect();
    args![
        Uuid::now_v7(),
        now,
        entry.doer.id,
        entry.doer.name.as_str(),
        entry.doer.kind,
        entry.action,
        entry.target_kind,
        target_id,
        entry.outcome.as_str(),
        entry.detail.to_string(),
        entry.doer.remote_address.as_str(),
        entry.doer.request_id.as_str(),
    ]
}

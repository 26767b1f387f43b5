//! Who did what. Rows are written here and read by the room `audit`.
//!
//! A row stands in the transaction of the change itself. Nothing changes a row; retention alone
//! removes some. After the commit one sealer ([`Chain`]) links the rows by a keyed code, so that a row
//! that somebody changes, removes or slips in is found by `tianqi-controller audit verify`.

mod access;
mod chain;
mod change;
mod head;
mod mac;
mod store;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::db::{Db, DbError, Tx, args};

pub use access::{Access, Ending};
pub use chain::{Chain, ChainError, Look, SEALED};
pub use change::changes;
pub use head::begin_restore;
pub use verify::Report;

/// How somebody came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The console, by its session's cookie.
    Cookie,
    /// A program, by a session's token.
    Token,
    /// A program, by an API token.
    ApiToken,
    /// The SSH jumpbox.
    Ssh,
    /// A port forward.
    Forward,
    /// The admin socket.
    Local,
    /// A machine, at the port for agents.
    Agent,
    /// Nobody: the controller itself.
    System,
}

impl Via {
    /// Returns the word stored in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cookie => "cookie",
            Self::Token => "token",
            Self::ApiToken => "api_token",
            Self::Ssh => "ssh",
            Self::Forward => "forward",
            Self::Local => "local",
            Self::Agent => "agent",
            Self::System => "system",
        }
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doer {
    /// The account, when it was one.
    pub id: Option<UserId>,
    /// The account's name, or a word such as `system`.
    pub name: String,
    /// `user`, `node`, `system`, `local` (the admin socket) or `anonymous`.
    pub kind: &'static str,
    /// How they came in.
    pub via: Via,
    /// Where the request came from; empty for the system itself.
    pub remote_address: String,
    /// The request's id; empty outside requests.
    pub request_id: String,
}

impl Doer {
    /// The controller itself.
    #[must_use]
    pub fn system() -> Self {
        Self::named("system", "system", Via::System)
    }

    /// Somebody without an account, such as a machine that tries to join.
    #[must_use]
    pub fn anonymous(remote_address: impl fmt::Display, via: Via) -> Self {
        let remote_address = remote_address.to_string();
        Self { remote_address, ..Self::named("anonymous", "anonymous", via) }
    }

    /// Somebody at the controller's own admin socket.
    #[must_use]
    pub fn local() -> Self {
        Self::named("local", "local", Via::Local)
    }

    fn named(name: &str, kind: &'static str, via: Via) -> Self {
        Self {
            id: None,
            name: name.to_owned(),
            kind,
            via,
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
     target_kind, target_id, outcome, detail, remote_address, request_id, via) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";

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
        entry.doer.via.as_str(),
    ]
}

//! Sessions: begun by a login, ended by logging out, a new password, or time.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use uuid::Uuid;

use super::actor::SessionRules;
use crate::core::db::{Db, DbError, Tx, args, row};
use crate::core::page::Paging;
use crate::core::secret::{Secret, token_hash};

/// Most sessions of one account; the one unused for longest makes room.
const SESSIONS_MAX: u32 = 200;
/// Longest part of a browser's self-description that is kept, in characters.
const USER_AGENT_MAX: usize = 300;

/// How a session's token is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// As a cookie, by the console.
    Cookie,
    /// As `Authorization: Bearer`, by programs.
    Token,
    /// Not at all: the SSH connection that began it stands for it.
    Ssh,
}

impl SessionKind {
    /// Returns the word stored in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cookie => "cookie",
            Self::Token => "token",
            Self::Ssh => "ssh",
        }
    }
}

/// A session that was just begun; the token is shown this once and only its hash is stored.
#[derive(Debug)]
pub struct Begun {
    /// Which.
    pub id: Uuid,
    /// What the client sends from now on.
    pub token: Secret,
    /// When it ends at the latest.
    pub expires_at: UnixMillis,
}

/// Where a session comes from, for its owner to recognise.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The client's address.
    pub remote_address: &'a str,
    /// What the client says it is.
    pub user_agent: &'a str,
    /// The SSH key it was begun with; the session ends with the key.
    pub ssh_key: Option<Uuid>,
}

/// A session as its owner recognises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Which.
    pub id: Uuid,
    /// The word of its [`SessionKind`].
    pub kind: String,
    /// Where it was begun from.
    pub remote_address: String,
    /// What the client said it was.
    pub user_agent: String,
    /// When it was begun.
    pub created_at: UnixMillis,
    /// When it was used last, to the minute.
    pub last_used_at: UnixMillis,
    /// When it ends at the latest.
    pub expires_at: UnixMillis,
}

row! {
    struct IdRow { id: Uuid }
}

row! {
    struct InfoRow {
        id: Uuid,
        kind: String,
        remote_address: String,
        user_agent: String,
        created_at: i64,
        last_used_at: i64,
        expires_at: i64,
    }
}

impl From<InfoRow> for SessionInfo {
    fn from(row: InfoRow) -> Self {
        Self {
            id: row.id,
            kind: row.kind,
            remote_address: row.remote_address,
            user_agent: row.user_agent,
            created_at: UnixMillis(row.created_at),
            last_used_at: UnixMillis(row.last_used_at),
            expires_at: UnixMillis(row.expires_at),
        }
    }
}

/// Returns one page of an account's sessions that live, and how many there are on all pages.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn page(
    db: &Db,
    rules: SessionRules,
    user: UserId,
    now: UnixMillis,
    paging: &Paging,
) -> Result<(Vec<SessionInfo>, i64), DbError> {
    let live = " from sessions where user_id = $1 and expires_at > $2 and last_used_at > $3";
    let args = args![user, now, before(now, rules.idle)];
    let total = db.number(&format!("select count(*){live}"), args.clone()).await?;
    let columns = "id, kind, remote_address, user_agent, created_at, last_used_at, expires_at";
    let sql = format!("select {columns}{live}{}", paging.sql());
    let rows: Vec<InfoRow> = db.all(&sql, args).await?;
    Ok((rows.into_iter().map(SessionInfo::from).collect(), total))
}

/// Begins a session of `user` and removes those of the account that have ended.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn begin(
    tx: &mut Tx,
    rules: SessionRules,
    user: UserId,
    kind: SessionKind,
    origin: Origin<'_>,
    now: UnixMillis,
) -> Result<Begun, DbError> {
    const INSERT: &str = "insert into sessions (id, user_id, token_hash, kind, remote_address, \
         user_agent, created_at, last_used_at, expires_at, ssh_key_id) \
         values ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9)";
    make_room(tx, rules, user, now).await?;
    let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
    rand::rng().fill_bytes(bytes.as_mut());
    let token = Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()));
    let expires_at = now.plus(rules.absolute);
    let user_agent: String = origin.user_agent.chars().take(USER_AGENT_MAX).collect();
    let hash = token_hash(token.expose());
    let (id, address) = (Uuid::now_v7(), origin.remote_address);
    let kind = kind.as_str();
    let values = args![id, user, hash, kind, address, user_agent, now, expires_at, origin.ssh_key];
    tx.run(INSERT, values).await?;
    Ok(Begun { id, token, expires_at })
}

async fn make_room(
    tx: &mut Tx,
    rules: SessionRules,
    user: UserId,
    now: UnixMillis,
) -> Result<(), DbError> {
    let ended =
        "delete from sessions where user_id = $1 and (expires_at <= $2 or last_used_at <= $3)";
    tx.run(ended, args![user, now, before(now, rules.idle)]).await?;
    let sql = format!(
        "select id from sessions where user_id = $1 order by last_used_at desc, id desc \
         limit 1000 offset {}",
        SESSIONS_MAX - 1
    );
    for row in tx.all::<IdRow>(&sql, args![user]).await? {
        tx.run("delete from sessions where id = $1", args![row.id]).await?;
    }
    Ok(())
}

/// Ends one session.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn end(tx: &mut Tx, id: Uuid) -> Result<(), DbError> {
    tx.run("delete from sessions where id = $1", args![id]).await.map(|_| ())
}

/// Ends one session of `user`; returns whether there was one.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn end_of(tx: &mut Tx, user: UserId, id: Uuid) -> Result<bool, DbError> {
    let sql = "delete from sessions where id = $1 and user_id = $2";
    Ok(tx.run(sql, args![id, user]).await? > 0)
}

/// Ends every session of `user` but `except` and returns how many.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn end_all(tx: &mut Tx, user: UserId, except: Option<Uuid>) -> Result<u64, DbError> {
    match except {
        Some(kept) => {
            let sql = "delete from sessions where user_id = $1 and id <> $2";
            tx.run(sql, args![user, kept]).await
        }
        None => tx.run("delete from sessions where user_id = $1", args![user]).await,
    }
}

/// Removes every session that has ended and returns how many; a timer calls it.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn forget_ended(db: &Db, rules: SessionRules, now: UnixMillis) -> Result<u64, DbError> {
    let sql = "delete from sessions where expires_at <= $1 or last_used_at <= $2";
    db.run(sql, args![now, before(now, rules.idle)]).await
}

fn before(now: UnixMillis, by: Duration) -> i64 {
    now.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
}

//! SQL of the table `terminals`.

use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, TerminalId, UserId};
use tianqi_common::wire::stream::{Shell, TERMINAL_KEPT_S};
use uuid::Uuid;

use super::ticket::Ticket;
use crate::core::db::{Db, DbError, Tx, args, row};
use crate::core::page::Paging;

/// How long a terminal is kept after its page has gone: as long as its agent keeps it.
pub(super) const KEPT: Duration = Duration::from_secs(TERMINAL_KEPT_S);

row! {
    struct TerminalRow {
        id: Uuid,
        instance_id: Uuid,
        user_id: Uuid,
        ticket_hash: Vec<u8>,
        attachment: Uuid,
        shell: String,
        created_at: i64,
        detached_at: Option<i64>,
    }
}

const COLUMNS: &str =
    "id, instance_id, user_id, ticket_hash, attachment, shell, created_at, detached_at";

/// A terminal that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub id: TerminalId,
    pub instance: InstanceId,
    pub user: UserId,
    /// Of the ticket that is good now.
    pub ticket_hash: Vec<u8>,
    /// Who is there, or was last.
    pub attachment: Uuid,
    pub shell: Shell,
    pub created_at: UnixMillis,
    /// Since when nobody is there.
    pub detached_at: Option<UnixMillis>,
}

/// Which terminals are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Everybody,
    User(UserId),
    Instance(InstanceId),
}

impl Kept {
    /// When it is given up if nobody comes back; nothing while somebody is there.
    pub(super) fn expires_at(&self) -> Option<UnixMillis> {
        Some(self.detached_at?.plus(KEPT))
    }

    /// Whether somebody may come back to it.
    pub(super) fn is_alive(&self, now: UnixMillis) -> bool {
        self.expires_at().is_none_or(|end| now < end)
    }
}

impl From<TerminalRow> for Kept {
    fn from(row: TerminalRow) -> Self {
        Self {
            id: TerminalId(row.id),
            instance: InstanceId(row.instance_id),
            user: UserId(row.user_id),
            ticket_hash: row.ticket_hash,
            attachment: row.attachment,
            shell: if row.shell == word(Shell::Sh) { Shell::Sh } else { Shell::Bash },
            created_at: UnixMillis(row.created_at),
            detached_at: row.detached_at.map(UnixMillis),
        }
    }
}

/// Returns the word for a shell, in the table and in answers.
pub(super) fn word(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => "bash",
        Shell::Sh => "sh",
    }
}

/// Locks an account until the transaction ends, so that two who count its terminals at once do not
/// both add the last one.
pub(super) async fn lock(tx: &mut Tx, user: UserId) -> Result<(), DbError> {
    row! { struct IdRow { #[allow(dead_code, reason = "read to lock the row")] id: Uuid } }
    let sql = "select id from users where id = $1 for update";
    tx.first::<IdRow>(sql, args![user]).await.map(|_| ())
}

/// Adds one.
pub(super) async fn insert(tx: &mut Tx, kept: &Kept) -> Result<(), DbError> {
    const SQL: &str = "insert into terminals (id, instance_id, user_id, ticket_hash, attachment, \
         shell, created_at, detached_at) values ($1, $2, $3, $4, $5, $6, $7, $8)";
    let hash = kept.ticket_hash.clone();
    let (shell, since) = (word(kept.shell), kept.detached_at);
    let Kept { id, instance, user, attachment, created_at, .. } = *kept;
    let values = args![id, instance, user, hash, attachment, shell, created_at, since];
    tx.run(SQL, values).await.map(|_| ())
}

/// Returns all terminals of an account, the one left for longest first, those in use last.
pub(super) async fn of_user(tx: &mut Tx, user: UserId) -> Result<Vec<Kept>, DbError> {
    let sql = format!("select {COLUMNS} from terminals where user_id = $1");
    let rows: Vec<TerminalRow> = tx.all(&sql, args![user]).await?;
    let mut all: Vec<Kept> = rows.into_iter().map(Kept::from).collect();
    all.sort_by_key(|kept| (kept.detached_at.is_none(), kept.detached_at, kept.id));
    Ok(all)
}

/// Finds the one that this ticket is good for.
pub(super) async fn by_ticket(db: &Db, ticket: &Ticket) -> Result<Option<Kept>, DbError> {
    let sql = format!("select {COLUMNS} from terminals where ticket_hash = $1");
    let row: Option<TerminalRow> = db.first(&sql, args![ticket.hash()]).await?;
    Ok(row.map(Kept::from))
}

/// Finds one.
pub(super) async fn get(db: &Db, id: TerminalId) -> Result<Option<Kept>, DbError> {
    let sql = format!("select {COLUMNS} from terminals where id = $1");
    let row: Option<TerminalRow> = db.first(&sql, args![id]).await?;
    Ok(row.map(Kept::from))
}

/// Returns one page of somebody's terminals in an instance that are alive, and how many there are.
pub(super) async fn page(
    db: &Db,
    (user, instance): (UserId, InstanceId),
    now: UnixMillis,
    paging: &Paging,
) -> Result<(Vec<Kept>, i64), DbError> {
    let alive = "from terminals where user_id = $1 and instance_id = $2 \
         and (detached_at is null or detached_at > $3)";
    let args = args![user, instance, before(now)];
    let total = db.number(&format!("select count(*) {alive}"), args.clone()).await?;
    let sql = format!("select {COLUMNS} {alive}{}", paging.sql());
    let rows: Vec<TerminalRow> = db.all(&sql, args).await?;
    Ok((rows.into_iter().map(Kept::from).collect(), total))
}

/// Returns those to which nobody is attached.
pub(super) async fn detached(db: &Db, of: Of) -> Result<Vec<Kept>, DbError> {
    let all = format!("select {COLUMNS} from terminals where detached_at is not null");
    let rows: Vec<TerminalRow> = match of {
        Of::Everybody => db.all(&all, args![]).await?,
        Of::User(id) => db.all(&format!("{all} and user_id = $1"), args![id]).await?,
        Of::Instance(id) => db.all(&format!("{all} and instance_id = $1"), args![id]).await?,
    };
    Ok(rows.into_iter().map(Kept::from).collect())
}

/// Exchanges the ticket and says who is there from here on. Returns whether the ticket was good
/// still: of two who come with the same one, one gets in.
pub(super) async fn attach(
    db: &Db,
    kept: &Kept,
    ticket: &Ticket,
    attachment: Uuid,
) -> Result<bool, DbError> {
    const SQL: &str = "update terminals set ticket_hash = $1, attachment = $2, \
         detached_at = null where id = $3 and ticket_hash = $4";
    let values = args![ticket.hash(), attachment, kept.id, kept.ticket_hash.clone()];
    Ok(db.run(SQL, values).await? > 0)
}

/// Makes the ticket good again that was taken in vain, because the node could not be reached.
pub(super) async fn put_back(
    db: &Db,
    kept: &Kept,
    attachment: Uuid,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update terminals set ticket_hash = $1, attachment = $2, \
         detached_at = $3 where id = $4 and attachment = $5";
    let since = kept.detached_at.unwrap_or(now);
    let values = args![kept.ticket_hash.clone(), kept.attachment, since, kept.id, attachment];
    db.run(SQL, values).await.map(|_| ())
}

/// Notes that who held `attachment` has gone; changes nothing when somebody else is there.
pub(super) async fn detach(
    db: &Db,
    id: TerminalId,
    attachment: Uuid,
    now: UnixMillis,
) -> Result<(), DbError> {
    let sql = "update terminals set detached_at = $1 where id = $2 and attachment = $3";
    db.run(sql, args![now, id, attachment]).await.map(|_| ())
}

/// Notes that everybody has gone: a controller that starts has no terminal open.
pub(super) async fn detach_all(db: &Db, now: UnixMillis) -> Result<u64, DbError> {
    db.run("update terminals set detached_at = $1 where detached_at is null", args![now]).await
}

/// Returns how many have somebody attached to them.
pub(super) async fn attached(db: &Db) -> Result<i64, DbError> {
    db.number("select count(*) from terminals where detached_at is null", args![]).await
}

/// Forgets one; nobody comes back to it.
pub(super) async fn forget(db: &Db, id: TerminalId) -> Result<(), DbError> {
    db.run(FORGET, args![id]).await.map(|_| ())
}

/// Forgets one as part of something else. Returns whether it was there.
pub(super) async fn remove(tx: &mut Tx, id: TerminalId) -> Result<bool, DbError> {
    Ok(tx.run(FORGET, args![id]).await? > 0)
}

const FORGET: &str = "delete from terminals where id = $1";

fn before(now: UnixMillis) -> i64 {
    now.0.saturating_sub(i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX))
}

//! SQL of the chain.

use uuid::Uuid;

use crate::core::db::{Db, DbError, Engine, Tx, args, row};

row! {
    /// A row of the audit.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct EventRow {
        pub id: Uuid,
        pub at: i64,
        pub actor_id: Option<Uuid>,
        pub actor_name: String,
        pub actor_kind: String,
        pub action: String,
        pub target_kind: String,
        pub target_id: String,
        pub outcome: String,
        pub detail: String,
        pub remote_address: String,
        pub request_id: String,
        pub via: String,
    }
}

const EVENT: &str = "e.id, e.at, e.actor_id, e.actor_name, e.actor_kind, e.action, e.target_kind, \
     e.target_id, e.outcome, e.detail, e.remote_address, e.request_id, e.via";

row! {
    /// A link with its row, as far as that is there.
    #[derive(Clone, Debug)]
    pub(super) struct LinkRow {
        pub seq: i64,
        pub event_id: Uuid,
        pub sealed_at: i64,
        pub mac: Vec<u8>,
        pub at: Option<i64>,
        pub actor_id: Option<Uuid>,
        pub actor_name: Option<String>,
        pub actor_kind: Option<String>,
        pub action: Option<String>,
        pub target_kind: Option<String>,
        pub target_id: Option<String>,
        pub outcome: Option<String>,
        pub detail: Option<String>,
        pub remote_address: Option<String>,
        pub request_id: Option<String>,
        pub via: Option<String>,
    }
}

impl LinkRow {
    /// Returns the row, if it is there.
    pub(super) fn event(&self) -> Option<EventRow> {
        Some(EventRow {
            id: self.event_id,
            at: self.at?,
            actor_id: self.actor_id,
            actor_name: self.actor_name.clone()?,
            actor_kind: self.actor_kind.clone()?,
            action: self.action.clone()?,
            target_kind: self.target_kind.clone()?,
            target_id: self.target_id.clone()?,
            outcome: self.outcome.clone()?,
            detail: self.detail.clone()?,
            remote_address: self.remote_address.clone()?,
            request_id: self.request_id.clone()?,
            via: self.via.clone()?,
        })
    }
}

row! {
    /// The end of the chain.
    #[derive(Clone, Debug)]
    pub(super) struct LastRow { pub seq: i64, pub sealed_at: i64, pub mac: Vec<u8> }
}

row! {
    /// The last link that retention removed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct CheckpointRow {
        pub seq: i64,
        pub mac: Vec<u8>,
        pub made_at: i64,
        pub signature: Vec<u8>,
    }
}

row! {
    struct KeyRow { sealed_key: Vec<u8> }
}

row! {
    struct MacRow { mac: Vec<u8> }
}

/// A link that is to be written.
#[derive(Clone, Debug)]
pub(super) struct NewLink {
    pub seq: i64,
    pub event_id: Uuid,
    pub sealed_at: i64,
    pub mac: Vec<u8>,
}

/// Returns the key of the chain, sealed, if there is one.
pub(super) async fn sealed_key(db: &Db, id: Uuid) -> Result<Option<Vec<u8>>, DbError> {
    let sql = "select sealed_key from audit_keys where id = $1";
    Ok(db.first::<KeyRow>(sql, args![id]).await?.map(|row| row.sealed_key))
}

pub(super) async fn insert_key(
    db: &Db,
    id: Uuid,
    sealed: Vec<u8>,
    now: i64,
) -> Result<(), DbError> {
    let sql = "insert into audit_keys (id, sealed_key, created_at) values ($1, $2, $3)";
    db.run(sql, args![id, sealed, now]).await.map(|_| ())
}

/// Returns the end of the chain; nothing when no link is there.
pub(super) async fn last(db: &Db) -> Result<Option<LastRow>, DbError> {
    let sql = "select seq, sealed_at, mac from audit_seals order by seq desc limit 1";
    db.first(sql, args![]).await
}

/// Returns the code of the link `seq`, if it is there.
pub(super) async fn mac_at(db: &Db, seq: i64) -> Result<Option<Vec<u8>>, DbError> {
    let sql = "select mac from audit_seals where seq = $1";
    Ok(db.first::<MacRow>(sql, args![seq]).await?.map(|row| row.mac))
}

/// Returns the newest checkpoint, if retention has removed anything.
pub(super) async fn checkpoint(db: &Db) -> Result<Option<CheckpointRow>, DbError> {
    let sql =
        "select seq, mac, made_at, signature from audit_checkpoints order by seq desc limit 1";
    db.first(sql, args![]).await
}

/// Returns committed rows from `since` on that have no link yet, in the order in which they are to
/// be linked.
pub(super) async fn unsealed(
    db: &Db,
    since: Option<i64>,
    limit: usize,
) -> Result<Vec<EventRow>, DbError> {
    let sql = format!(
        "select {EVENT} from audit_events e where e.at >= $1 and {UNSEALED} \
         order by e.at, e.id limit {limit}"
    );
    db.all(&sql, args![since.unwrap_or(i64::MIN)]).await
}

const UNSEALED: &str = "not exists (select 1 from audit_seals s where s.event_id = e.id)";

/// Returns how many rows from `since` on have no link yet.
pub(super) async fn count_unsealed(db: &Db, since: i64) -> Result<i64, DbError> {
    let sql = format!("select count(*) from audit_events e where e.at >= $1 and {UNSEALED}");
    db.number(&sql, args![since]).await
}

/// Returns rows older than `since` that have no link, oldest first.
pub(super) async fn unsealed_before(
    db: &Db,
    since: i64,
    limit: usize,
) -> Result<Vec<EventRow>, DbError> {
    let sql = format!(
        "select {EVENT} from audit_events e where e.at < $1 and {UNSEALED} \
         order by e.at, e.id limit {limit}"
    );
    db.all(&sql, args![since]).await
}

/// Adds links, all or none.
pub(super) async fn insert_links(db: &Db, links: &[NewLink]) -> Result<(), DbError> {
    let mut rows = Vec::with_capacity(links.len());
    let mut args = Vec::with_capacity(links.len() * 4);
    for (i, link) in links.iter().enumerate() {
        let n = i * 4;
        rows.push(format!("(${}, ${}, ${}, ${})", n + 1, n + 2, n + 3, n + 4));
        args.extend(args![link.seq, link.event_id, link.sealed_at, link.mac.clone()]);
    }
    const INSERT: &str = "insert into audit_seals (seq, event_id, sealed_at, mac) values ";
    db.run(&format!("{INSERT}{}", rows.join(", ")), args).await.map(|_| ())
}

/// Makes sure that links which were written outlive a power cut, as SQLite alone does not promise by
/// itself (`synchronous = normal`): otherwise the head outside the database could know of links that
/// the database forgot, which looks as if somebody had cut them.
pub(super) async fn make_durable(db: &Db) -> Result<(), DbError> {
    if db.engine() == Engine::Sqlite {
        db.run("pragma wal_checkpoint(passive)", args![]).await?;
    }
    Ok(())
}

/// Returns links after `seq` in their order, with their rows.
pub(super) async fn links_after(db: &Db, seq: i64, limit: usize) -> Result<Vec<LinkRow>, DbError> {
    let sql = format!(
        "select s.seq, s.event_id, s.sealed_at, s.mac, e.at, e.actor_id, e.actor_name, \
         e.actor_kind, e.action, e.target_kind, e.target_id, e.outcome, e.detail, \
         e.remote_address, e.request_id, e.via \
         from audit_seals s left join audit_events e on e.id = s.event_id \
         where s.seq > $1 order by s.seq limit {limit}"
    );
    db.all(&sql, args![seq]).await
}

/// Removes the links up to `checkpoint` with their rows, and leaves the checkpoint in their place.
/// Nothing else removes rows of the audit.
pub(super) async fn remove_front(tx: &mut Tx, checkpoint: CheckpointRow) -> Result<(), DbError> {
    let CheckpointRow { seq, mac, made_at, signature } = checkpoint;
    const ROWS: &str = "delete from audit_events \
         where id in (select event_id from audit_seals where seq <= $1)";
    tx.run(ROWS, args![seq]).await?;
    tx.run("delete from audit_seals where seq <= $1", args![seq]).await?;
    tx.run("delete from audit_checkpoints where seq <= $1", args![seq]).await?;
    const CHECKPOINT: &str = "insert into audit_checkpoints (seq, mac, made_at, signature) \
         values ($1, $2, $3, $4)";
    tx.run(CHECKPOINT, args![seq, mac, made_at, signature]).await.map(|_| ())
}

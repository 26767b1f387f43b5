//! Reading what belongs to a sample. The tables are of other rooms.

use std::collections::BTreeSet;

use serde::Deserialize;
use tianqi_common::id::{InstanceId, NodeId};
use uuid::Uuid;

use crate::core::db::{Db, DbError, args, row};

row! {
    struct IdRow { id: Uuid }
}

row! {
    struct StandingRow { phase: String, reason: String, spec: String }
}

/// What is known of an instance beside its samples.
#[derive(Debug)]
pub(super) struct Standing {
    /// Its phase, as a word.
    pub phase: String,
    /// Why, in one sentence; may be empty.
    pub reason: String,
    /// Thousandths of a core that it may use; nothing when that cannot be told.
    pub cpu_limit_millicores: Option<u64>,
}

/// The part of the size, kept with an instance, that is read here.
#[derive(Deserialize)]
struct Size {
    cpu_millicores: u64,
}

/// Returns every node.
pub(super) async fn nodes(db: &Db) -> Result<BTreeSet<NodeId>, DbError> {
    let rows: Vec<IdRow> = db.all("select id from nodes", args![]).await?;
    Ok(rows.into_iter().map(|row| NodeId(row.id)).collect())
}

/// Returns what is known of an instance.
pub(super) async fn standing(db: &Db, id: InstanceId) -> Result<Option<Standing>, DbError> {
    const SQL: &str =
        "select phase, reason, spec from instances where id = $1 and deleted_at is null";
    let row: Option<StandingRow> = db.first(SQL, args![id]).await?;
    Ok(row.map(|row| Standing {
        phase: row.phase,
        reason: row.reason,
        cpu_limit_millicores: serde_json::from_str::<Size>(&row.spec)
            .ok()
            .map(|size| size.cpu_millicores),
    }))
}

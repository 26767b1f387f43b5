//! Whose instances are.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, UserId};
use uuid::Uuid;

use crate::core::db::{DbError, Tx, args, row};

row! {
    struct NamedRow { id: Uuid, name: String }
}

/// Returns id and name of every live instance of `owner`, oldest first, locked until the transaction
/// ends.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn live_of(tx: &mut Tx, owner: UserId) -> Result<Vec<(InstanceId, String)>, DbError> {
    let sql = "select id, name from instances where owner_id = $1 and deleted_at is null \
         order by created_at, id for update";
    let rows: Vec<NamedRow> = tx.all(sql, args![owner]).await?;
    Ok(rows.into_iter().map(|row| (InstanceId(row.id), row.name)).collect())
}

/// Makes a live instance somebody's, under a name that is free there.
///
/// # Errors
///
/// [`DbError::Duplicate`] when the owner has a live instance of this name.
pub async fn give(
    tx: &mut Tx,
    id: InstanceId,
    owner: UserId,
    name: &str,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update instances set owner_id = $1, name = $2, live_name = $2, \
         updated_at = $3 where id = $4 and deleted_at is null";
    tx.run(SQL, args![owner, name, now, id]).await.map(|_| ())
}

//! The epoch: orders desired states before their generation, and is raised by a restore.

use tianqi_common::clock::UnixMillis;

use super::db::{Db, DbError, args, row};

const NAME: &str = "epoch";

row! {
    struct MetaRow { value: String }
}

/// Returns the epoch; 0 before the first restore.
///
/// # Errors
///
/// [`DbError`] when the engine refuses or the stored value is not a number.
pub async fn current(db: &Db) -> Result<u64, DbError> {
    let sql = "select value from meta where name = $1";
    let row: Option<MetaRow> = db.first(sql, args![NAME]).await?;
    let Some(row) = row else { return Ok(0) };
    row.value.parse().map_err(|_| DbError::Corrupt {
        column: "meta.value",
        problem: format!("epoch {:?} is not a number", row.value),
    })
}

/// Raises the epoch above every one there was and returns it.
///
/// It becomes the time in seconds, because a database restored from an old copy does not know how
/// often it was restored before.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn raise(db: &Db, now: UnixMillis) -> Result<u64, DbError> {
    let seconds = u64::try_from(now.0 / 1_000).unwrap_or(0);
    let raised = seconds.max(current(db).await?.saturating_add(1));
    let mut tx = db.begin().await?;
    tx.run("delete from meta where name = $1", args![NAME]).await?;
    let sql = "insert into meta (name, value) values ($1, $2)";
    tx.run(sql, args![NAME, raised.to_string()]).await?;
    tx.commit().await?;
    Ok(raised)
}

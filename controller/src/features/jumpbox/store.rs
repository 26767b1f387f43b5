//! What the jumpbox reads of instances; it writes nothing.

use tianqi_common::id::{InstanceId, UserId};
use uuid::Uuid;

use crate::core::db::{Db, DbError, args, row};

/// Most rows of a menu. Who has more finds them by name.
const ROWS_MAX: usize = 2_000;

row! {
    /// A row of the menu.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) struct MenuRow {
        pub(super) id: Uuid,
        pub(super) name: String,
        pub(super) container_id: Option<String>,
        pub(super) node: Option<String>,
        pub(super) phase: String,
        pub(super) owner: String,
    }
}

/// Returns the instances of `owner`, or everybody's, by name.
pub(super) async fn menu(db: &Db, owner: Option<UserId>) -> Result<Vec<MenuRow>, DbError> {
    let (narrowed, args) = match owner {
        Some(owner) => (" and i.owner_id = $1", args![owner]),
        None => ("", args![]),
    };
    let sql = format!(
        "select i.id, i.name, i.container_id, n.name as node, i.phase, u.name as owner \
         from instances i join users u on u.id = i.owner_id left join nodes n on n.id = i.node_id \
         where i.deleted_at is null{narrowed} order by u.name, i.name, i.id limit {ROWS_MAX}"
    );
    db.all(&sql, args).await
}

row! {
    struct IdRow { id: Uuid }
}

/// Finds the instance that `owner` calls `name`.
pub(super) async fn own(db: &Db, owner: UserId, name: &str) -> Result<Option<InstanceId>, DbError> {
    let sql = "select id from instances where owner_id = $1 and live_name = $2";
    let row: Option<IdRow> = db.first(sql, args![owner, name]).await?;
    Ok(row.map(|row| InstanceId(row.id)))
}

/// Finds the instance that the account `owner` calls `name`.
pub(super) async fn of(db: &Db, owner: &str, name: &str) -> Result<Option<InstanceId>, DbError> {
    let sql = "select i.id from instances i join users u on u.id = i.owner_id \
         where u.name = $1 and i.live_name = $2";
    let row: Option<IdRow> = db.first(sql, args![owner, name]).await?;
    Ok(row.map(|row| InstanceId(row.id)))
}

row! {
    struct PhaseRow { phase: String }
}

/// Returns the phase of an instance that is not deleted.
pub(super) async fn phase(db: &Db, id: InstanceId) -> Result<Option<String>, DbError> {
    let sql = "select phase from instances where id = $1 and deleted_at is null";
    let row: Option<PhaseRow> = db.first(sql, args![id]).await?;
    Ok(row.map(|row| row.phase))
}

//! SQL of the table `roles`.

use tianqi_common::clock::UnixMillis;

use crate::authz::{Role, RoleName};
use crate::core::db::{Db, DbError, Tx, args, row};

row! {
    /// A role that is stored.
    pub(super) struct RoleRow {
        pub name: String,
        pub description: String,
        pub permissions: String,
        pub created_at: i64,
        pub updated_at: i64,
    }
}

row! {
    /// How many accounts have a role.
    pub(super) struct UseRow { pub role: String, pub accounts: i64 }
}

const COLUMNS: &str = "name, description, permissions, created_at, updated_at";

/// Most roles that may be stored. They are few: lists read all of them.
pub(super) const ROLES_MAX: i64 = 200;

/// Returns every stored role, by name.
pub(super) async fn all(db: &Db) -> Result<Vec<RoleRow>, DbError> {
    db.all(&format!("select {COLUMNS} from roles order by name"), args![]).await
}

/// Returns how many accounts have each role that somebody has.
pub(super) async fn uses(db: &Db) -> Result<Vec<UseRow>, DbError> {
    db.all("select role, count(*) as accounts from users group by role", args![]).await
}

/// Returns how many accounts have a role.
pub(super) async fn accounts(tx: &mut Tx, name: &RoleName) -> Result<i64, DbError> {
    tx.number("select count(*) from users where role = $1", args![name.as_str()]).await
}

/// Returns how many roles are stored.
pub(super) async fn count(tx: &mut Tx) -> Result<i64, DbError> {
    tx.number("select count(*) from roles", args![]).await
}

/// Returns one stored role, locked until the transaction ends.
pub(super) async fn lock(tx: &mut Tx, name: &RoleName) -> Result<Option<RoleRow>, DbError> {
    let sql = format!("select {COLUMNS} from roles where name = $1 for update");
    tx.first(&sql, args![name.as_str()]).await
}

fn written(role: &Role) -> String {
    serde_json::to_string(&role.allowances()).unwrap_or_default()
}

/// Adds a role.
pub(super) async fn insert(
    tx: &mut Tx,
    role: &Role,
    description: &str,
    now: UnixMillis,
) -> Result<(), DbError> {
    let sql = format!("insert into roles ({COLUMNS}) values ($1, $2, $3, $4, $4)");
    let values = args![role.name().as_str(), description, written(role), now];
    tx.run(&sql, values).await.map(|_| ())
}

/// Changes a role.
pub(super) async fn update(
    tx: &mut Tx,
    role: &Role,
    description: &str,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str =
        "update roles set description = $1, permissions = $2, updated_at = $3 where name = $4";
    let values = args![description, written(role), now, role.name().as_str()];
    tx.run(SQL, values).await.map(|_| ())
}

/// Removes a role.
pub(super) async fn delete(tx: &mut Tx, name: &RoleName) -> Result<(), DbError> {
    tx.run("delete from roles where name = $1", args![name.as_str()]).await.map(|_| ())
}

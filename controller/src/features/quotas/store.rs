//! SQL of the table `quotas`; what applies to an account is read by `authz::quota`.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use tianqi_scheduler::quota::Settings;
use uuid::Uuid;

use super::model::QuotaQuery;
use crate::authz::RoleName;
use crate::authz::quota::{QuotaRow, setting, stored};
use crate::core::db::{Db, DbError, Filter, Source, Tx, Value, args, row};
use crate::core::page::Paging;

/// Whose quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// One account's.
    User(UserId),
    /// That of every account of a role.
    Role(RoleName),
}

row! {
    pub(super) struct ListRow {
        pub user_id: Option<Uuid>,
        pub user_name: Option<String>,
        pub role: Option<String>,
        pub instances: Option<i64>,
        pub gpus: Option<i64>,
        pub gpu_memory_mib: Option<i64>,
        pub cpu_millicores: Option<i64>,
        pub memory_mib: Option<i64>,
        pub disk_gib: Option<i64>,
        pub updated_at: i64,
    }
}

impl ListRow {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            instances: setting(self.instances),
            gpus: setting(self.gpus),
            gpu_memory_mib: setting(self.gpu_memory_mib),
            cpu_millicores: setting(self.cpu_millicores),
            memory_mib: setting(self.memory_mib),
            disk_gib: setting(self.disk_gib),
        }
    }
}

/// Returns one page of quotas and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &QuotaQuery,
    paging: &Paging,
) -> Result<(Vec<ListRow>, i64), DbError> {
    const FROM: &str = "from quotas q left join users u on u.id = q.user_id";
    let filter = Filter::new().contains("coalesce(u.name, q.role)", query.name.as_deref());
    let (condition, args) = filter.build();
    let total = db.number(&format!("select count(*) {FROM}{condition}"), args.clone()).await?;
    let sql = format!(
        "select q.user_id, u.name as user_name, q.role, q.instances, q.gpus, q.gpu_memory_mib, \
         q.cpu_millicores, q.memory_mib, q.disk_gib, q.updated_at {FROM}{condition}{}",
        paging.sql()
    );
    Ok((db.all(&sql, args).await?, total))
}

/// Returns what one row says, if there is one.
pub(super) async fn find(
    mut from: impl Source,
    whose: &Whose,
) -> Result<Option<Settings>, DbError> {
    let (column, key) = key(whose);
    let sql = format!(
        "select user_id, instances, gpus, gpu_memory_mib, cpu_millicores, memory_mib, disk_gib \
         from quotas where {column} = $1"
    );
    let rows: Vec<QuotaRow> = from.all(&sql, vec![key]).await?;
    Ok(rows.first().map(QuotaRow::settings))
}

fn key(whose: &Whose) -> (&'static str, Value) {
    match whose {
        Whose::User(id) => ("user_id", Value::from(*id)),
        Whose::Role(name) => ("role", Value::from(name.as_str())),
    }
}

/// Adds a row.
pub(super) async fn insert(
    tx: &mut Tx,
    whose: &Whose,
    settings: &Settings,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "insert into quotas (id, user_id, role, custom_role, instances, gpus, \
         gpu_memory_mib, cpu_millicores, memory_mib, disk_gib, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)";
    let (user, role) = match whose {
        Whose::User(id) => (Some(*id), None),
        Whose::Role(name) => (None, Some(name)),
    };
    let custom = role.filter(|name| !name.is_built_in());
    let values = args![
        Uuid::now_v7(),
        user,
        role.map(RoleName::as_str),
        custom.map(RoleName::as_str),
        stored(settings.instances),
        stored(settings.gpus),
        stored(settings.gpu_memory_mib),
        stored(settings.cpu_millicores),
        stored(settings.memory_mib),
        stored(settings.disk_gib),
        now,
    ];
    tx.run(SQL, values).await.map(|_| ())
}

/// Replaces what a row says.
pub(super) async fn update(
    tx: &mut Tx,
    whose: &Whose,
    settings: &Settings,
    now: UnixMillis,
) -> Result<(), DbError> {
    let (column, key) = key(whose);
    let sql = format!(
        "update quotas set instances = $1, gpus = $2, gpu_memory_mib = $3, cpu_millicores = $4, \
         memory_mib = $5, disk_gib = $6, updated_at = $7 where {column} = $8"
    );
    let mut values = args![
        stored(settings.instances),
        stored(settings.gpus),
        stored(settings.gpu_memory_mib),
        stored(settings.cpu_millicores),
        stored(settings.memory_mib),
        stored(settings.disk_gib),
        now,
    ];
    values.push(key);
    tx.run(&sql, values).await.map(|_| ())
}

/// Removes a row.
pub(super) async fn delete(tx: &mut Tx, whose: &Whose) -> Result<(), DbError> {
    let (column, key) = key(whose);
    tx.run(&format!("delete from quotas where {column} = $1"), vec![key]).await.map(|_| ())
}

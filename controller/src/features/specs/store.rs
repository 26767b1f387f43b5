//! SQL of the table `specs`.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::SpecId;
use uuid::Uuid;

use super::model::{Spec, SpecFields, SpecQuery};
use crate::core::db::{Db, DbError, Filter, Tx, Value, args, row};
use crate::core::number::{CpuCores, Money};
use crate::core::page::Paging;
use crate::core::timestamp::Timestamp;

row! {
    pub(super) struct SpecRow {
        pub id: Uuid,
        pub name: String,
        pub gpu_model: Option<String>,
        pub gpu_count: i64,
        pub gpu_memory_mib: Option<i64>,
        pub gpu_core_percent: Option<i64>,
        pub slicing: bool,
        pub cpu_millicores: i64,
        pub memory_mib: i64,
        pub system_disk_gib: i64,
        pub data_disk_gib: i64,
        pub price_per_hour_micros: i64,
        pub listed: bool,
        pub remark: String,
        pub created_at: i64,
        pub updated_at: i64,
    }
}

const COLUMNS: &str = "id, name, gpu_model, gpu_count, gpu_memory_mib, gpu_core_percent, slicing, \
     cpu_millicores, memory_mib, system_disk_gib, data_disk_gib, price_per_hour_micros, listed, \
     remark, created_at, updated_at";

impl From<SpecRow> for Spec {
    /// Every number was checked before it was stored, so none is out of its range.
    fn from(row: SpecRow) -> Self {
        let number = |stored: i64| u64::try_from(stored).unwrap_or(0);
        let small = |stored: i64| u32::try_from(stored).unwrap_or(0);
        Self {
            id: row.id,
            fields: SpecFields {
                name: row.name,
                gpu_model: row.gpu_model,
                gpu_count: small(row.gpu_count),
                gpu_memory_mib: row.gpu_memory_mib.map(number),
                gpu_core_percent: row.gpu_core_percent.map(small),
                slicing: row.slicing,
                cpu_cores: CpuCores::from_stored(row.cpu_millicores),
                memory_mib: number(row.memory_mib),
                system_disk_gib: number(row.system_disk_gib),
                data_disk_gib: number(row.data_disk_gib),
                price_per_hour: Money::from_micros(row.price_per_hour_micros),
                listed: row.listed,
                remark: row.remark,
            },
            created_at: Timestamp::from_stored(row.created_at),
            updated_at: Timestamp::from_stored(row.updated_at),
        }
    }
}

/// Returns one page of specs and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &SpecQuery,
    listed_only: bool,
    paging: &Paging,
) -> Result<(Vec<SpecRow>, i64), DbError> {
    let (condition, args) = Filter::new()
        .contains("name", query.name.as_deref())
        .contains("gpu_model", query.gpu_model.as_deref())
        .equals("listed", query.listed)
        .equals("listed", listed_only.then_some(true))
        .equals("slicing", query.slicing)
        .compare("created_at", ">=", query.created_after)
        .compare("created_at", "<", query.created_before)
        .build();
    let total = db.number(&format!("select count(*) from specs{condition}"), args.clone()).await?;
    let sql = format!("select {COLUMNS} from specs{condition}{}", paging.sql());
    Ok((db.all(&sql, args).await?, total))
}

/// Returns one spec.
pub(super) async fn get(db: &Db, id: SpecId) -> Result<Option<SpecRow>, DbError> {
    db.first(&format!("select {COLUMNS} from specs where id = $1"), args![id]).await
}

/// Returns one spec, locked until the transaction ends.
pub(super) async fn lock(tx: &mut Tx, id: SpecId) -> Result<Option<SpecRow>, DbError> {
    tx.first(&format!("select {COLUMNS} from specs where id = $1 for update"), args![id]).await
}

/// The values of [`COLUMNS`] up to `remark`, and the time.
fn values(id: SpecId, fields: &SpecFields, now: UnixMillis) -> Vec<Value> {
    args![
        id,
        &fields.name,
        fields.gpu_model.clone(),
        fields.gpu_count,
        fields.gpu_memory_mib,
        fields.gpu_core_percent,
        fields.slicing,
        fields.cpu_cores.0.0,
        fields.memory_mib,
        fields.system_disk_gib,
        fields.data_disk_gib,
        fields.price_per_hour.micros(),
        fields.listed,
        &fields.remark,
        now,
    ]
}

/// Adds a spec.
pub(super) async fn insert(
    tx: &mut Tx,
    id: SpecId,
    fields: &SpecFields,
    now: UnixMillis,
) -> Result<(), DbError> {
    let sql = format!(
        "insert into specs ({COLUMNS}) values \
         ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15)"
    );
    tx.run(&sql, values(id, fields, now)).await.map(|_| ())
}

/// Changes a spec.
pub(super) async fn update(
    tx: &mut Tx,
    id: SpecId,
    fields: &SpecFields,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update specs set name = $2, gpu_model = $3, gpu_count = $4, \
         gpu_memory_mib = $5, gpu_core_percent = $6, slicing = $7, cpu_millicores = $8, \
         memory_mib = $9, system_disk_gib = $10, data_disk_gib = $11, price_per_hour_micros = $12, \
         listed = $13, remark = $14, updated_at = $15 where id = $1";
    tx.run(SQL, values(id, fields, now)).await.map(|_| ())
}

/// Returns how many living instances were made from a spec.
pub(super) async fn uses(tx: &mut Tx, id: SpecId) -> Result<i64, DbError> {
    let sql = "select count(*) from instances where spec_id = $1 and deleted_at is null";
    tx.number(sql, args![id]).await
}

/// Removes a spec.
pub(super) async fn delete(tx: &mut Tx, id: SpecId) -> Result<(), DbError> {
    tx.run("delete from specs where id = $1", args![id]).await.map(|_| ())
}

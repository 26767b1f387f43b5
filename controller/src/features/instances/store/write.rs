//! Writing instances and their history.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use uuid::Uuid;

use super::{Instance, release_all};
use crate::core::db::{DbError, Tx, Value, args};
use crate::features::instances::model::policy_word;

/// Writes a new instance.
///
/// # Errors
///
/// [`DbError::Duplicate`] when the owner has a live instance of this name.
pub async fn insert(tx: &mut Tx, it: &Instance) -> Result<(), DbError> {
    const SQL: &str = "insert into instances (id, owner_id, name, live_name, image_id, spec_id, \
         requested_node_id, image_address, spec, environment, restart_policy, priority, remark, \
         desired, generation, phase, reason_code, reason, reason_detail, observed_generation, \
         container_name, limits, gpus, fail_if_full, restarts, queued_at, created_at, updated_at) \
         values ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, \
         $18, 0, $19, $20, $21, $22, 0, $23, $24, $24)";
    let values = args![
        it.id,
        it.owner,
        it.name.as_str(),
        it.image_id,
        it.spec_id,
        it.requested_node,
        it.image_address.as_str(),
        json(&it.spec),
        json(&it.env),
        policy_word(it.policy),
        it.priority,
        it.remark.as_str(),
        it.state.desired.as_str(),
        it.generation,
        it.state.phase.as_str(),
        it.why.code.as_str(),
        it.why.text.as_str(),
        it.why.detail.as_str(),
        it.container_name.as_str(),
        it.limits.as_str(),
        json(&it.gpus),
        it.fail_if_full,
        it.queued_at,
        it.created_at,
    ];
    tx.run(SQL, values).await.map(|_| ())
}

fn json(value: &impl serde::Serialize) -> String {
    // Plain structs of text and numbers always serialise.
    serde_json::to_string(value).unwrap_or_default()
}

/// Writes what changed from `before` to `after`, unless somebody else changed the row's state
/// meanwhile. Returns whether it was written.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn save(
    tx: &mut Tx,
    before: &Instance,
    after: &Instance,
    now: UnixMillis,
) -> Result<bool, DbError> {
    const SQL: &str = "update instances set node_id = $1, desired = $2, generation = $3, \
         phase = $4, reason_code = $5, reason = $6, reason_detail = $7, observed_generation = $8, \
         container_id = $9, limits = $10, gpus = $11, exit_code = $12, restarts = $13, \
         queued_at = $14, started_at = $15, updated_at = $16 \
         where id = $17 and desired = $18 and phase = $19 and generation = $20 \
         and deleted_at is null";
    let values = args![
        after.node,
        after.state.desired.as_str(),
        after.generation,
        after.state.phase.as_str(),
        after.why.code.as_str(),
        after.why.text.as_str(),
        after.why.detail.as_str(),
        after.observed_generation,
        after.container_id.clone(),
        after.limits.as_str(),
        json(&after.gpus),
        after.exit_code,
        after.restarts,
        after.queued_at,
        after.started_at,
        now,
        before.id,
        before.state.desired.as_str(),
        before.state.phase.as_str(),
        before.generation,
    ];
    Ok(tx.run(SQL, values).await? > 0)
}

/// Marks an instance as gone and frees its name and everything it held.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn bury(tx: &mut Tx, id: InstanceId, now: UnixMillis) -> Result<bool, DbError> {
    const SQL: &str = "update instances set deleted_at = $1, live_name = null, desired = 'deleted', \
         phase = 'deleting', updated_at = $1 where id = $2 and deleted_at is null";
    let buried = tx.run(SQL, args![now, id]).await? > 0;
    release_all(tx, id).await?;
    Ok(buried)
}

/// Writes name and remark.
///
/// # Errors
///
/// [`DbError::Duplicate`] when the owner has a live instance of this name.
pub async fn rename(
    tx: &mut Tx,
    id: InstanceId,
    name: &str,
    remark: &str,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update instances set name = $1, live_name = $1, remark = $2, \
         updated_at = $3 where id = $4 and deleted_at is null";
    tx.run(SQL, args![name, remark, now, id]).await.map(|_| ())
}

/// Writes one line of an instance's history.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn note(
    tx: &mut Tx,
    id: InstanceId,
    now: UnixMillis,
    kind: &str,
    message: &str,
) -> Result<(), DbError> {
    const SQL: &str = "insert into instance_events (id, instance_id, at, kind, message) \
         values ($1, $2, $3, $4, $5)";
    let values: Vec<Value> = args![Uuid::now_v7(), id, now, kind, message];
    tx.run(SQL, values).await.map(|_| ())
}

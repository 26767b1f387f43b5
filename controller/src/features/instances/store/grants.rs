//! What instances hold, and the generation of what should be on each node.

use std::collections::BTreeSet;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::unit::{MemoryMib, Millicores};
use tianqi_scheduler::{Placement, Request};
use uuid::Uuid;

use super::Instance;
use crate::core::db::{Db, DbError, Tx, Value, args, row};
use crate::features::instances::fleet;

/// Writes the grants of a placement: cards, CPU and memory, and the disk of a first one.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn grant(
    tx: &mut Tx,
    it: &Instance,
    request: &Request,
    placement: &Placement,
    now: UnixMillis,
) -> Result<(), DbError> {
    let (cpu, memory) = (request.cpu, request.memory);
    const AGAIN: &str =
        "update node_grants set cpu_millicores = $1, memory_mib = $2 where instance_id = $3";
    let is_first = it.node.is_none() || tx.run(AGAIN, args![cpu.0, memory.0, it.id]).await? == 0;
    if is_first {
        insert_node_grant(tx, it, placement.node, cpu, memory, now).await?;
    }
    let (memory, cores) = placement.slice.map_or((0, 100), |slice| (slice.memory.0, slice.cores.0));
    for gpu in &placement.gpus {
        const SQL: &str = "insert into gpu_grants (instance_id, gpu_uuid, node_id, memory_mib, \
             cores, exclusive, created_at) values ($1, $2, $3, $4, $5, $6, $7)";
        let exclusive = placement.slice.is_none();
        let values = args![it.id, gpu.0.as_str(), placement.node, memory, cores, exclusive, now];
        tx.run(SQL, values).await?;
    }
    Ok(())
}

async fn insert_node_grant(
    tx: &mut Tx,
    it: &Instance,
    node: NodeId,
    cpu: Millicores,
    memory: MemoryMib,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "insert into node_grants (instance_id, node_id, cpu_millicores, memory_mib, \
         disk_gib, created_at) values ($1, $2, $3, $4, $5, $6)";
    tx.run(SQL, args![it.id, node, cpu.0, memory.0, it.disk().0, now]).await.map(|_| ())
}

/// Takes back CPU, memory and cards; the disk stays granted.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn release(tx: &mut Tx, id: InstanceId) -> Result<(), DbError> {
    tx.run("delete from gpu_grants where instance_id = $1", args![id]).await?;
    let sql = "update node_grants set cpu_millicores = 0, memory_mib = 0 where instance_id = $1";
    tx.run(sql, args![id]).await.map(|_| ())
}

/// Takes back everything that an instance holds, its disk too.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn release_all(tx: &mut Tx, id: InstanceId) -> Result<(), DbError> {
    tx.run("delete from gpu_grants where instance_id = $1", args![id]).await?;
    tx.run("delete from node_grants where instance_id = $1", args![id]).await.map(|_| ())
}

/// Locks the rows of `nodes` and marks what should be on them as changed. Returns those that exist.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn touch_nodes(tx: &mut Tx, nodes: &BTreeSet<NodeId>) -> Result<Vec<NodeId>, DbError> {
    let found = fleet::lock_nodes(tx, nodes).await?;
    if found.is_empty() {
        return Ok(found);
    }
    let ids: Vec<Value> = found.iter().map(|id| Value::from(*id)).collect();
    let list = fleet::placeholders(ids.len());
    let sql =
        format!("select node_id as id, generation from node_revisions where node_id in {list}");
    let known: Vec<GenerationRow> = tx.all(&sql, ids.clone()).await?;
    let known: BTreeSet<Uuid> = known.into_iter().map(|row| row.id).collect();
    let sql =
        format!("update node_revisions set generation = generation + 1 where node_id in {list}");
    tx.run(&sql, ids).await?;
    // Two transactions cannot both find none: the node's row is locked above.
    for node in found.iter().filter(|node| !known.contains(&node.0)) {
        let sql = "insert into node_revisions (node_id, generation) values ($1, 1)";
        tx.run(sql, args![*node]).await?;
    }
    Ok(found)
}

row! {
    struct GenerationRow { id: Uuid, generation: i64 }
}

/// Returns every node with the generation of what should be on it.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn node_generations(db: &Db) -> Result<Vec<(NodeId, u64)>, DbError> {
    const SQL: &str = "select n.id, coalesce(r.generation, 0) as generation from nodes n \
         left join node_revisions r on r.node_id = n.id";
    let rows: Vec<GenerationRow> = db.all(SQL, args![]).await?;
    Ok(rows
        .into_iter()
        .map(|row| (NodeId(row.id), u64::try_from(row.generation).unwrap_or(0)))
        .collect())
}

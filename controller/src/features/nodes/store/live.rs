//! What agents say of their nodes. One task writes these columns.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use uuid::Uuid;

use crate::core::db::{Db, DbError, Tx, args, row};

row! {
    /// What is known of a node's agent.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LiveRow {
        /// Which node.
        pub id: Uuid,
        /// Whether its agent is heard.
        pub online: bool,
        /// Why not.
        pub offline_reason: String,
        /// `connected`, `failed` or `unknown`.
        pub docker_status: String,
        /// Why not connected.
        pub docker_reason: String,
        /// Version of the agent's program.
        pub agent_program: String,
        /// Which start of the agent.
        pub boot_id: Option<Uuid>,
        /// When that start began, by the node's clock.
        pub boot_started_at: i64,
        /// The node's clock minus the controller's.
        pub clock_skew_ms: i64,
        /// Epoch of the desired state that the agent has taken in.
        pub observed_epoch: i64,
        /// Generation of the desired state that the agent has taken in.
        pub observed_generation: i64,
    }
}

const SELECT: &str = "select id, online, offline_reason, docker_status, docker_reason, \
     agent_program, boot_id, boot_started_at, clock_skew_ms, observed_epoch, observed_generation \
     from nodes";

pub(in crate::features::nodes) async fn all(db: &Db) -> Result<Vec<LiveRow>, DbError> {
    db.all(SELECT, args![]).await
}

pub(in crate::features::nodes) async fn get(
    db: &Db,
    node: NodeId,
) -> Result<Option<LiveRow>, DbError> {
    db.first(&format!("{SELECT} where id = $1"), args![node]).await
}

pub(in crate::features::nodes) async fn update(
    db: &Db,
    now: UnixMillis,
    row: &LiveRow,
    last_seen_at: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update nodes set online = $1, offline_reason = $2, docker_status = $3, \
         docker_reason = $4, agent_program = $5, boot_id = $6, boot_started_at = $7, \
         clock_skew_ms = $8, observed_epoch = $9, observed_generation = $10, last_seen_at = $11, \
         updated_at = $12 where id = $13";
    let args = args![
        row.online,
        row.offline_reason.as_str(),
        row.docker_status.as_str(),
        row.docker_reason.as_str(),
        row.agent_program.as_str(),
        row.boot_id,
        row.boot_started_at,
        row.clock_skew_ms,
        row.observed_epoch,
        row.observed_generation,
        last_seen_at,
        now,
        row.id
    ];
    db.run(SQL, args).await.map(|_| ())
}

/// Writes when some nodes were last heard; all of them now.
pub(in crate::features::nodes) async fn touch(
    db: &Db,
    now: UnixMillis,
    nodes: &[NodeId],
) -> Result<(), DbError> {
    let marks: Vec<String> = (2..=nodes.len() + 1).map(|n| format!("${n}")).collect();
    let sql = format!("update nodes set last_seen_at = $1 where id in ({})", marks.join(", "));
    let mut args = args![now];
    args.extend(nodes.iter().map(|node| (*node).into()));
    db.run(&sql, args).await.map(|_| ())
}

/// What a machine has, beside its cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// CPU.
    pub cpu_millicores: i64,
    /// Memory.
    pub memory_mib: i64,
    /// Disk that holds Docker's data.
    pub disk_gib: i64,
}

pub(in crate::features::nodes) async fn set_inventory(
    tx: &mut Tx,
    now: UnixMillis,
    node: NodeId,
    json: &str,
    totals: Totals,
) -> Result<(), DbError> {
    const SQL: &str = "update nodes set inventory = $1, cpu_millicores = $2, memory_mib = $3, \
         disk_gib = $4, updated_at = $5 where id = $6";
    let Totals { cpu_millicores, memory_mib, disk_gib } = totals;
    tx.run(SQL, args![json, cpu_millicores, memory_mib, disk_gib, now, node]).await.map(|_| ())
}

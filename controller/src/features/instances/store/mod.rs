//! SQL of `instances`, `instance_events`, `node_grants`, `gpu_grants` and `node_revisions`.

mod grants;
mod owner;
mod usage;
mod write;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId, UserId};
use tianqi_common::unit::DiskGib;
use tianqi_common::wire::desired::{GpuUuid, RestartPolicy};
use tianqi_scheduler::Request;
use uuid::Uuid;

pub use grants::{grant, node_generations, release, release_all, touch_nodes};
pub use owner::{give, live_of};
pub use usage::{Alike, alike};
pub use write::{bury, insert, note, rename, save};

use super::lifecycle::{Desired, Phase, State};
use super::model::{SpecSnapshot, policy_from_word};
use crate::core::db::{Db, DbError, args, row};

row! {
    #[derive(Clone, Debug)]
    struct InstanceRow {
        id: Uuid,
        owner_id: Uuid,
        name: String,
        image_id: Uuid,
        spec_id: Uuid,
        requested_node_id: Option<Uuid>,
        node_id: Option<Uuid>,
        image_address: String,
        spec: String,
        environment: String,
        restart_policy: String,
        priority: i64,
        remark: String,
        desired: String,
        generation: i64,
        phase: String,
        reason_code: String,
        reason: String,
        reason_detail: String,
        observed_generation: i64,
        container_id: Option<String>,
        container_name: String,
        limits: String,
        gpus: String,
        fail_if_full: bool,
        exit_code: Option<i64>,
        restarts: i64,
        queued_at: i64,
        started_at: Option<i64>,
        created_at: i64,
        updated_at: i64,
    }
}

const COLUMNS: &str = "id, owner_id, name, image_id, spec_id, requested_node_id, node_id, \
     image_address, spec, environment, restart_policy, priority, remark, desired, generation, \
     phase, reason_code, reason, reason_detail, observed_generation, container_id, container_name, \
     limits, gpus, fail_if_full, exit_code, restarts, queued_at, started_at, created_at, \
     updated_at";

/// Why an instance is in its phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// A stable word; empty when there is nothing to say.
    pub code: String,
    /// One sentence.
    pub text: String,
    /// Numbers and names behind the sentence, as JSON; empty for none.
    pub detail: String,
}

impl Why {
    /// A reason without numbers.
    #[must_use]
    pub fn new(code: &str, text: impl Into<String>) -> Self {
        Self { code: code.to_owned(), text: text.into(), detail: String::new() }
    }
}

/// A row of `instances`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Which.
    pub id: InstanceId,
    /// Whose.
    pub owner: UserId,
    /// Its name.
    pub name: String,
    /// Its image, which may be gone by now.
    pub image_id: Uuid,
    /// Its spec, which may be gone by now.
    pub spec_id: Uuid,
    /// The node that was asked for.
    pub requested_node: Option<NodeId>,
    /// Where it is, or was and still has its disk.
    pub node: Option<NodeId>,
    /// The image's address at creation.
    pub image_address: String,
    /// The spec at creation.
    pub spec: SpecSnapshot,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// What the agent does when its process ends.
    pub policy: RestartPolicy,
    /// Its place in the queue.
    pub priority: i32,
    /// Free text.
    pub remark: String,
    /// What should be and what is.
    pub state: State,
    /// Grows whenever the node must act on it.
    pub generation: u64,
    /// Why it is in its phase.
    pub why: Why,
    /// What the agent last acted on.
    pub observed_generation: u64,
    /// Docker's id of its container.
    pub container_id: Option<String>,
    /// Docker's name of its container.
    pub container_name: String,
    /// What the node could and could not enforce, as JSON.
    pub limits: String,
    /// The cards of its last placement, in PCI order.
    pub gpus: Vec<GpuUuid>,
    /// Whether it fails instead of queueing.
    pub fail_if_full: bool,
    /// How its process ended last.
    pub exit_code: Option<i64>,
    /// Restarts by policy since the last start.
    pub restarts: u32,
    /// Since when it waits.
    pub queued_at: UnixMillis,
    /// When its container last started.
    pub started_at: Option<UnixMillis>,
    /// When it was created.
    pub created_at: UnixMillis,
    /// When its row changed last.
    pub updated_at: UnixMillis,
}

impl Instance {
    /// Returns what the scheduler is asked for. Its disk is on its node, so it goes nowhere else.
    #[must_use]
    pub fn request(&self) -> Request {
        let mut request = self.spec.request(self.node.or(self.requested_node), &self.image_address);
        if self.node.is_some() {
            // The disk was granted when it was first placed and is still held.
            request.disk = DiskGib(0);
        }
        request
    }

    /// Returns what a first placement takes of the node's disk.
    #[must_use]
    pub fn disk(&self) -> DiskGib {
        DiskGib(self.spec.system_disk_gib.saturating_add(self.spec.data_disk_gib))
    }
}

fn corrupt(column: &'static str, problem: impl std::fmt::Display) -> DbError {
    DbError::Corrupt { column, problem: problem.to_string() }
}

impl TryFrom<InstanceRow> for Instance {
    type Error = DbError;

    fn try_from(row: InstanceRow) -> Result<Self, DbError> {
        let unknown = |column| move || corrupt(column, "unknown word");
        let desired = Desired::from_word(&row.desired).ok_or_else(unknown("instances.desired"))?;
        let phase = Phase::from_word(&row.phase).ok_or_else(unknown("instances.phase"))?;
        Ok(Self {
            id: InstanceId(row.id),
            owner: UserId(row.owner_id),
            name: row.name,
            image_id: row.image_id,
            spec_id: row.spec_id,
            requested_node: row.requested_node_id.map(NodeId),
            node: row.node_id.map(NodeId),
            image_address: row.image_address,
            spec: serde_json::from_str(&row.spec)
                .map_err(|error| corrupt("instances.spec", error))?,
            env: serde_json::from_str(&row.environment)
                .map_err(|error| corrupt("instances.environment", error))?,
            policy: policy_from_word(&row.restart_policy)
                .ok_or_else(unknown("instances.restart_policy"))?,
            priority: i32::try_from(row.priority).unwrap_or(0),
            remark: row.remark,
            state: State::new(desired, phase),
            generation: u64::try_from(row.generation).unwrap_or(0),
            why: Why { code: row.reason_code, text: row.reason, detail: row.reason_detail },
            observed_generation: u64::try_from(row.observed_generation).unwrap_or(0),
            container_id: row.container_id,
            container_name: row.container_name,
            limits: row.limits,
            gpus: serde_json::from_str(&row.gpus)
                .map_err(|error| corrupt("instances.gpus", error))?,
            fail_if_full: row.fail_if_full,
            exit_code: row.exit_code,
            restarts: u32::try_from(row.restarts).unwrap_or(0),
            queued_at: UnixMillis(row.queued_at),
            started_at: row.started_at.map(UnixMillis),
            created_at: UnixMillis(row.created_at),
            updated_at: UnixMillis(row.updated_at),
        })
    }
}

fn parsed(rows: Vec<InstanceRow>) -> Result<Vec<Instance>, DbError> {
    rows.into_iter().map(Instance::try_from).collect()
}

/// Reads one live instance.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn get(db: &Db, id: InstanceId) -> Result<Option<Instance>, DbError> {
    let sql = format!("select {COLUMNS} from instances where id = $1 and deleted_at is null");
    db.first::<InstanceRow>(&sql, args![id]).await?.map(Instance::try_from).transpose()
}

/// Reads every live instance of a node, whatever should become of it.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn on_node(db: &Db, node: NodeId) -> Result<Vec<Instance>, DbError> {
    let sql = format!(
        "select {COLUMNS} from instances where node_id = $1 and deleted_at is null order by id"
    );
    parsed(db.all(&sql, args![node]).await?)
}

/// Reads the queue, first come first, at most `limit`.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn pending(db: &Db, limit: u32) -> Result<Vec<Instance>, DbError> {
    let sql = format!(
        "select {COLUMNS} from instances where phase = 'pending' and deleted_at is null \
         order by priority desc, queued_at, id limit {limit}"
    );
    parsed(db.all(&sql, args![]).await?)
}

/// Reads the instances that should run and whose end, or failure, is not settled yet.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn unsettled(db: &Db) -> Result<Vec<Instance>, DbError> {
    let sql = format!(
        "select {COLUMNS} from instances where desired = 'running' and deleted_at is null and \
         (phase = 'exited' or (phase = 'creating' and reason_code = 'retrying')) order by id"
    );
    parsed(db.all(&sql, args![]).await?)
}

/// Reads the instances that still count as active on nodes that are offline.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn active_on_lost_nodes(db: &Db) -> Result<Vec<Instance>, DbError> {
    let sql = format!(
        "select {COLUMNS} from instances where (phase in ('creating', 'running', 'stopping') \
         or (phase = 'exited' and desired = 'running')) and deleted_at is null and node_id in (select id from nodes where online = $1)"
    );
    parsed(db.all(&sql, args![false]).await?)
}

/// Reads the instances whose node was removed.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn on_removed_nodes(db: &Db) -> Result<Vec<Instance>, DbError> {
    let sql = format!(
        "select {COLUMNS} from instances where deleted_at is null and node_id is not null \
         and node_id not in (select id from nodes)"
    );
    parsed(db.all(&sql, args![]).await?)
}

row! {
    struct PlaceRow { id: Uuid }
}

/// Returns the ids of the queue in order.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn queue_order(db: &Db) -> Result<Vec<InstanceId>, DbError> {
    let sql = "select id from instances where phase = 'pending' and deleted_at is null \
         order by priority desc, queued_at, id";
    let rows: Vec<PlaceRow> = db.all(sql, args![]).await?;
    Ok(rows.into_iter().map(|row| InstanceId(row.id)).collect())
}

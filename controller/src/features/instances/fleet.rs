//! Rows of nodes, cards and grants become what the scheduler knows of the fleet.

use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::id::NodeId;
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{GpuSlice, GpuUuid};
use tianqi_common::wire::inventory::NodeInventory;
use tianqi_scheduler::{GpuCapacity, GpuMode, NodeCapacity, NodeGate};
use uuid::Uuid;

use crate::core::db::{Db, DbError, Engine, Source, Tx, Value, row};

row! {
    struct NodeRow {
        id: Uuid,
        name: String,
        region: String,
        listed: bool,
        cordoned: bool,
        online: bool,
        offline_reason: String,
        docker_status: String,
        docker_reason: String,
        inventory: Option<String>,
        cpu_millicores: i64,
        memory_mib: i64,
        disk_gib: i64,
    }
}

row! {
    struct GpuRow {
        uuid: String,
        node_id: Uuid,
        model: String,
        memory_total_mib: i64,
        memory_reserved_mib: i64,
        numa_node: Option<i64>,
        present: bool,
        sick: String,
        mig_enabled: bool,
        mode: String,
        max_shares: i64,
    }
}

row! {
    struct NodeUse { node_id: Uuid, cpu: i64, memory: i64, disk: i64 }
}

row! {
    struct GpuUse { gpu_uuid: String, memory_mib: i64, cores: i64, exclusive: bool }
}

row! {
    struct ImageUse { node_id: Uuid, image_address: String }
}

/// Most nodes of one statement, far below every engine's limit of values.
pub const NODES_AT_ONCE: usize = 500;

/// Reads every node.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn all_nodes(db: &Db) -> Result<Vec<NodeCapacity>, DbError> {
    load(db, &Only::all()).await
}

/// Reads the nodes of `ids` that exist; at most [`NODES_AT_ONCE`].
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn some_nodes(
    source: impl Source,
    ids: &BTreeSet<NodeId>,
) -> Result<Vec<NodeCapacity>, DbError> {
    load(source, &Only::these(ids)).await
}

/// Which nodes a statement is about.
struct Only {
    ids: Option<Vec<Value>>,
}

impl Only {
    fn all() -> Self {
        Self { ids: None }
    }

    fn these(ids: &BTreeSet<NodeId>) -> Self {
        Self { ids: Some(ids.iter().map(|id| Value::from(*id)).collect()) }
    }

    fn condition(&self, column: &str) -> String {
        match &self.ids {
            None => format!("{column} is not null"),
            Some(ids) => format!("{column} in {}", placeholders(ids.len())),
        }
    }

    fn args(&self) -> Vec<Value> {
        self.ids.clone().unwrap_or_default()
    }
}

/// Returns `($1, $2, …)`; for none a list that holds nothing.
#[must_use]
pub fn placeholders(count: usize) -> String {
    if count == 0 {
        return "(null)".to_owned();
    }
    let each: Vec<String> = (1..=count).map(|n| format!("${n}")).collect();
    format!("({})", each.join(", "))
}

async fn load(mut source: impl Source, only: &Only) -> Result<Vec<NodeCapacity>, DbError> {
    let sql = format!(
        "select id, name, region, listed, cordoned, online, offline_reason, docker_status, \
         docker_reason, inventory, cpu_millicores, memory_mib, disk_gib from nodes where {}",
        only.condition("id")
    );
    let rows: Vec<NodeRow> = source.all(&sql, only.args()).await?;
    let mut nodes: BTreeMap<Uuid, NodeCapacity> =
        rows.into_iter().map(|row| (row.id, capacity(row))).collect();
    add_cards(&mut source, only, &mut nodes).await?;
    add_use(&mut source, only, &mut nodes).await?;
    let sql = format!(
        "select distinct node_id, image_address from instances where deleted_at is null and {}",
        only.condition("node_id")
    );
    let images: Vec<ImageUse> = source.all(&sql, only.args()).await?;
    for used in images {
        if let Some(node) = nodes.get_mut(&used.node_id) {
            node.images.insert(used.image_address);
        }
    }
    Ok(nodes.into_values().collect())
}

fn capacity(row: NodeRow) -> NodeCapacity {
    let parsed = row.inventory.as_deref().map(serde_json::from_str::<NodeInventory>);
    let inventory = parsed.and_then(Result::ok).unwrap_or_default();
    let mut node = NodeCapacity::new(NodeId(row.id), row.name);
    node.region = row.region;
    node.gate = NodeGate {
        listed: row.listed,
        cordoned: row.cordoned,
        offline: (!row.online).then(|| or_else(row.offline_reason, "its agent is not connected")),
        docker_down: (row.docker_status != "connected")
            .then(|| or_else(row.docker_reason, "its state is not known yet")),
    };
    node.cpu_total = Millicores(unsigned(row.cpu_millicores));
    node.memory_total = MemoryMib(unsigned(row.memory_mib));
    node.disk_total = DiskGib(unsigned(row.disk_gib));
    node.slicing_unusable =
        Some(inventory.hami.unusable).filter(|why| !why.is_empty() && !inventory.gpus.simulated);
    node.links = inventory.gpus.links;
    node
}

fn or_else(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn unsigned_32(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

async fn add_cards(
    source: &mut impl Source,
    only: &Only,
    nodes: &mut BTreeMap<Uuid, NodeCapacity>,
) -> Result<(), DbError> {
    let sql = format!(
        "select uuid, node_id, model, memory_total_mib, memory_reserved_mib, numa_node, present, \
         sick, mig_enabled, mode, max_shares from node_gpus where {} order by pci_bus_id, uuid",
        only.condition("node_id")
    );
    let cards: Vec<GpuRow> = source.all(&sql, only.args()).await?;
    let sql = format!(
        "select gpu_uuid, memory_mib, cores, exclusive from gpu_grants where {}",
        only.condition("node_id")
    );
    let mut uses: BTreeMap<String, Vec<GpuUse>> = BTreeMap::new();
    for used in source.all::<GpuUse>(&sql, only.args()).await? {
        uses.entry(used.gpu_uuid.clone()).or_default().push(used);
    }
    for row in cards {
        let Some(node) = nodes.get_mut(&row.node_id) else { continue };
        let used = uses.remove(&row.uuid).unwrap_or_default();
        node.gpus.push(card(row, &used));
    }
    Ok(())
}

fn card(row: GpuRow, uses: &[GpuUse]) -> GpuCapacity {
    let total = GpuMemoryMib(unsigned(row.memory_total_mib));
    let mut card = GpuCapacity::new(GpuUuid(row.uuid), row.model, total);
    card.memory_reserved = GpuMemoryMib(unsigned(row.memory_reserved_mib));
    card.max_shares = unsigned_32(row.max_shares);
    card.numa = row.numa_node.and_then(|numa| u32::try_from(numa).ok());
    card.mode = match row.mode.as_str() {
        "whole" => GpuMode::Whole,
        "shared" => GpuMode::Shared,
        _ => GpuMode::Disabled,
    };
    card.sick = if !row.present {
        Some("it is no longer in the machine".to_owned())
    } else if row.mig_enabled {
        Some("MIG is switched on".to_owned())
    } else {
        Some(row.sick).filter(|why| !why.is_empty())
    };
    for used in uses {
        if used.exclusive {
            card.grant_whole();
        } else {
            card.grant_slice(GpuSlice {
                memory: GpuMemoryMib(unsigned(used.memory_mib)),
                cores: CorePercent(unsigned_32(used.cores)),
            });
        }
    }
    card
}

async fn add_use(
    source: &mut impl Source,
    only: &Only,
    nodes: &mut BTreeMap<Uuid, NodeCapacity>,
) -> Result<(), DbError> {
    // PostgreSQL and MySQL widen a sum of bigint to a decimal; the word to go back differs.
    let int = match source.engine() {
        Engine::MySql => "signed",
        Engine::Sqlite | Engine::Postgres => "bigint",
    };
    let sql = format!(
        "select node_id, cast(sum(cpu_millicores) as {int}) as cpu, \
         cast(sum(memory_mib) as {int}) as memory, cast(sum(disk_gib) as {int}) as disk \
         from node_grants where {} group by node_id",
        only.condition("node_id")
    );
    for used in source.all::<NodeUse>(&sql, only.args()).await? {
        if let Some(node) = nodes.get_mut(&used.node_id) {
            node.cpu_used = Millicores(unsigned(used.cpu));
            node.memory_used = MemoryMib(unsigned(used.memory));
            node.disk_used = DiskGib(unsigned(used.disk));
        }
    }
    Ok(())
}

row! {
    struct IdRow { id: Uuid }
}

/// Locks the rows of `ids`, in id order, then those of their cards, in uuid order, so that two
/// transactions at once never wait for each other in a circle. Returns the nodes that exist.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn lock_nodes(tx: &mut Tx, ids: &BTreeSet<NodeId>) -> Result<Vec<NodeId>, DbError> {
    let values: Vec<Value> = ids.iter().map(|id| Value::from(*id)).collect();
    let list = placeholders(values.len());
    let sql = format!("select id from nodes where id in {list} order by id for update");
    let found: Vec<IdRow> = tx.all(&sql, values.clone()).await?;
    let sql = format!(
        "select node_id as id from node_gpus where node_id in {list} order by uuid for update"
    );
    tx.all::<IdRow>(&sql, values).await?;
    Ok(found.into_iter().map(|row| NodeId(row.id)).collect())
}

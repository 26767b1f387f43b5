//! The rows of cards, and what is granted of them.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use uuid::Uuid;

use crate::core::db::{Db, DbError, Tx, args, row};

row! {
    /// A card.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CardRow {
        /// NVML's uuid.
        pub uuid: String,
        /// The node it was last seen on.
        pub node_id: Uuid,
        /// NVML's index.
        pub card_index: i64,
        /// Its model.
        pub model: String,
        /// Total memory.
        pub memory_total_mib: i64,
        /// Memory that the driver keeps for itself.
        pub memory_reserved_mib: i64,
        /// PCI address.
        pub pci_bus_id: String,
        /// NUMA node, where the system knows it.
        pub numa_node: Option<i64>,
        /// Whether it is imaginary.
        pub simulated: bool,
        /// Whether the agent sees it.
        pub present: bool,
        /// Why it must not take work; empty when healthy.
        pub sick: String,
        /// Whether MIG is switched on.
        pub mig_enabled: bool,
        /// `shared`, `whole` or `disabled`.
        pub mode: String,
        /// Most grants on it.
        pub max_shares: i64,
    }
}

const SELECT: &str = "select uuid, node_id, card_index, model, memory_total_mib, \
     memory_reserved_mib, pci_bus_id, numa_node, simulated, present, sick, mig_enabled, mode, \
     max_shares from node_gpus";

pub(in crate::features::nodes) async fn of_node(
    db: &Db,
    node: NodeId,
) -> Result<Vec<CardRow>, DbError> {
    let sql = format!("{SELECT} where node_id = $1 order by present desc, pci_bus_id, uuid");
    db.all(&sql, args![node]).await
}

pub(in crate::features::nodes) async fn of_node_in(
    tx: &mut Tx,
    node: NodeId,
) -> Result<Vec<CardRow>, DbError> {
    tx.all(&format!("{SELECT} where node_id = $1"), args![node]).await
}

/// Reads a card of whichever node and locks its row until the transaction ends.
pub(in crate::features::nodes) async fn lock(
    tx: &mut Tx,
    uuid: &str,
) -> Result<Option<CardRow>, DbError> {
    tx.first(&format!("{SELECT} where uuid = $1 for update"), args![uuid]).await
}

row! {
    /// What an instance holds of a card.
    #[derive(Debug)]
    pub struct GrantRow {
        /// The card.
        pub gpu_uuid: String,
        /// Memory.
        pub memory_mib: i64,
        /// Cores in percent.
        pub cores: i64,
        /// Whether it holds the whole card.
        pub exclusive: bool,
    }
}

pub(in crate::features::nodes) async fn grants(
    db: &Db,
    node: NodeId,
) -> Result<Vec<GrantRow>, DbError> {
    let sql = "select gpu_uuid, memory_mib, cores, exclusive from gpu_grants where node_id = $1";
    db.all(sql, args![node]).await
}

/// Returns how many instances hold something of a card.
pub(in crate::features::nodes) async fn count_grants(
    tx: &mut Tx,
    uuid: &str,
) -> Result<i64, DbError> {
    tx.number("select count(*) from gpu_grants where gpu_uuid = $1", args![uuid]).await
}

row! {
    /// Cards of one model on one node.
    #[derive(Debug)]
    pub struct ModelRow {
        /// The node.
        pub node_id: Uuid,
        /// The model.
        pub model: String,
        /// How many are present.
        pub cards: i64,
        /// Memory of the largest.
        pub memory_mib: i64,
        /// Whether they are imaginary.
        pub simulated: bool,
    }
}

/// Returns the models present on some nodes; at most a page of them.
pub(in crate::features::nodes) async fn models(
    db: &Db,
    nodes: &[Uuid],
) -> Result<Vec<ModelRow>, DbError> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let marks: Vec<String> = (1..=nodes.len()).map(|n| format!("${n}")).collect();
    let sql = format!(
        "select node_id, model, count(*) as cards, max(memory_total_mib) as memory_mib, simulated \
         from node_gpus where present = true and node_id in ({}) \
         group by node_id, model, simulated order by model",
        marks.join(", ")
    );
    db.all(&sql, nodes.iter().map(|id| (*id).into()).collect()).await
}

pub(in crate::features::nodes) async fn insert(
    tx: &mut Tx,
    now: UnixMillis,
    card: &CardRow,
) -> Result<(), DbError> {
    const SQL: &str = "insert into node_gpus (uuid, node_id, card_index, model, memory_total_mib, \
         memory_reserved_mib, pci_bus_id, numa_node, simulated, present, sick, mig_enabled, mode, \
         max_shares, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
    let args = args![
        card.uuid.as_str(),
        card.node_id,
        card.card_index,
        card.model.as_str(),
        card.memory_total_mib,
        card.memory_reserved_mib,
        card.pci_bus_id.as_str(),
        card.numa_node,
        card.simulated,
        card.present,
        card.sick.as_str(),
        card.mig_enabled,
        card.mode.as_str(),
        card.max_shares,
        now
    ];
    tx.run(SQL, args).await.map(|_| ())
}

/// Writes everything about a card that its agent says; mode and shares are an admin's.
pub(in crate::features::nodes) async fn update_seen(
    tx: &mut Tx,
    now: UnixMillis,
    card: &CardRow,
) -> Result<(), DbError> {
    const SQL: &str = "update node_gpus set node_id = $1, card_index = $2, model = $3, \
         memory_total_mib = $4, memory_reserved_mib = $5, pci_bus_id = $6, numa_node = $7, \
         simulated = $8, present = $9, sick = $10, mig_enabled = $11, updated_at = $12 \
         where uuid = $13";
    let args = args![
        card.node_id,
        card.card_index,
        card.model.as_str(),
        card.memory_total_mib,
        card.memory_reserved_mib,
        card.pci_bus_id.as_str(),
        card.numa_node,
        card.simulated,
        card.present,
        card.sick.as_str(),
        card.mig_enabled,
        now,
        card.uuid.as_str()
    ];
    tx.run(SQL, args).await.map(|_| ())
}

pub(in crate::features::nodes) async fn update_use(
    tx: &mut Tx,
    now: UnixMillis,
    uuid: &str,
    mode: &str,
    max_shares: i64,
) -> Result<(), DbError> {
    let sql = "update node_gpus set mode = $1, max_shares = $2, updated_at = $3 where uuid = $4";
    tx.run(sql, args![mode, max_shares, now, uuid]).await.map(|_| ())
}

//! What an agent says its machine is, as rows. The agent is not trusted: texts are cleaned and
//! cut, lists have an end, and a card that another node holds is not taken from it.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use tianqi_common::unit::GIB;
use tianqi_common::wire::inventory::{GpuCard, NodeInventory};
use tianqi_scheduler::DEFAULT_MAX_SHARES;

use super::store::cards::{self, CardRow};
use super::store::live::{self, Totals};
use super::store::nodes;
use crate::core::db::{Db, DbError, Tx};

/// Most cards of one machine; further ones are left out.
const CARDS_MAX: usize = 64;
/// Longest inventory as JSON, in bytes; a longer one is not taken in.
const JSON_MAX: usize = 1 << 20;
/// Longest key text of a card, in characters.
const KEY_MAX: usize = 100;
/// Longest sentence of an agent, in characters.
pub(super) const SENTENCE_MAX: usize = 1_000;

/// Returns a text of an agent without control characters, cut to `max` characters.
pub(super) fn clean(text: &str, max: usize) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(max).map(plain).collect()
}

/// Tells inventories apart. Free disk space counts in GiB, so that a busy disk is not a change.
pub(super) fn fingerprint(inventory: &NodeInventory) -> Option<[u8; 32]> {
    let mut rounded = inventory.clone();
    for disk in &mut rounded.disks {
        disk.free_bytes /= GIB;
    }
    serde_json::to_vec(&rounded).ok().map(|json| Sha256::digest(json).into())
}

/// Returns the fingerprint of the inventory that is stored.
pub(super) async fn stored_fingerprint(db: &Db, node: NodeId) -> Result<Option<[u8; 32]>, DbError> {
    let json = nodes::inventory(db, node).await?;
    let inventory = json.and_then(|json| serde_json::from_str::<NodeInventory>(&json).ok());
    Ok(inventory.and_then(|inventory| fingerprint(&inventory)))
}

fn totals(inventory: &NodeInventory) -> Totals {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let docker = inventory.disks.iter().find(|disk| disk.holds_docker);
    let disk = docker.or(inventory.disks.first());
    Totals {
        cpu_millicores: i64::from(inventory.cpu_cores) * 1_000,
        memory_mib: number(inventory.memory.0),
        disk_gib: number(disk.map_or(0, |disk| disk.total_bytes / GIB)),
    }
}

fn card(node: NodeId, card: &GpuCard, simulated: bool) -> CardRow {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    CardRow {
        uuid: card.uuid.0.clone(),
        node_id: node.0,
        card_index: i64::from(card.index),
        model: clean(&card.model, KEY_MAX),
        memory_total_mib: number(card.memory_total.0),
        memory_reserved_mib: number(card.memory_reserved.0),
        pci_bus_id: clean(&card.pci_bus_id, KEY_MAX),
        numa_node: card.numa_node.map(i64::from),
        simulated,
        present: true,
        sick: clean(&card.sick, SENTENCE_MAX),
        mig_enabled: card.mig_enabled,
        mode: "shared".to_owned(),
        max_shares: i64::from(DEFAULT_MAX_SHARES),
    }
}

/// Returns the cards by uuid; those without a usable uuid are left out.
fn cards_seen(node: NodeId, inventory: &NodeInventory) -> BTreeMap<String, CardRow> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let gpus = &inventory.gpus;
    let usable = gpus.cards.iter().filter(|card| {
        let uuid = &card.uuid.0;
        !uuid.is_empty() && uuid.len() <= KEY_MAX && uuid.chars().all(is_plain)
    });
    let rows = usable.take(CARDS_MAX).map(|it| card(node, it, gpus.simulated));
    rows.map(|row| (row.uuid.clone(), row)).collect()
}

/// Writes an inventory: the node's totals and its cards. A card that is gone stays as a row that
/// is not present, with its mode, because grants may name it and it may come back.
pub(super) async fn store(
    db: &Db,
    now: UnixMillis,
    node: NodeId,
    inventory: &NodeInventory,
) -> Result<(), DbError> {
    let json = serde_json::to_string(inventory).unwrap_or_default();
    if json.is_empty() || json.len() > JSON_MAX {
        tracing::warn!(node.id = %node, size_bytes = json.len(), "the inventory of node {node} is too large and was not taken in");
        return Ok(());
    }
    let mut tx = db.begin().await?;
    if !nodes::lock(&mut tx, node).await? {
        return Ok(());
    }
    live::set_inventory(&mut tx, now, node, &json, totals(inventory)).await?;
    let mut seen = cards_seen(node, inventory);
    for known in cards::of_node_in(&mut tx, node).await? {
        let newer = seen.remove(&known.uuid);
        let newer = newer.unwrap_or_else(|| CardRow { present: false, ..known.clone() });
        // Mode and shares are an admin's.
        let newer = CardRow { mode: known.mode.clone(), max_shares: known.max_shares, ..newer };
        if newer != known {
            cards::update_seen(&mut tx, now, &newer).await?;
        }
    }
    for card in seen.into_values() {
        take_in(&mut tx, now, node, &card).await?;
    }
    tx.commit().await
}

/// Adds a card that this node did not have. One that moved here from another node comes with its
/// mode, once the other node no longer sees it and nobody holds it.
async fn take_in(
    tx: &mut Tx,
    now: UnixMillis,
    node: NodeId,
    card: &CardRow,
) -> Result<(), DbError> {
    let Some(other) = cards::lock(tx, &card.uuid).await? else {
        return cards::insert(tx, now, card).await;
    };
    if other.present || cards::count_grants(tx, &card.uuid).await? > 0 {
        tracing::warn!(
            node.id = %node, gpu.uuid = card.uuid,
            "node {node} reports card {}, which node {} holds; it was not taken in",
            card.uuid, other.node_id
        );
        return Ok(());
    }
    cards::update_seen(tx, now, card).await
}

//! What the API answers about nodes and cards.

use std::collections::BTreeMap;

use serde::Serialize;
use tianqi_common::wire::join::MAX_CLOCK_SKEW_S;
use tianqi_common::wire::stream::CheckReport;
use utoipa::ToSchema;
use uuid::Uuid;

use super::model::DockerWord;
use super::store::cards::{CardRow, GrantRow, ModelRow};
use super::store::nodes::NodeRow;
use crate::core::timestamp::Timestamp;
use tianqi_common::unit::GpuMemoryMib;
use tianqi_scheduler::default_headroom;

/// Something about a node that an admin should look at.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct NodeNote {
    /// Stable word: `offline`, `docker`, `clock_skew`.
    pub code: &'static str,
    /// One sentence that says what to do.
    pub message: String,
}

/// Cards of one model on a node.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct NodeGpuModel {
    /// Such as `NVIDIA L40`.
    pub model: String,
    /// How many are present.
    pub count: i64,
    /// Memory of one, in MiB.
    pub memory_mib: i64,
    /// Whether they are imaginary.
    pub simulated: bool,
}

/// A node.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeView {
    /// Which.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub region: String,
    /// Public address; may be empty.
    pub public_ip: String,
    /// Private address; may be empty.
    pub private_ip: String,
    /// Port of the machine's own SSH server.
    pub ssh_port: i64,
    /// Account on the machine; may be empty.
    pub ssh_user: String,
    /// Anything else.
    pub remark: String,
    /// Whether it is on offer.
    pub listed: bool,
    /// Whether new work is held back.
    pub cordoned: bool,
    /// Directory of the HAMi-core library; null for the agent's own.
    pub hami_dir: Option<String>,
    /// Docker endpoint; null for the agent's own.
    pub docker_endpoint: Option<String>,
    /// Whether PEMs for the Docker endpoint are stored. They are never returned.
    pub has_docker_tls: bool,
    /// `connected`, `failed` or `unknown`.
    #[schema(value_type = DockerWord)]
    pub docker_status: String,
    /// Why not connected; empty when it is.
    pub docker_reason: String,
    /// Whether the agent is heard.
    pub online: bool,
    /// Why it is not; empty when it is.
    pub offline_reason: String,
    /// When it was last heard; up to 30 s late while it is online.
    pub last_seen_at: Option<Timestamp>,
    /// Version of the agent's program.
    pub agent_program: String,
    /// When the agent started, by the node's clock.
    pub agent_started_at: Option<Timestamp>,
    /// The node's clock minus the controller's, in milliseconds.
    pub clock_skew_ms: i64,
    /// What an admin should look at.
    pub notes: Vec<NodeNote>,
    /// CPU in thousandths of a core.
    pub cpu_millicores: i64,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// Disk that holds Docker's data, in GiB.
    pub disk_gib: i64,
    /// Cards present, by model.
    pub gpus: Vec<NodeGpuModel>,
    /// Instances placed here that are not deleted.
    pub instances: i64,
    /// When it joined.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Everything that the agent found out about the machine; only when one node is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<serde_json::Value>,
}

fn notes(row: &NodeRow) -> Vec<NodeNote> {
    let mut notes = Vec::new();
    if !row.online {
        notes.push(NodeNote { code: "offline", message: row.offline_reason.clone() });
    } else if row.docker_status != DockerWord::Connected.as_str() {
        let message = format!("Docker is {}: {}", row.docker_status, row.docker_reason);
        notes.push(NodeNote { code: "docker", message });
    }
    let skew_s = row.clock_skew_ms.unsigned_abs() / 1_000;
    if skew_s > MAX_CLOCK_SKEW_S {
        let side = if row.clock_skew_ms > 0 { "ahead of" } else { "behind" };
        let message = format!(
            "the node's clock is {skew_s} s {side} the controller's, over {MAX_CLOCK_SKEW_S} s \
             certificates and times go wrong; set the clocks (timedatectl set-ntp true)"
        );
        notes.push(NodeNote { code: "clock_skew", message });
    }
    notes
}

impl NodeView {
    /// Puts a node together from its row and the cards of the page.
    #[must_use]
    pub fn new(row: NodeRow, models: &[ModelRow]) -> Self {
        let own = models.iter().filter(|model| model.node_id == row.id);
        let gpus = own.map(|own| NodeGpuModel {
            model: own.model.clone(),
            count: own.cards,
            memory_mib: own.memory_mib,
            simulated: own.simulated,
        });
        Self {
            notes: notes(&row),
            gpus: gpus.collect(),
            id: row.id,
            name: row.name,
            region: row.region,
            public_ip: row.public_ip,
            private_ip: row.private_ip,
            ssh_port: row.ssh_port,
            ssh_user: row.ssh_user,
            remark: row.remark,
            listed: row.listed,
            cordoned: row.cordoned,
            hami_dir: row.hami_dir,
            docker_endpoint: row.docker_endpoint,
            has_docker_tls: row.has_docker_tls,
            docker_status: row.docker_status,
            docker_reason: row.docker_reason,
            online: row.online,
            offline_reason: row.offline_reason,
            last_seen_at: row.last_seen_at.map(Timestamp::from_stored),
            agent_program: row.agent_program,
            agent_started_at: (row.boot_started_at > 0)
                .then(|| Timestamp::from_stored(row.boot_started_at)),
            clock_skew_ms: row.clock_skew_ms,
            cpu_millicores: row.cpu_millicores,
            memory_mib: row.memory_mib,
            disk_gib: row.disk_gib,
            instances: row.instances,
            created_at: Timestamp::from_stored(row.created_at),
            updated_at: Timestamp::from_stored(row.updated_at),
            inventory: None,
        }
    }
}

/// One card of a node.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpuView {
    /// NVML's uuid.
    pub uuid: String,
    /// NVML's index; for people.
    pub index: i64,
    /// Such as `NVIDIA L40`.
    pub model: String,
    /// Total memory.
    pub memory_total_mib: i64,
    /// Memory that the driver keeps for itself.
    pub memory_reserved_mib: i64,
    /// Memory that slices may take in all: total, less reserved, less headroom.
    pub memory_usable_mib: u64,
    /// Memory granted to instances.
    pub memory_granted_mib: i64,
    /// Cores granted, in percent.
    pub cores_granted_percent: i64,
    /// Instances on this card.
    pub shares: i64,
    /// Most instances on this card.
    pub max_shares: i64,
    /// Whether one instance holds the whole card.
    pub exclusive: bool,
    /// `shared`, `whole` or `disabled`.
    pub mode: String,
    /// Whether the agent sees the card.
    pub present: bool,
    /// Whether the card can take work.
    pub healthy: bool,
    /// Why it cannot; empty when it can.
    pub reason: String,
    /// Whether MIG is switched on; such a card takes no work.
    pub mig_enabled: bool,
    /// Whether the card is imaginary.
    pub simulated: bool,
    /// PCI address.
    pub pci_bus_id: String,
    /// NUMA node, where the system knows it.
    pub numa_node: Option<i64>,
}

impl GpuView {
    /// Puts the cards of a node together with what is granted of them.
    #[must_use]
    pub fn list(cards: Vec<CardRow>, grants: &[GrantRow]) -> Vec<Self> {
        let mut of_card: BTreeMap<&str, Vec<&GrantRow>> = BTreeMap::new();
        for grant in grants {
            of_card.entry(&grant.gpu_uuid).or_default().push(grant);
        }
        let view = |card: CardRow| {
            let held = of_card.get(card.uuid.as_str()).map_or(&[][..], Vec::as_slice);
            Self::new(card, held)
        };
        cards.into_iter().map(view).collect()
    }

    fn new(card: CardRow, held: &[&GrantRow]) -> Self {
        let mib = |value: i64| GpuMemoryMib(u64::try_from(value).unwrap_or(0));
        let total = mib(card.memory_total_mib);
        let usable = total.minus(mib(card.memory_reserved_mib)).minus(default_headroom(total));
        let reason = if !card.present {
            "the agent no longer sees this card".to_owned()
        } else if card.mig_enabled {
            "MIG is switched on; switch it off to use the card".to_owned()
        } else {
            card.sick
        };
        Self {
            index: card.card_index,
            model: card.model,
            memory_total_mib: card.memory_total_mib,
            memory_reserved_mib: card.memory_reserved_mib,
            memory_usable_mib: usable.0,
            memory_granted_mib: held.iter().map(|grant| grant.memory_mib).sum(),
            cores_granted_percent: held.iter().map(|grant| grant.cores).sum(),
            shares: i64::try_from(held.len()).unwrap_or(i64::MAX),
            max_shares: card.max_shares,
            exclusive: held.iter().any(|grant| grant.exclusive),
            mode: card.mode,
            present: card.present,
            healthy: reason.is_empty(),
            reason,
            mig_enabled: card.mig_enabled,
            simulated: card.simulated,
            pci_bus_id: card.pci_bus_id,
            numa_node: card.numa_node,
            uuid: card.uuid,
        }
    }
}

/// What trying a node's settings gave.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum SettingsCheck {
    /// The agent tried them.
    Tried {
        /// Whether the engine answers.
        docker: DockerView,
        /// The engine, when it answers.
        engine: Option<serde_json::Value>,
        /// SHA-256 of the HAMi library found, hexadecimal; empty when none.
        hami_sha256: String,
        /// Why the HAMi library cannot be used; empty when it can.
        hami_problem: String,
    },
    /// Nobody could try them. They are saved all the same.
    Unavailable {
        /// Why not.
        unavailable: String,
    },
}

/// Whether a Docker engine answers.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DockerView {
    /// `connected`, `failed` or `unknown`.
    pub status: DockerWord,
    /// Why not connected; empty when it is.
    pub reason: String,
}

impl From<CheckReport> for SettingsCheck {
    fn from(report: CheckReport) -> Self {
        Self::Tried {
            docker: DockerView {
                status: report.docker.status.into(),
                reason: report.docker.reason,
            },
            engine: report.engine.and_then(|engine| serde_json::to_value(engine).ok()),
            hami_sha256: report.hami_sha256,
            hami_problem: report.hami_problem,
        }
    }
}

/// A node after a save.
#[derive(Debug, Serialize, ToSchema)]
pub struct SavedNode {
    /// The node.
    #[serde(flatten)]
    pub node: NodeView,
    /// What trying the settings gave; only when the save touched them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<SettingsCheck>,
}

/// A node that is being drained.
#[derive(Debug, Serialize, ToSchema)]
pub struct DrainedNode {
    /// The node.
    #[serde(flatten)]
    pub node: NodeView,
    /// Instances on it that should run.
    pub running: i64,
    /// Whether they were asked to stop.
    pub stopping: bool,
}

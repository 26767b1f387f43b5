//! Why a node is refused: a stable code with numbers, a sentence, and what would help.

use serde::{Deserialize, Serialize};
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::GpuUuid;

/// Why a request does not fit on a node. Serialises as `{"code": "…", numbers…}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Reason {
    /// The request makes no sense on any node.
    #[error("the request cannot be placed: {problem}")]
    InvalidRequest {
        /// What is wrong with it.
        problem: String,
    },
    /// The node of a placement is not known (any more).
    #[error("the node is not known")]
    NodeGone,
    /// A card of a placement is not on its node (any more).
    #[error("card {gpu} is not on this node")]
    CardGone {
        /// Which card.
        gpu: GpuUuid,
    },
    /// Another node was named.
    #[error("another node was named")]
    NotNamed,
    /// The node is not on offer.
    #[error("not listed")]
    NotListed,
    /// An admin holds new work back.
    #[error("cordoned")]
    Cordoned,
    /// The agent cannot be reached.
    #[error("offline: {why}")]
    Offline {
        /// Why, in words.
        why: String,
    },
    /// The Docker engine cannot be used.
    #[error("docker is not connected: {why}")]
    DockerDown {
        /// Why, in words.
        why: String,
    },
    /// The node is kept free for an instance that has waited too long.
    #[error("kept free for an instance that has waited longer")]
    Held,
    /// The node has no cards.
    #[error("has no GPU")]
    NoGpus,
    /// No card is of the model asked for.
    #[error("needs {wanted}, has {}", found.join(", "))]
    ModelMismatch {
        /// The model asked for.
        wanted: String,
        /// The models here, each once.
        found: Vec<String>,
    },
    /// Every card that counts is sick or disabled.
    #[error("{sick} of its cards are sick and {disabled} disabled, none is left{}", because(why))]
    NoHealthyCard {
        /// Sick cards.
        sick: u32,
        /// Disabled cards.
        disabled: u32,
        /// Why the first sick card is sick.
        why: Option<String>,
    },
    /// Every healthy card is given out only as a whole.
    #[error("its {cards} cards are given out only as a whole")]
    NoSharedCard {
        /// Cards that count.
        cards: u32,
    },
    /// Slices cannot be enforced on the node.
    #[error("cannot slice cards: {why}")]
    SlicingUnusable {
        /// Why, in words.
        why: String,
    },
    /// No card has enough free memory.
    #[error("needs {} MiB on one card, most free is {} MiB", needed_mib.0, most_free_mib.0)]
    NotEnoughGpuMemory {
        /// Memory asked for.
        needed_mib: GpuMemoryMib,
        /// Most free memory on one card.
        most_free_mib: GpuMemoryMib,
        /// Memory of the largest card that slices may take when it is empty.
        largest_mib: GpuMemoryMib,
    },
    /// No card with enough memory may hold another slice.
    #[error("every card with enough memory holds {max_shares} slices, the most it may")]
    NoShareLeft {
        /// Most slices on one card.
        max_shares: u32,
    },
    /// No card with enough memory has enough free cores.
    #[error(
        "needs {} % of one card's cores, most free is {} %",
        needed_percent.0,
        most_free_percent.0
    )]
    NotEnoughGpuCores {
        /// Cores asked for.
        needed_percent: CorePercent,
        /// Most free cores on one card with enough memory.
        most_free_percent: CorePercent,
    },
    /// Too few cards are empty.
    #[error("needs {needed} empty cards, {empty} of {cards} are empty")]
    NotEnoughEmptyCards {
        /// Cards asked for.
        needed: u32,
        /// Empty cards.
        empty: u32,
        /// Cards that count.
        cards: u32,
    },
    /// Too little CPU is free.
    #[error("needs {} millicores, free are {}", needed_millicores.0, free_millicores.0)]
    NotEnoughCpu {
        /// CPU asked for.
        needed_millicores: Millicores,
        /// CPU free.
        free_millicores: Millicores,
        /// CPU of the empty node.
        total_millicores: Millicores,
    },
    /// Too little memory is free.
    #[error("needs {} MiB of memory, free are {} MiB", needed_mib.0, free_mib.0)]
    NotEnoughMemory {
        /// Memory asked for.
        needed_mib: MemoryMib,
        /// Memory free.
        free_mib: MemoryMib,
        /// Memory of the empty node.
        total_mib: MemoryMib,
    },
    /// Too little disk is free.
    #[error("needs {} GiB of disk, free are {} GiB", needed_gib.0, free_gib.0)]
    NotEnoughDisk {
        /// Disk asked for.
        needed_gib: DiskGib,
        /// Disk free.
        free_gib: DiskGib,
        /// Disk of the empty node.
        total_gib: DiskGib,
    },
}

fn because(why: &Option<String>) -> String {
    why.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
}

impl Reason {
    /// Returns the stable code, the same as in JSON.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest { .. } => "invalid_request",
            Self::NodeGone => "node_gone",
            Self::CardGone { .. } => "card_gone",
            Self::NotNamed => "not_named",
            Self::NotListed => "not_listed",
            Self::Cordoned => "cordoned",
            Self::Offline { .. } => "offline",
            Self::DockerDown { .. } => "docker_down",
            Self::Held => "held",
            Self::NoGpus => "no_gpus",
            Self::ModelMismatch { .. } => "model_mismatch",
            Self::NoHealthyCard { .. } => "no_healthy_card",
            Self::NoSharedCard { .. } => "no_shared_card",
            Self::SlicingUnusable { .. } => "slicing_unusable",
            Self::NotEnoughGpuMemory { .. } => "not_enough_gpu_memory",
            Self::NoShareLeft { .. } => "no_share_left",
            Self::NotEnoughGpuCores { .. } => "not_enough_gpu_cores",
            Self::NotEnoughEmptyCards { .. } => "not_enough_empty_cards",
            Self::NotEnoughCpu { .. } => "not_enough_cpu",
            Self::NotEnoughMemory { .. } => "not_enough_memory",
            Self::NotEnoughDisk { .. } => "not_enough_disk",
        }
    }

    /// Returns a sentence that says what would make the request fit on the node.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::InvalidRequest { .. } => "correct the request".into(),
            Self::NodeGone => "choose another node".into(),
            Self::CardGone { .. } => "place the instance again".into(),
            Self::NotNamed => "name this node, or none".into(),
            Self::NotListed => "an admin must list the node".into(),
            Self::Cordoned => "an admin must uncordon the node".into(),
            Self::Offline { .. } => "the node's agent must connect again".into(),
            Self::DockerDown { .. } => "the node's docker engine must answer again".into(),
            Self::Held => "wait until the instance ahead in the queue is placed".into(),
            Self::NoGpus => "ask for no card, or choose a node with cards".into(),
            Self::ModelMismatch { found, .. } => format!("ask for {}", found.join(" or ")),
            Self::NoHealthyCard { .. } => "a card must be repaired or enabled".into(),
            Self::NoSharedCard { .. } => "ask for a whole card, or set a card to shared".into(),
            Self::SlicingUnusable { .. } => {
                "ask for a whole card, or make the slicing library usable".into()
            }
            Self::NotEnoughGpuMemory { needed_mib, most_free_mib, largest_mib } => {
                shrink_or_wait(needed_mib.0, most_free_mib.0, largest_mib.0, "MiB on one card")
            }
            Self::NoShareLeft { .. } => "wait until an instance leaves a card".into(),
            Self::NotEnoughGpuCores { needed_percent, most_free_percent } => {
                let (needed, free) = (u64::from(needed_percent.0), u64::from(most_free_percent.0));
                shrink_or_wait(needed, free, 100, "% of one card's cores")
            }
            Self::NotEnoughEmptyCards { needed, empty, cards } => {
                let (needed, empty, cards) = (*needed, *empty, *cards);
                shrink_or_wait(needed.into(), empty.into(), cards.into(), "whole cards")
            }
            Self::NotEnoughCpu { needed_millicores, free_millicores, total_millicores } => {
                let (needed, free) = (needed_millicores.0, free_millicores.0);
                shrink_or_wait(needed, free, total_millicores.0, "millicores")
            }
            Self::NotEnoughMemory { needed_mib, free_mib, total_mib } => {
                shrink_or_wait(needed_mib.0, free_mib.0, total_mib.0, "MiB of memory")
            }
            Self::NotEnoughDisk { needed_gib, free_gib, total_gib } => {
                shrink_or_wait(needed_gib.0, free_gib.0, total_gib.0, "GiB of disk")
            }
        }
    }

    /// Returns how much is missing, in the reason's own unit; it orders reasons of one code.
    pub(crate) fn gap(&self) -> u64 {
        match self {
            Self::NotEnoughGpuMemory { needed_mib, most_free_mib, .. } => {
                needed_mib.minus(*most_free_mib).0
            }
            Self::NotEnoughGpuCores { needed_percent, most_free_percent } => {
                needed_percent.minus(*most_free_percent).0.into()
            }
            Self::NotEnoughEmptyCards { needed, empty, .. } => needed.saturating_sub(*empty).into(),
            Self::NotEnoughCpu { needed_millicores, free_millicores, .. } => {
                needed_millicores.minus(*free_millicores).0
            }
            Self::NotEnoughMemory { needed_mib, free_mib, .. } => needed_mib.minus(*free_mib).0,
            Self::NotEnoughDisk { needed_gib, free_gib, .. } => needed_gib.minus(*free_gib).0,
            Self::InvalidRequest { .. }
            | Self::NodeGone
            | Self::CardGone { .. }
            | Self::NotNamed
            | Self::NotListed
            | Self::Cordoned
            | Self::Offline { .. }
            | Self::DockerDown { .. }
            | Self::Held
            | Self::NoGpus
            | Self::ModelMismatch { .. }
            | Self::NoHealthyCard { .. }
            | Self::NoSharedCard { .. }
            | Self::SlicingUnusable { .. }
            | Self::NoShareLeft { .. } => 0,
        }
    }
}

/// Says what helps when `needed` exceeds `free`, on something that holds `most` when empty.
fn shrink_or_wait(needed: u64, free: u64, most: u64, unit: &str) -> String {
    if needed > most {
        return format!("ask for at most {most} {unit}: there is no more here even when empty");
    }
    let missing = needed.saturating_sub(free);
    if free == 0 {
        return format!("wait until {missing} {unit} are freed");
    }
    format!("ask for at most {free} {unit}, or wait until {missing} more are freed")
}

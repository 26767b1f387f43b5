//! Imaginary cards for machines that have none (`--simulate-gpus 2xNVIDIA-L40:46068`).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use tianqi_common::unit::GpuMemoryMib;
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::{GpuCard, GpuInventory, GpuLink, LinkKind};
use tianqi_common::wire::telemetry::GpuSample;
use tokio::sync::watch;
use uuid::Uuid;

use super::{GpuProbe, GpuProcess};

/// Most cards that can be imagined on one node.
pub const MOST_CARDS: u32 = 64;
/// Most memory that an imaginary card can have: 1 TiB.
pub const MOST_MEMORY: GpuMemoryMib = GpuMemoryMib(1 << 20);
/// Longest model name, as NVML allows it.
const MOST_MODEL_BYTES: usize = 95;

/// Why a text does not describe imaginary cards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot simulate {text:?}: {problem}; write COUNTxMODEL:MIB, such as 2xNVIDIA-L40:46068, and commas between groups"
)]
pub struct SimulationError {
    text: String,
    problem: String,
}

/// Some equal imaginary cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardGroup {
    /// How many.
    pub count: u32,
    /// Such as `NVIDIA L40`.
    pub model: String,
    /// Memory of each.
    pub memory: GpuMemoryMib,
}

/// The imaginary cards of one node, as an admin wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// The groups, in the order of their indices.
    pub groups: Vec<CardGroup>,
}

impl FromStr for Simulation {
    type Err = SimulationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let failed = |problem: String| SimulationError { text: shortened(text), problem };
        let groups = text
            .split(',')
            .map(|group| parse_group(group.trim()).map_err(failed))
            .collect::<Result<Vec<_>, _>>()?;
        let cards: u64 = groups.iter().map(|group| u64::from(group.count)).sum();
        if cards > u64::from(MOST_CARDS) {
            return Err(failed(format!("{cards} cards are more than {MOST_CARDS}")));
        }
        Ok(Self { groups })
    }
}

impl fmt::Display for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, group) in self.groups.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            let model = group.model.replace(' ', "-");
            write!(f, "{comma}{}x{model}:{}", group.count, group.memory.0)?;
        }
        Ok(())
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn parse_group(group: &str) -> Result<CardGroup, String> {
    let Some((count, rest)) = group.split_once('x') else {
        return Err("there is no count followed by x".to_owned());
    };
    let Some((model, memory)) = rest.rsplit_once(':') else {
        return Err("there is no colon before the memory".to_owned());
    };
    let count = match whole(count) {
        Some(count @ 1..) if count <= u64::from(MOST_CARDS) => count,
        _ => return Err(format!("the count is not a number from 1 to {MOST_CARDS}")),
    };
    let memory = match whole(memory) {
        Some(memory @ 1..) if memory <= MOST_MEMORY.0 => GpuMemoryMib(memory),
        _ => return Err(format!("the memory is not a number from 1 to {} MiB", MOST_MEMORY.0)),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_. ()/+".contains(c);
    if model.trim().is_empty() || model.len() > MOST_MODEL_BYTES || !model.chars().all(plain) {
        return Err("the model is not 1 to 95 letters, digits, spaces or -_.()/+".to_owned());
    }
    let model = model.replace('-', " ");
    Ok(CardGroup { count: u32::try_from(count).unwrap_or(MOST_CARDS), model, memory })
}

/// Returns the number that `digits` writes in plain decimal.
fn whole(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Imaginary cards. They stand idle, hold no process, and are marked `simulated`.
#[derive(Debug)]
pub struct SimulatedProbe {
    inventory: watch::Sender<GpuInventory>,
}

impl SimulatedProbe {
    /// Makes the cards of `simulation` on the node that `seed` names. The same seed gives the same
    /// uuids, so that instances keep their cards over restarts; use the node's id or its hostname.
    #[must_use]
    pub fn new(simulation: &Simulation, seed: &str) -> Self {
        Self { inventory: watch::Sender::new(inventory(simulation, seed)) }
    }
}

impl GpuProbe for SimulatedProbe {
    fn watch(&self) -> watch::Receiver<GpuInventory> {
        self.inventory.subscribe()
    }

    fn sample(&self) -> Vec<GpuSample> {
        let idle = |card: &GpuCard| GpuSample {
            uuid: card.uuid.clone(),
            utilisation_percent: Some(0),
            memory_used_bytes: Some(0),
            temperature_c: Some(30),
            power_mw: Some(20_000),
        };
        self.inventory.borrow().cards.iter().map(idle).collect()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        None
    }
}

fn inventory(simulation: &Simulation, seed: &str) -> GpuInventory {
    let models = simulation
        .groups
        .iter()
        .flat_map(|group| (0..group.count).map(move |_| (group.model.clone(), group.memory)));
    let cards: Vec<GpuCard> = (0_u32..)
        .zip(models)
        .map(|(index, (model, memory))| card(seed, index, model, memory))
        .collect();
    let links = cards
        .iter()
        .flat_map(|a| cards.iter().filter(move |b| a.index < b.index).map(move |b| link(a, b)))
        .collect();
    GpuInventory {
        unavailable: String::new(),
        simulated: true,
        driver_version: "simulated".to_owned(),
        cuda_version: String::new(),
        cards,
        links,
    }
}

fn card(seed: &str, index: u32, model: String, memory: GpuMemoryMib) -> GpuCard {
    GpuCard {
        uuid: GpuUuid(format!("SIM-{}", stable_uuid(seed, index))),
        index,
        model,
        memory_total: memory,
        memory_reserved: GpuMemoryMib(0),
        pci_bus_id: format!("00000000:{:02X}:00.0", index.saturating_add(1)),
        numa_node: Some(0),
        minor: None,
        sick: String::new(),
        mig_enabled: false,
    }
}

fn link(a: &GpuCard, b: &GpuCard) -> GpuLink {
    GpuLink { a: a.uuid.clone(), b: b.uuid.clone(), kind: LinkKind::SameNuma, nvlinks: 0 }
}

fn stable_uuid(seed: &str, index: u32) -> Uuid {
    let digest = Sha256::new()
        .chain_update(b"tianqi simulated card\0")
        .chain_update(seed.as_bytes())
        .chain_update([0])
        .chain_update(index.to_be_bytes())
        .finalize();
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn simulation_reads_several_groups() {
        let simulation: Simulation = "2xNVIDIA-L40:46068, 1xTesla-T4:15360".parse().unwrap();
        let found = SimulatedProbe::new(&simulation, "node-a").inventory();

        assert!(found.simulated);
        assert_eq!(found.cards.len(), 3);
        assert_eq!(found.cards[0].model, "NVIDIA L40");
        assert_eq!(found.cards[2].model, "Tesla T4");
        assert_eq!(found.cards[2].memory_total, GpuMemoryMib(15_360));
        assert_eq!(found.links.len(), 3);
    }

    #[test]
    fn simulated_uuids_stay_the_same_over_restarts_and_differ_between_nodes() {
        let simulation: Simulation = "2xNVIDIA-L40:46068".parse().unwrap();
        let uuids = |seed| -> Vec<String> {
            let found = SimulatedProbe::new(&simulation, seed).inventory();
            found.cards.into_iter().map(|card| card.uuid.0).collect()
        };

        assert_eq!(uuids("node-a"), uuids("node-a"));
        assert!(uuids("node-a").iter().all(|uuid| uuid.starts_with("SIM-")));
        assert_ne!(uuids("node-a")[0], uuids("node-a")[1]);
        assert_ne!(uuids("node-a")[0], uuids("node-b")[0]);
    }

    #[test]
    fn simulation_says_what_to_type_when_it_cannot_read() {
        for bad in [
            "",
            "x",
            "2",
            "2x",
            "2xA",
            "2xA:",
            "0xA:1",
            "-1xA:1",
            "+1xA:1",
            "65xA:1",
            "1xA:0",
            "1xA:99999999999999999999",
            "1x:5",
            "1xA:1,",
            "40xA:1,40xB:1",
            "1x天:5",
            "1xA:0x10",
        ] {
            let refused = bad.parse::<Simulation>().unwrap_err().to_string();
            assert!(refused.contains("2xNVIDIA-L40:46068"), "{bad}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn simulation_never_panics_and_round_trips(text in ".{0,60}", n in 1_u32..9, mib in 1_u64..90_000) {
            let _ = text.parse::<Simulation>();
            let written = format!("{n}xNVIDIA-L40:{mib}");
            let read: Simulation = written.parse().unwrap();
            prop_assert_eq!(read.to_string(), written);
        }
    }
}

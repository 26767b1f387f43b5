//! The cards of this machine, and the slices cut from them.
//!
//! [`GpuProbe`] is the seam: [`nvml::Library`] behind [`NvmlProbe`] reads real cards,
//! [`SimulatedProbe`] imagines some, [`NoProbe`] has none and says why, and
//! [`fake::FakeProbe`] does what a test tells it. Above the seam there is one path for all of
//! them.
//!
//! Slices are held by HAMi-core: [`library`] keeps an immutable copy of it, [`slice`] says what a
//! container gets, [`region`] knows the bytes of its shared file, [`tmpfs`] gives that file a small
//! filesystem of its own, and [`hami`] puts the four together.

pub mod collector;
pub mod elf;
pub mod fake;
pub mod hami;
pub mod inject;
pub mod library;
pub mod nvml;
pub mod pci;
pub mod region;
pub mod simulate;
pub mod slice;
pub mod tmpfs;

use std::sync::Arc;

use tianqi_common::clock::SharedClock;
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::GpuInventory;
use tianqi_common::wire::telemetry::GpuSample;
use tokio::sync::watch;

use collector::{NvmlConfig, NvmlProbe};
use simulate::{SimulatedProbe, Simulation};

/// A process of this machine that holds memory of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    /// Which card.
    pub uuid: GpuUuid,
    /// The process, in the pid namespace of the machine.
    pub pid: u32,
    /// Bytes that it holds.
    pub used_bytes: u64,
}

/// Where the rest of the agent learns of cards. No method waits for hardware.
pub trait GpuProbe: Send + Sync + 'static {
    /// Returns the newest inventory, and wakes its holder when a card turns sick or well, when MIG
    /// is switched, and when the driver comes or goes.
    fn watch(&self) -> watch::Receiver<GpuInventory>;

    /// Returns the newest inventory.
    fn inventory(&self) -> GpuInventory {
        self.watch().borrow().clone()
    }

    /// Returns the newest numbers of every card that answers.
    fn sample(&self) -> Vec<GpuSample>;

    /// Returns the processes on all cards, or `None` where nothing can tell.
    fn processes(&self) -> Option<Vec<GpuProcess>>;
}

/// Starts the probe that a configuration asks for: imaginary cards where `simulation` names some,
/// else NVML. `seed` names the node, see [`SimulatedProbe::new`].
#[must_use]
pub fn start_probe(
    simulation: Option<&Simulation>,
    seed: &str,
    nvml: NvmlConfig,
    clock: SharedClock,
) -> Arc<dyn GpuProbe> {
    if let Some(simulation) = simulation {
        return Arc::new(SimulatedProbe::new(simulation, seed));
    }
    match NvmlProbe::start(nvml, clock) {
        Ok(probe) => Arc::new(probe),
        Err(error) => Arc::new(NoProbe::new(format!("no thread for NVML: {error}"))),
    }
}

/// A machine without cards.
#[derive(Debug)]
pub struct NoProbe {
    inventory: watch::Sender<GpuInventory>,
}

impl NoProbe {
    /// Makes a probe that finds no card, because of `reason`.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        let inventory = GpuInventory { unavailable: reason.into(), ..GpuInventory::default() };
        Self { inventory: watch::Sender::new(inventory) }
    }
}

impl GpuProbe for NoProbe {
    fn watch(&self) -> watch::Receiver<GpuInventory> {
        self.inventory.subscribe()
    }

    fn sample(&self) -> Vec<GpuSample> {
        Vec::new()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        None
    }
}

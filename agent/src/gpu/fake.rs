//! A node with imaginary cards that do what a test says.

use std::sync::{Mutex, PoisonError};

use tianqi_common::wire::inventory::GpuInventory;
use tianqi_common::wire::telemetry::GpuSample;
use tokio::sync::watch;

use super::{GpuProbe, GpuProcess};

/// A probe whose answers are set from outside.
#[derive(Debug, Default)]
pub struct FakeProbe {
    inventory: watch::Sender<GpuInventory>,
    samples: Mutex<Vec<GpuSample>>,
    processes: Mutex<Option<Vec<GpuProcess>>>,
}

impl FakeProbe {
    /// Makes a probe that answers `inventory`, with no numbers and no processes.
    #[must_use]
    pub fn new(inventory: GpuInventory) -> Self {
        Self { inventory: watch::Sender::new(inventory), ..Self::default() }
    }

    /// Replaces the inventory.
    pub fn set_inventory(&self, inventory: GpuInventory) {
        self.inventory.send_replace(inventory);
    }

    /// Replaces the numbers of the cards.
    pub fn set_samples(&self, samples: Vec<GpuSample>) {
        *self.samples.lock().unwrap_or_else(PoisonError::into_inner) = samples;
    }

    /// Replaces the processes; `None` means that nothing can tell.
    pub fn set_processes(&self, processes: Option<Vec<GpuProcess>>) {
        *self.processes.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    }
}

impl GpuProbe for FakeProbe {
    fn watch(&self) -> watch::Receiver<GpuInventory> {
        self.inventory.subscribe()
    }

    fn sample(&self) -> Vec<GpuSample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

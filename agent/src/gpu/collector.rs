//! The thread that owns NVML and keeps the newest reading of all cards.
//!
//! Readers never wait for the driver: they get the last reading, and when that grows too old the
//! cards are called sick. A missing driver is tried again with growing pauses.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tianqi_common::clock::SharedClock;
use tianqi_common::wire::inventory::{GpuCard, GpuInventory};
use tianqi_common::wire::telemetry::GpuSample;
use tokio::sync::watch;

use super::nvml::{DriverGone, Library};
use super::{GpuProbe, GpuProcess};

/// What [`GpuInventory::unavailable`] says until NVML was tried for the first time.
pub const NOT_READ_YET: &str = "NVML was not read yet";

/// Longest pause between two tries to open NVML.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Age in intervals at which a reading no longer counts.
const STALE_INTERVALS: u32 = 6;
/// Process lists cost milliseconds inside a lock of the driver, so they are read in every third round.
const PROCESS_ROUNDS: u32 = 3;
/// Rounds between two readings of what the cards are.
const INVENTORY_ROUNDS: u32 = 12;

/// How NVML is read.
#[derive(Clone, Debug)]
pub struct NvmlConfig {
    /// The library; the driver's own when absent.
    pub library: Option<PathBuf>,
    /// Pause between two readings; one second at least makes sense on real cards, because NVML
    /// takes a lock that launches of kernels also need.
    pub interval: Duration,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
}

impl Default for NvmlConfig {
    fn default() -> Self {
        Self { library: None, interval: Duration::from_secs(5), sysfs: PathBuf::from("/sys") }
    }
}

/// The numbers of one round.
#[derive(Debug, Default)]
struct Reading {
    /// Monotonic time of the round.
    at: Duration,
    samples: Vec<GpuSample>,
    processes: Option<Vec<GpuProcess>>,
}

/// Real cards, read by NVML. Dropping it ends its thread after the current round.
#[derive(Debug)]
pub struct NvmlProbe {
    inventory: watch::Sender<GpuInventory>,
    reading: Arc<Mutex<Reading>>,
    stale_after: Duration,
    clock: ClockHandle,
    _running: SyncSender<()>,
}

/// A shared clock that can stand in a `Debug` type.
struct ClockHandle(SharedClock);

impl std::fmt::Debug for ClockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl NvmlProbe {
    /// Starts the thread. The first reading arrives through [`GpuProbe::watch`].
    ///
    /// # Errors
    ///
    /// When the system gives no thread.
    pub fn start(config: NvmlConfig, clock: SharedClock) -> std::io::Result<Self> {
        let unread =
            GpuInventory { unavailable: NOT_READ_YET.to_owned(), ..GpuInventory::default() };
        let inventory = watch::Sender::new(unread);
        let reading = Arc::new(Mutex::new(Reading { at: clock.monotonic(), ..Reading::default() }));
        let (running, stopped) = sync_channel(0);
        let stale_after = config.interval.saturating_mul(STALE_INTERVALS);
        let collector = Collector {
            config,
            clock: Arc::clone(&clock),
            inventory: inventory.clone(),
            reading: Arc::clone(&reading),
            cards: Vec::new(),
        };
        std::thread::Builder::new()
            .name("nvml".to_owned())
            .spawn(move || collector.run(&stopped))?;
        Ok(Self { inventory, reading, stale_after, clock: ClockHandle(clock), _running: running })
    }

    fn reading(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls every card sick when the thread hangs in the driver.
    fn judge(&self, age: Duration) {
        let silent = format!("the driver has not answered for {} s", age.as_secs());
        self.inventory.send_if_modified(|inventory| {
            let mut changed = false;
            for card in inventory.cards.iter_mut().filter(|card| card.sick.is_empty()) {
                card.sick.clone_from(&silent);
                changed = true;
            }
            changed
        });
    }
}

impl GpuProbe for NvmlProbe {
    fn watch(&self) -> watch::Receiver<GpuInventory> {
        self.inventory.subscribe()
    }

    fn sample(&self) -> Vec<GpuSample> {
        let age = self.clock.0.monotonic().saturating_sub(self.reading().at);
        if age > self.stale_after {
            self.judge(age);
            return Vec::new();
        }
        self.reading().samples.clone()
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        let reading = self.reading();
        let age = self.clock.0.monotonic().saturating_sub(reading.at);
        if age > self.stale_after { None } else { reading.processes.clone() }
    }
}

/// What the thread owns.
struct Collector {
    config: NvmlConfig,
    clock: SharedClock,
    inventory: watch::Sender<GpuInventory>,
    reading: Arc<Mutex<Reading>>,
    /// The cards last seen, so that one that falls off the bus keeps its name.
    cards: Vec<GpuCard>,
}

impl Collector {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut pause = self.config.interval;
        loop {
            match Library::open(self.config.library.as_deref(), &self.config.sysfs) {
                Ok(library) => {
                    pause = self.config.interval;
                    match self.collect(library, stopped) {
                        Ok(()) => return,
                        Err(gone) => self.report_gone(&gone),
                    }
                }
                Err(gone) => self.report_gone(&gone),
            }
            if is_stopped(stopped, pause) {
                return;
            }
            pause = pause.saturating_mul(2).min(LONGEST_RETRY);
        }
    }

    /// Reads round after round until the probe is dropped or the driver is gone.
    fn collect(&mut self, mut library: Library, stopped: &Receiver<()>) -> Result<(), DriverGone> {
        let mut round: u32 = 0;
        loop {
            if round.is_multiple_of(INVENTORY_ROUNDS) {
                self.cards = library.read_inventory(&self.cards)?.cards;
            }
            let samples = library.read_samples()?;
            let processes = match round.is_multiple_of(PROCESS_ROUNDS) {
                true => Some(library.read_processes()?),
                false => None,
            };
            self.publish(&library, samples, processes);
            round = round.wrapping_add(1);
            if is_stopped(stopped, self.config.interval) {
                return Ok(());
            }
        }
    }

    fn publish(
        &mut self,
        library: &Library,
        samples: Vec<GpuSample>,
        processes: Option<Vec<GpuProcess>>,
    ) {
        let inventory = library.inventory();
        self.cards.clone_from(&inventory.cards);
        self.set_reading(samples, processes);
        self.inventory.send_if_modified(|last| {
            let changed = *last != inventory;
            if changed {
                *last = inventory;
            }
            changed
        });
    }

    /// Stores a reading; without new processes the last ones stay.
    fn set_reading(&self, samples: Vec<GpuSample>, processes: Option<Vec<GpuProcess>>) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.at = self.clock.monotonic();
        reading.samples = samples;
        if processes.is_some() {
            reading.processes = processes;
        }
    }

    fn report_gone(&self, gone: &DriverGone) {
        let reading = Reading { at: self.clock.monotonic(), ..Reading::default() };
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
        let missing = GpuInventory { unavailable: gone.0.clone(), ..GpuInventory::default() };
        let changed = self.inventory.send_if_modified(|last| {
            let changed = *last != missing;
            if changed {
                *last = missing;
            }
            changed
        });
        if changed {
            tracing::warn!(error = %gone, "no card can be read; the agent keeps trying");
        }
    }
}

/// Waits for `pause`; true when the probe was dropped meanwhile.
fn is_stopped(stopped: &Receiver<()>, pause: Duration) -> bool {
    !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
}

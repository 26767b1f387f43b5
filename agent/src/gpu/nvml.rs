//! Reading cards by NVML: the only file that imports its binding.
//!
//! Every call blocks inside the driver, so only the thread of `gpu/collector.rs` comes here. One bad
//! card does not stop the others: what a card does not support is asked once and then left absent,
//! and a failure of the card itself becomes its `sick` text.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nvml_wrapper::enum_wrappers::device::{TemperatureSensor, TopologyLevel};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use tianqi_common::unit::{GpuMemoryMib, MIB};
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::{GpuCard, GpuInventory, GpuLink, LinkKind};
use tianqi_common::wire::telemetry::GpuSample;

use super::GpuProcess;
use super::pci::{Wires, numa_node, pci_key};

/// What the driver installs.
const DEFAULT_LIBRARY: &str = "libnvidia-ml.so.1";
/// `NVML_NVLINK_DEVICE_TYPE_SWITCH`.
const SWITCH: u32 = 2;
/// Most NVLinks of one card that NVML knows.
const MOST_LINKS: u32 = 18;
/// Rounds in which no card says anything before the library is opened anew.
const MOST_SILENT_ROUNDS: u32 = 3;

/// The driver as a whole cannot be used, in words; the library must be opened anew.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DriverGone(pub String);

/// What a failed call says about the world.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// This card will never answer this.
    Unsupported,
    /// The card must not take work.
    Card(String),
    /// No card can be read.
    Driver(String),
    /// It may work next time.
    Passing(String),
}

/// Calls whose answer "not supported" is remembered for a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Metric {
    Utilisation,
    MemoryV2,
    MemoryV1,
    Temperature,
    Power,
    ComputeProcesses,
    GraphicsProcesses,
}

/// One card and what was learned of it.
#[derive(Debug)]
struct Known {
    card: GpuCard,
    unsupported: BTreeSet<Metric>,
}

/// Memory of a card in bytes.
struct Memory {
    total: u64,
    reserved: u64,
    used: u64,
}

/// An opened NVML. Dropping it lets the driver go.
#[derive(Debug)]
pub struct Library {
    nvml: Nvml,
    sysfs: PathBuf,
    known: Vec<Known>,
    links: Vec<GpuLink>,
    silent_rounds: u32,
}

impl Library {
    /// Opens the library at `path`, or the driver's own where there is none. `sysfs` is `/sys`.
    ///
    /// # Errors
    ///
    /// [`DriverGone`] when the library or the driver is missing or refuses.
    pub fn open(path: Option<&Path>, sysfs: &Path) -> Result<Self, DriverGone> {
        let file = path.map_or(OsStr::new(DEFAULT_LIBRARY), Path::as_os_str);
        let nvml = Nvml::builder()
            .lib_path(file)
            .init()
            .map_err(|error| DriverGone(why_not_opened(file, &error)))?;
        let sysfs = sysfs.to_owned();
        Ok(Self { nvml, sysfs, known: Vec::new(), links: Vec::new(), silent_rounds: 0 })
    }

    /// Reads what the cards are. A card of `previous` that is lost stays in the answer, as sick.
    ///
    /// # Errors
    ///
    /// [`DriverGone`] when no card can be read any more.
    pub fn read_inventory(&mut self, previous: &[GpuCard]) -> Result<GpuInventory, DriverGone> {
        let count = self.nvml.device_count().map_err(|error| gone(&error))?;
        let mut known = Vec::new();
        let mut lost = Vec::new();
        for index in 0..count {
            match self.read_card(index) {
                Ok(card) => known.push(Known { unsupported: self.unsupported(&card.uuid), card }),
                Err(Failure::Driver(reason)) => return Err(DriverGone(reason)),
                Err(Failure::Card(reason) | Failure::Passing(reason)) => lost.push((index, reason)),
                Err(Failure::Unsupported) => lost.push((index, "it has no uuid".to_owned())),
            }
        }
        for (index, reason) in lost {
            let seen =
                |card: &&GpuCard| known.iter().any(|known: &Known| known.card.uuid == card.uuid);
            let Some(card) = previous.iter().find(|card| card.index == index && !seen(card)) else {
                tracing::warn!(
                    error = reason,
                    "card {index} cannot be read, and its uuid is not known"
                );
                continue;
            };
            let card = GpuCard { sick: reason, ..card.clone() };
            known.push(Known { unsupported: self.unsupported(&card.uuid), card });
        }
        known.sort_by(|a, b| a.card.pci_bus_id.cmp(&b.card.pci_bus_id));
        let same_cards =
            known.iter().map(|k| &k.card.uuid).eq(self.known.iter().map(|k| &k.card.uuid));
        self.known = known;
        if !same_cards {
            self.links = self.read_links();
        }
        Ok(self.inventory())
    }

    /// Returns the inventory as the last reads left it.
    #[must_use]
    pub fn inventory(&self) -> GpuInventory {
        let cuda = self.nvml.sys_cuda_driver_version().unwrap_or(0);
        GpuInventory {
            unavailable: String::new(),
            simulated: false,
            driver_version: self.nvml.sys_driver_version().unwrap_or_default(),
            cuda_version: format!("{}.{}", cuda / 1000, cuda % 1000 / 10),
            cards: self.known.iter().map(|known| known.card.clone()).collect(),
            links: self.links.clone(),
        }
    }

    /// Reads the numbers of every card, and notes which cards turned sick or well.
    ///
    /// # Errors
    ///
    /// [`DriverGone`] when no card can be read any more.
    pub fn read_samples(&mut self) -> Result<Vec<GpuSample>, DriverGone> {
        let mut samples = Vec::new();
        let mut answered = self.known.is_empty();
        for known in &mut self.known {
            match read_sample(&self.nvml, known) {
                Ok(sample) => {
                    answered |= says_something(&sample);
                    known.card.sick.clear();
                    samples.push(sample);
                }
                Err(Failure::Driver(reason)) => return Err(DriverGone(reason)),
                Err(Failure::Card(reason)) => {
                    answered = true;
                    known.card.sick = reason;
                }
                Err(Failure::Passing(_) | Failure::Unsupported) => {}
            }
        }
        self.silent_rounds = if answered { 0 } else { self.silent_rounds.saturating_add(1) };
        if self.silent_rounds >= MOST_SILENT_ROUNDS {
            return Err(DriverGone("no card answers any question".to_owned()));
        }
        Ok(samples)
    }

    /// Reads the processes on all cards.
    ///
    /// # Errors
    ///
    /// [`DriverGone`] when no card can be read any more.
    pub fn read_processes(&mut self) -> Result<Vec<GpuProcess>, DriverGone> {
        let mut found = Vec::new();
        for known in &mut self.known {
            match read_card_processes(&self.nvml, known) {
                Ok(processes) => found.extend(processes),
                Err(Failure::Driver(reason)) => return Err(DriverGone(reason)),
                Err(Failure::Card(_) | Failure::Passing(_) | Failure::Unsupported) => {}
            }
        }
        Ok(found)
    }

    fn unsupported(&self, uuid: &GpuUuid) -> BTreeSet<Metric> {
        let known = self.known.iter().find(|known| known.card.uuid == *uuid);
        known.map(|known| known.unsupported.clone()).unwrap_or_default()
    }

    fn read_card(&self, index: u32) -> Result<GpuCard, Failure> {
        let device = self.nvml.device_by_index(index).map_err(|error| failure(&error))?;
        let uuid = device.uuid().map_err(|error| failure(&error))?;
        let pci_bus_id = device.pci_info().map_err(|error| failure(&error))?.bus_id;
        let mut unsupported = BTreeSet::new();
        let (memory, sick) = match read_memory(&device, &mut unsupported) {
            Ok(memory) => (memory, String::new()),
            Err(Failure::Driver(reason)) => return Err(Failure::Driver(reason)),
            Err(Failure::Card(reason)) => return Err(Failure::Card(reason)),
            Err(Failure::Passing(reason)) => {
                (None, format!("its memory size cannot be read: {reason}"))
            }
            Err(Failure::Unsupported) => (None, String::new()),
        };
        let memory = memory.unwrap_or(Memory { total: 0, reserved: 0, used: 0 });
        Ok(GpuCard {
            uuid: GpuUuid(uuid),
            index,
            model: device.name().unwrap_or_else(|_| "unknown".to_owned()),
            memory_total: GpuMemoryMib(memory.total / MIB),
            memory_reserved: GpuMemoryMib(memory.reserved.div_ceil(MIB)),
            numa_node: numa_node(&self.sysfs, &pci_bus_id),
            pci_bus_id,
            minor: device.minor_number().ok(),
            sick,
            mig_enabled: device.mig_mode().is_ok_and(|mode| mode.current == 1),
        })
    }

    fn read_links(&self) -> Vec<GpuLink> {
        let wired: Vec<Wires> = self.known.iter().map(|known| self.wires(known)).collect();
        let mut links = Vec::new();
        for (position, (a, wires_a)) in self.known.iter().zip(&wired).enumerate() {
            for (b, wires_b) in self.known.iter().zip(&wired).skip(position.saturating_add(1)) {
                links.push(GpuLink {
                    a: a.card.uuid.clone(),
                    b: b.card.uuid.clone(),
                    kind: self.distance(&a.card, &b.card),
                    nvlinks: wires_a.between(&a.card, wires_b, &b.card),
                });
            }
        }
        links
    }

    /// Returns how far two cards are apart; the farthest where the driver does not tell.
    fn distance(&self, a: &GpuCard, b: &GpuCard) -> LinkKind {
        let level = self.nvml.device_by_index(a.index).and_then(|from| {
            let to = self.nvml.device_by_index(b.index)?;
            from.topology_common_ancestor(to)
        });
        match level {
            Ok(TopologyLevel::Internal) => LinkKind::SameBoard,
            Ok(TopologyLevel::Single) => LinkKind::SingleSwitch,
            Ok(TopologyLevel::Multiple) => LinkKind::MultipleSwitches,
            Ok(TopologyLevel::HostBridge) => LinkKind::HostBridge,
            Ok(TopologyLevel::Node) => LinkKind::SameNuma,
            Ok(TopologyLevel::System) | Err(_) => LinkKind::CrossCpu,
        }
    }

    fn wires(&self, known: &Known) -> Wires {
        let mut wires = Wires::default();
        let Ok(device) = self.nvml.device_by_index(known.card.index) else { return wires };
        for number in 0..MOST_LINKS {
            let link = device.link_wrapper_for(number);
            match link.is_active() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => break,
            }
            if leads_to_switch(&device, number) {
                wires.to_switch = wires.to_switch.saturating_add(1);
            } else if let Ok(remote) = link.remote_pci_info() {
                let count = wires.to_card.entry(pci_key(&remote.bus_id)).or_default();
                *count = count.saturating_add(1);
            }
        }
        wires
    }
}

fn says_something(sample: &GpuSample) -> bool {
    sample.utilisation_percent.is_some()
        || sample.memory_used_bytes.is_some()
        || sample.temperature_c.is_some()
        || sample.power_mw.is_some()
}

fn read_sample(nvml: &Nvml, known: &mut Known) -> Result<GpuSample, Failure> {
    let device = nvml.device_by_index(known.card.index).map_err(|error| failure(&error))?;
    let cache = &mut known.unsupported;
    let utilisation = ask(cache, Metric::Utilisation, || device.utilization_rates())?;
    let temperature =
        ask(cache, Metric::Temperature, || device.temperature(TemperatureSensor::Gpu))?;
    let power = ask(cache, Metric::Power, || device.power_usage())?;
    let memory = match read_memory(&device, cache) {
        Ok(memory) => memory,
        Err(Failure::Passing(_) | Failure::Unsupported) => None,
        Err(other) => return Err(other),
    };
    Ok(GpuSample {
        uuid: known.card.uuid.clone(),
        utilisation_percent: utilisation.map(|rates| rates.gpu),
        memory_used_bytes: memory.map(|memory| memory.used),
        temperature_c: temperature,
        power_mw: power,
    })
}

/// Asks a card one thing. What it does not support, or cannot say this time, is absent.
fn ask<T>(
    unsupported: &mut BTreeSet<Metric>,
    metric: Metric,
    read: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<Option<T>, Failure> {
    if unsupported.contains(&metric) {
        return Ok(None);
    }
    match read().map_err(|error| failure(&error)) {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Unsupported) => {
            unsupported.insert(metric);
            Ok(None)
        }
        Err(Failure::Passing(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Reads the memory of a card: by the second version of the call, which tells what the driver
/// reserves, and by the first one on drivers before 510.
fn read_memory(
    device: &Device<'_>,
    unsupported: &mut BTreeSet<Metric>,
) -> Result<Option<Memory>, Failure> {
    if !unsupported.contains(&Metric::MemoryV2) {
        match device.memory_info().map_err(|error| failure(&error)) {
            Ok(info) => {
                let (total, reserved, used) = (info.total, info.reserved, info.used);
                return Ok(Some(Memory { total, reserved, used }));
            }
            Err(Failure::Unsupported) => {
                unsupported.insert(Metric::MemoryV2);
            }
            Err(other) => return Err(other),
        }
    }
    if unsupported.contains(&Metric::MemoryV1) {
        return Ok(None);
    }
    match read_memory_v1(device).map_err(|error| failure(&error)) {
        Ok(memory) => Ok(Some(memory)),
        Err(Failure::Unsupported) => {
            unsupported.insert(Metric::MemoryV1);
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

#[allow(unsafe_code, reason = "the binding wraps only the second version of this call")]
fn read_memory_v1(device: &Device<'_>) -> Result<Memory, NvmlError> {
    let library = device.nvml().lib();
    let Ok(call) = library.nvmlDeviceGetMemoryInfo.as_ref() else {
        return Err(NvmlError::NotSupported);
    };
    // SAFETY: the handle comes from the same library, and the out parameter is a plain C struct of
    // integers, for which all zeroes is a value.
    let (code, info) = unsafe {
        let mut info = std::mem::zeroed();
        (call(device.handle(), &raw mut info), info)
    };
    nvml_wrapper::error::nvml_try(code)?;
    Ok(Memory { total: info.total, reserved: 0, used: info.used })
}

/// Returns whether an NVLink ends at a switch. The binding's own call answers "unknown" always
/// (nvml-wrapper 0.13 lets NVML write into a copy that it then drops).
#[allow(unsafe_code, reason = "the binding's wrapper of this call loses the answer")]
fn leads_to_switch(device: &Device<'_>, link: u32) -> bool {
    let library = device.nvml().lib();
    let Ok(call) = library.nvmlDeviceGetNvLinkRemoteDeviceType.as_ref() else { return false };
    let mut kind = u32::MAX;
    // SAFETY: the handle comes from the same library, and the out parameter is an unsigned integer.
    let code = unsafe { call(device.handle(), link, &raw mut kind) };
    nvml_wrapper::error::nvml_try(code).is_ok() && kind == SWITCH
}

fn read_card_processes(nvml: &Nvml, known: &mut Known) -> Result<Vec<GpuProcess>, Failure> {
    let device = nvml.device_by_index(known.card.index).map_err(|error| failure(&error))?;
    let cache = &mut known.unsupported;
    let compute = ask(cache, Metric::ComputeProcesses, || device.running_compute_processes())?;
    let graphics = ask(cache, Metric::GraphicsProcesses, || device.running_graphics_processes())?;
    let mut by_pid: BTreeMap<u32, u64> = BTreeMap::new();
    for process in compute.into_iter().chain(graphics).flatten() {
        let used = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        // A process that computes and draws stands in both lists with the same number.
        let held = by_pid.entry(process.pid).or_default();
        *held = (*held).max(used);
    }
    let uuid = &known.card.uuid;
    Ok(by_pid
        .into_iter()
        .map(|(pid, used_bytes)| GpuProcess { uuid: uuid.clone(), pid, used_bytes })
        .collect())
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else the binding has may pass by itself"
)]
fn failure(error: &NvmlError) -> Failure {
    match error {
        // 25 is NVML_ERROR_ARGUMENT_VERSION_MISMATCH, which the binding has no word for.
        NvmlError::NotSupported
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::FunctionNotFound
        | NvmlError::UnexpectedVariant(25) => Failure::Unsupported,
        NvmlError::GpuLost
        | NvmlError::ResetRequired
        | NvmlError::IrqIssue
        | NvmlError::InsufficientPower
        | NvmlError::CorruptedInfoROM => Failure::Card(error.to_string()),
        NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch => {
            Failure::Driver(in_words(error))
        }
        other => Failure::Passing(other.to_string()),
    }
}

fn gone(error: &NvmlError) -> DriverGone {
    DriverGone(in_words(error))
}

fn why_not_opened(file: &OsStr, error: &NvmlError) -> String {
    if let NvmlError::LibloadingError(error) = error {
        let file = file.to_string_lossy();
        let detail =
            std::error::Error::source(error).map_or(error.to_string(), ToString::to_string);
        return format!("no NVIDIA driver: {file} cannot be loaded ({detail})");
    }
    in_words(error)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the binding's own words serve the others")]
fn in_words(error: &NvmlError) -> String {
    match error {
        NvmlError::DriverNotLoaded => "the NVIDIA kernel module is not loaded".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA library and the loaded kernel module differ in version: reboot, or reload \
             the module"
                .to_owned()
        }
        NvmlError::NoPermission => "the agent may not open the NVIDIA devices".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_told_in_words() {
        let Err(gone) =
            Library::open(Some(Path::new("/nonexistent/libnvidia-ml.so.1")), Path::new("/sys"))
        else {
            panic!("opened a library that does not exist");
        };

        assert!(gone.0.contains("/nonexistent/libnvidia-ml.so.1"), "{gone}");
        assert!(gone.0.contains("no NVIDIA driver"), "{gone}");
    }
}

//! The machine that the JSON file describes.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;

/// Everything a test can say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// NVML's code that every call answers, such as 9 for a driver that is not loaded.
    pub driver_error: Option<u32>,
    /// Such as `550.54.15`.
    pub driver_version: String,
    /// Such as 12040.
    pub cuda_version: i32,
    /// The cards, by index.
    pub cards: Vec<Card>,
    /// How near pairs of cards are; pairs that are not named are `system` apart.
    pub topology: Vec<Pair>,
}

/// One card.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Card {
    /// Such as `GPU-00000000-0000-0000-0000-000000000001`.
    pub uuid: String,
    /// Such as `NVIDIA L40`.
    pub name: String,
    /// Such as `00000000:3B:00.0`.
    pub pci_bus_id: String,
    /// Minor number of its device file.
    pub minor: u32,
    /// All memory, in MiB.
    pub memory_total_mib: u64,
    /// What the driver keeps, in MiB.
    pub memory_reserved_mib: u64,
    /// What processes hold, in MiB.
    pub memory_used_mib: u64,
    /// Percent.
    pub utilisation: u32,
    /// Degrees Celsius.
    pub temperature: u32,
    /// Milliwatts.
    pub power_mw: u32,
    /// Whether MIG is on; a card without this does not support MIG.
    pub mig: Option<bool>,
    /// Processes on the card.
    pub processes: Vec<Process>,
    /// Active NVLinks, by number.
    pub nvlinks: Vec<Wire>,
    /// Whether it fell off the bus: every call about it answers GPU_IS_LOST.
    pub lost: bool,
    /// Names of calls that answer NOT_SUPPORTED.
    pub unsupported: BTreeSet<String>,
    /// Name of a call and the code that it answers.
    pub errors: std::collections::BTreeMap<String, u32>,
}

/// One process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Bytes that it holds; absent means that the driver does not tell.
    pub used_bytes: Option<u64>,
    /// Whether it draws instead of computing.
    pub graphics: bool,
}

/// One NVLink.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wire {
    /// The card at the other end; empty for a switch.
    pub remote_pci_bus_id: String,
}

/// How near two cards are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// One index.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// NVML's number: 0 same board, 10 one switch, 20 several, 30 host bridge, 40 node, 50 system.
    pub level: u32,
}

struct Loaded {
    stamp: Option<(SystemTime, u64)>,
    machine: Option<Machine>,
    initialised: bool,
}

static LOADED: Mutex<Loaded> =
    Mutex::new(Loaded { stamp: None, machine: None, initialised: false });

fn loaded() -> MutexGuard<'static, Loaded> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that NVML was opened or closed.
pub fn set_initialised(initialised: bool) {
    loaded().initialised = initialised;
}

/// Returns whether NVML was opened.
pub fn is_initialised() -> bool {
    loaded().initialised
}

/// Returns the machine as the file describes it; `None` when there is no readable file.
pub fn machine() -> Option<Machine> {
    let mut loaded = loaded();
    let stamp = file()
        .and_then(|file| std::fs::metadata(file).ok())
        .and_then(|data| Some((data.modified().ok()?, data.len())));
    if stamp.is_none() || stamp != loaded.stamp {
        loaded.machine = read();
        loaded.stamp = stamp;
    }
    loaded.machine.clone()
}

fn read() -> Option<Machine> {
    let text = std::fs::read(file()?).ok()?;
    serde_json::from_slice(&text).inspect_err(|error| eprintln!("fake nvml: {error}")).ok()
}

/// Returns the file that `TIANQI_FAKE_NVML` names, or `cards.json` beside this library: copies of
/// the library in several folders describe several machines inside one process.
#[allow(clippy::disallowed_methods, reason = "this library has no configuration but this variable")]
fn file() -> Option<PathBuf> {
    if let Ok(path) = std::env::var("TIANQI_FAKE_NVML") {
        return Some(PathBuf::from(path));
    }
    Some(own_path()?.parent()?.join("cards.json"))
}

#[allow(unsafe_code, reason = "only the dynamic loader knows where a library was loaded from")]
fn own_path() -> Option<PathBuf> {
    let address: *const c_void = (own_path as fn() -> Option<PathBuf>) as *const c_void;
    // SAFETY: dladdr fills the struct when it answers non-zero, and the name it points to lives as
    // long as the library is loaded, which is as long as this code runs.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(PathBuf::from(OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes())))
    }
}

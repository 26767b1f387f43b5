//! A stand-in for `libnvidia-ml.so.1`: the calls that the agent makes, answered from a JSON file.
//!
//! The file is the one that `TIANQI_FAKE_NVML` names, or `cards.json` beside this library. It is
//! read again whenever it changes, so that a test can warm a card up or let it fall off the bus.
//! Calls that are not exported here fail in the agent as on an old driver.
#![allow(
    non_snake_case,
    unsafe_code,
    clippy::missing_safety_doc,
    reason = "these are C functions with NVML's names and NVML's contracts"
)]

mod state;

use std::ffi::{c_char, c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEnableState_t, nvmlGpuTopologyLevel_t, nvmlIntNvLinkDeviceType_t,
    nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlReturn_t,
    nvmlTemperatureSensors_t, nvmlUtilization_t,
};
use state::{Card, Machine, Process};

const SUCCESS: nvmlReturn_t = 0;
const UNINITIALIZED: nvmlReturn_t = 1;
const INVALID_ARGUMENT: nvmlReturn_t = 2;
const NOT_SUPPORTED: nvmlReturn_t = 3;
const INSUFFICIENT_SIZE: nvmlReturn_t = 7;
const DRIVER_NOT_LOADED: nvmlReturn_t = 9;
const GPU_IS_LOST: nvmlReturn_t = 15;
const VERSION_MISMATCH: nvmlReturn_t = 25;
const MIB: u64 = 1 << 20;

fn code(result: Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    result.err().unwrap_or(SUCCESS)
}

fn machine() -> Result<Machine, nvmlReturn_t> {
    if !state::is_initialised() {
        return Err(UNINITIALIZED);
    }
    let machine = state::machine().ok_or(DRIVER_NOT_LOADED)?;
    machine.driver_error.map_or(Ok(machine.clone()), Err)
}

/// Returns the card behind `device` for the call named `call`, or the fault that the file asks for.
fn card(device: nvmlDevice_t, call: &str) -> Result<Card, nvmlReturn_t> {
    // A handle is the card's index plus one, so that none is null.
    let index = (device as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    let card = machine()?.cards.get(index).cloned().ok_or(INVALID_ARGUMENT)?;
    if card.lost {
        return Err(GPU_IS_LOST);
    }
    if card.unsupported.contains(call) {
        return Err(NOT_SUPPORTED);
    }
    card.errors.get(call).map_or(Ok(card.clone()), |code| Err(*code))
}

/// Writes `value` where C asked for it.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), nvmlReturn_t> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: the caller owns a place for one `T`, as NVML's contract says.
    unsafe { to.write(value) };
    Ok(())
}

unsafe fn put_text(to: *mut c_char, length: usize, text: &str) -> Result<(), nvmlReturn_t> {
    if to.is_null() || text.len() >= length {
        return Err(INSUFFICIENT_SIZE);
    }
    for (offset, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: the buffer holds `length` bytes, and text with its end is not longer.
        unsafe { to.add(offset).write(byte.cast_signed()) };
    }
    Ok(())
}

fn pci(bus_id: &str) -> nvmlPciInfo_t {
    let mut text = [0; 32];
    for (to, from) in text.iter_mut().take(31).zip(bus_id.bytes()) {
        *to = from.cast_signed();
    }
    let mut legacy = [0; 16];
    legacy.copy_from_slice(text.first_chunk::<16>().unwrap_or(&[0; 16]));
    let hexadecimal =
        |part: Option<&str>| part.and_then(|part| u32::from_str_radix(part, 16).ok()).unwrap_or(0);
    let mut parts = bus_id.split([':', '.']);
    nvmlPciInfo_t {
        busIdLegacy: legacy,
        domain: hexadecimal(parts.next()),
        bus: hexadecimal(parts.next()),
        device: hexadecimal(parts.next()),
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: text,
    }
}

/// Opens NVML.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    state::set_initialised(true);
    let opened = machine().map(|_| ());
    state::set_initialised(opened.is_ok());
    code(opened)
}

/// Closes NVML.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    state::set_initialised(false);
    SUCCESS
}

/// Writes the driver's version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(
    to: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    code(
        machine()
            .and_then(|machine| unsafe { put_text(to, length as usize, &machine.driver_version) }),
    )
}

/// Writes the newest CUDA version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> nvmlReturn_t {
    code(machine().and_then(|machine| unsafe { put(to, machine.cuda_version) }))
}

/// Writes the number of cards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> nvmlReturn_t {
    code(machine().and_then(|machine| {
        let count = u32::try_from(machine.cards.len()).unwrap_or(u32::MAX);
        unsafe { put(to, count) }
    }))
}

/// Writes the handle of a card.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    code(machine().and_then(|machine| {
        let position = index as usize;
        if position >= machine.cards.len() {
            return Err(INVALID_ARGUMENT);
        }
        unsafe { put(to, (position + 1) as nvmlDevice_t) }
    }))
}

/// Defines a call about one card.
macro_rules! of_card {
    ($(#[$doc:meta])* $name:ident($card:ident, $($argument:ident: $kind:ty),*) $body:block) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, $($argument: $kind),*) -> nvmlReturn_t {
            code(card(device, stringify!($name)).and_then(|$card| unsafe { $body }))
        }
    };
}

of_card! {
    /// Writes the uuid.
    nvmlDeviceGetUUID(card, to: *mut c_char, length: c_uint) { put_text(to, length as usize, &card.uuid) }
}
of_card! {
    /// Writes the model.
    nvmlDeviceGetName(card, to: *mut c_char, length: c_uint) { put_text(to, length as usize, &card.name) }
}
of_card! {
    /// Writes the PCI address.
    nvmlDeviceGetPciInfo_v3(card, to: *mut nvmlPciInfo_t) { put(to, pci(&card.pci_bus_id)) }
}
of_card! {
    /// Writes the minor number.
    nvmlDeviceGetMinorNumber(card, to: *mut c_uint) { put(to, card.minor) }
}
of_card! {
    /// Writes the memory, with what the driver keeps.
    nvmlDeviceGetMemoryInfo_v2(card, to: *mut nvmlMemory_v2_t) {
        let version = u32::try_from(size_of::<nvmlMemory_v2_t>()).unwrap_or(0) | (2 << 24);
        if to.is_null() || (*to).version != version {
            return Err(VERSION_MISMATCH);
        }
        let (total, reserved, used) = memory(&card);
        put(to, nvmlMemory_v2_t { version, total, reserved, free: total.saturating_sub(reserved + used), used })
    }
}
of_card! {
    /// Writes the memory; what the driver keeps counts as used.
    nvmlDeviceGetMemoryInfo(card, to: *mut nvmlMemory_t) {
        let (total, reserved, used) = memory(&card);
        let used = used + reserved;
        put(to, nvmlMemory_t { total, free: total.saturating_sub(used), used })
    }
}
of_card! {
    /// Writes how busy the card is.
    nvmlDeviceGetUtilizationRates(card, to: *mut nvmlUtilization_t) {
        put(to, nvmlUtilization_t { gpu: card.utilisation, memory: 0 })
    }
}
of_card! {
    /// Writes the temperature.
    nvmlDeviceGetTemperature(card, _sensor: nvmlTemperatureSensors_t, to: *mut c_uint) { put(to, card.temperature) }
}
of_card! {
    /// Writes the power draw.
    nvmlDeviceGetPowerUsage(card, to: *mut c_uint) { put(to, card.power_mw) }
}
of_card! {
    /// Writes the processes that compute.
    nvmlDeviceGetComputeRunningProcesses_v3(card, count: *mut c_uint, to: *mut nvmlProcessInfo_t) {
        put_processes(card.processes.iter().filter(|process| !process.graphics), count, to)
    }
}
of_card! {
    /// Writes the processes that draw.
    nvmlDeviceGetGraphicsRunningProcesses_v3(card, count: *mut c_uint, to: *mut nvmlProcessInfo_t) {
        put_processes(card.processes.iter().filter(|process| process.graphics), count, to)
    }
}
of_card! {
    /// Writes whether MIG is on, now and after a reset.
    nvmlDeviceGetMigMode(card, current: *mut c_uint, pending: *mut c_uint) {
        let mode = u32::from(card.mig.ok_or(NOT_SUPPORTED)?);
        put(current, mode)?;
        put(pending, mode)
    }
}
of_card! {
    /// Writes whether an NVLink is up.
    nvmlDeviceGetNvLinkState(card, link: c_uint, to: *mut nvmlEnableState_t) {
        if card.nvlinks.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        put(to, u32::from(card.nvlinks.get(link as usize).is_some()))
    }
}
of_card! {
    /// Writes what stands at the other end of an NVLink: 0 is a card, 2 is a switch.
    nvmlDeviceGetNvLinkRemoteDeviceType(card, link: c_uint, to: *mut nvmlIntNvLinkDeviceType_t) {
        let wire = card.nvlinks.get(link as usize).ok_or(INVALID_ARGUMENT)?;
        put(to, if wire.remote_pci_bus_id.is_empty() { 2 } else { 0 })
    }
}
of_card! {
    /// Writes the address of the card at the other end of an NVLink.
    nvmlDeviceGetNvLinkRemotePciInfo_v2(card, link: c_uint, to: *mut nvmlPciInfo_t) {
        let wire = card.nvlinks.get(link as usize).ok_or(INVALID_ARGUMENT)?;
        put(to, pci(&wire.remote_pci_bus_id))
    }
}

/// Writes what the path between two cards crosses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: nvmlDevice_t,
    other: nvmlDevice_t,
    to: *mut nvmlGpuTopologyLevel_t,
) -> nvmlReturn_t {
    let call = "nvmlDeviceGetTopologyCommonAncestor";
    code(card(one, call).and_then(|_| card(other, call)).and_then(|_| machine()).and_then(
        |machine| {
            let ends = ((one as usize).wrapping_sub(1), (other as usize).wrapping_sub(1));
            let joins = |a: usize, b: usize| (a, b) == ends || (b, a) == ends;
            let level = machine
                .topology
                .iter()
                .find(|pair| joins(pair.a, pair.b))
                .map_or(50, |pair| pair.level);
            unsafe { put(to, level) }
        },
    ))
}

fn memory(card: &Card) -> (c_ulonglong, c_ulonglong, c_ulonglong) {
    (card.memory_total_mib * MIB, card.memory_reserved_mib * MIB, card.memory_used_mib * MIB)
}

unsafe fn put_processes<'a>(
    processes: impl Iterator<Item = &'a Process>,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> Result<(), nvmlReturn_t> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let processes: Vec<nvmlProcessInfo_t> = processes
        .map(|process| nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.used_bytes.unwrap_or(c_ulonglong::MAX),
            gpuInstanceId: c_uint::MAX,
            computeInstanceId: c_uint::MAX,
        })
        .collect();
    let needed = u32::try_from(processes.len()).unwrap_or(u32::MAX);
    // SAFETY: `count` was checked, and the caller says by it how many entries `to` holds.
    unsafe {
        let room = *count;
        *count = needed;
        if needed > room {
            return Err(INSUFFICIENT_SIZE);
        }
        for (offset, process) in processes.into_iter().enumerate() {
            put(to.add(offset), process)?;
        }
    }
    Ok(())
}

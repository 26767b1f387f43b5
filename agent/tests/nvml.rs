//! The agent's own NVML code, over the library of `tests/fake-nvml`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tianqi_agent::gpu::collector::{NvmlConfig, NvmlProbe};
use tianqi_agent::gpu::{GpuProbe, GpuProcess};
use tianqi_common::clock::{ManualClock, SystemClock, UnixMillis};
use tianqi_common::unit::GpuMemoryMib;
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::{GpuInventory, LinkKind};

/// Longest wait for a reading that must come.
const SOON: Duration = Duration::from_secs(10);

/// A machine of its own: a copy of the fake library with its cards beside it.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(cards: &Value) -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::copy(built_library(), machine.library()).unwrap();
        machine.becomes(cards);
        machine
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    /// Replaces the cards. The library looks for a new file on its next call.
    fn becomes(&self, cards: &Value) {
        let next = self.dir.path().join("next.json");
        std::fs::write(&next, serde_json::to_vec(cards).unwrap()).unwrap();
        std::fs::rename(next, self.dir.path().join("cards.json")).unwrap();
    }

    fn probe(&self) -> NvmlProbe {
        NvmlProbe::start(self.config(), SystemClock::shared()).unwrap()
    }

    fn config(&self) -> NvmlConfig {
        let sysfs = self.dir.path().join("sys");
        NvmlConfig { library: Some(self.library()), interval: Duration::from_millis(20), sysfs }
    }
}

fn built_library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let library = tests.ancestors().nth(2).unwrap().join("libtianqi_fake_nvml.so");
    assert!(library.exists(), "{} is missing: cargo build -p tianqi-fake-nvml", library.display());
    library
}

fn card(number: u32) -> Value {
    json!({
        "uuid": format!("GPU-00000000-0000-0000-0000-{number:012}"),
        "name": "NVIDIA L40",
        "pci_bus_id": format!("00000000:{:02X}:00.0", 0x3a + number),
        "minor": number,
        "memory_total_mib": 46068, "memory_reserved_mib": 600, "memory_used_mib": 1024,
        "utilisation": 17, "temperature": 41, "power_mw": 81000,
    })
}

fn uuid(number: u32) -> GpuUuid {
    GpuUuid(format!("GPU-00000000-0000-0000-0000-{number:012}"))
}

fn with(mut card: Value, more: &Value) -> Value {
    card.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    card
}

fn machine_of(cards: &[Value]) -> Value {
    json!({ "driver_version": "550.54.15", "cuda_version": 12040, "cards": cards })
}

async fn until(probe: &NvmlProbe, holds: impl FnMut(&GpuInventory) -> bool) -> GpuInventory {
    let mut watch = probe.watch();
    let found = tokio::time::timeout(SOON, watch.wait_for(holds)).await;
    let last = probe.inventory();
    found.unwrap_or_else(|_| panic!("never came; last was {last:?}")).unwrap().clone()
}

/// Polls until `read` gives something.
async fn soon<T>(mut read: impl FnMut() -> Option<T>) -> T {
    let polled = async {
        loop {
            if let Some(value) = read() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, polled).await.unwrap()
}

#[tokio::test]
async fn inventory_tells_every_fact_of_every_card() {
    let machine = Machine::new(&json!({
        "driver_version": "550.54.15", "cuda_version": 12040,
        "cards": [
            with(card(2), &json!({"mig": true, "nvlinks": [{"remote_pci_bus_id": "00000000:3B:00.0"}, {}]})),
            with(card(1), &json!({"nvlinks": [{"remote_pci_bus_id": "00000000:3C:00.0"}, {}, {}]})),
            card(3),
        ],
        "topology": [{"a": 0, "b": 1, "level": 10}, {"a": 1, "b": 2, "level": 40}],
    }));
    let numa = machine.dir.path().join("sys/bus/pci/devices/0000:3b:00.0");
    std::fs::create_dir_all(&numa).unwrap();
    std::fs::write(numa.join("numa_node"), "1\n").unwrap();

    let found = until(&machine.probe(), |found| found.cards.len() == 3).await;

    assert_eq!(found.unavailable, "");
    assert_eq!((found.driver_version.as_str(), found.cuda_version.as_str()), ("550.54.15", "12.4"));
    let order: Vec<_> = found.cards.iter().map(|card| card.uuid.clone()).collect();
    assert_eq!(order, [uuid(1), uuid(2), uuid(3)], "cards stand in PCI order");
    let first = &found.cards[0];
    assert_eq!((first.index, first.minor, first.numa_node), (1, Some(1), Some(1)));
    assert_eq!(first.memory_total, GpuMemoryMib(46_068));
    assert_eq!(first.memory_reserved, GpuMemoryMib(600));
    assert!(!first.mig_enabled && found.cards[1].mig_enabled);
    let links: Vec<_> = found.links.iter().map(|link| (link.kind, link.nvlinks)).collect();
    assert_eq!(
        links,
        [(LinkKind::SingleSwitch, 2), (LinkKind::SameNuma, 0), (LinkKind::CrossCpu, 0)]
    );
}

#[tokio::test]
async fn a_lost_card_turns_sick_and_the_others_go_on() {
    let machine = Machine::new(&machine_of(&[card(1), card(2)]));
    let probe = machine.probe();
    until(&probe, |found| found.cards.len() == 2).await;

    machine.becomes(&machine_of(&[with(card(1), &json!({"lost": true})), card(2)]));
    let found = until(&probe, |found| found.cards.iter().any(|card| !card.sick.is_empty())).await;
    assert_eq!(found.cards.len(), 2);
    assert!(found.cards[0].sick.contains("fell off the bus"), "{}", found.cards[0].sick);
    assert_eq!(found.cards[1].sick, "");
    let samples = soon(|| Some(probe.sample()).filter(|samples| samples.len() == 1)).await;
    assert_eq!(samples[0].uuid, uuid(2));

    machine.becomes(&machine_of(&[card(1), card(2)]));
    until(&probe, |found| found.cards.iter().all(|card| card.sick.is_empty())).await;
}

#[tokio::test]
async fn a_card_that_is_lost_while_the_driver_restarts_keeps_its_name() {
    let machine = Machine::new(&machine_of(&[card(1), card(2)]));
    let probe = machine.probe();
    until(&probe, |found| found.cards.len() == 2).await;

    machine.becomes(&json!({"driver_error": 9}));
    let gone = until(&probe, |found| !found.unavailable.is_empty()).await;
    assert_eq!(gone.unavailable, "the NVIDIA kernel module is not loaded");
    assert!(gone.cards.is_empty());

    machine.becomes(&machine_of(&[card(1), with(card(2), &json!({"lost": true}))]));
    let back = until(&probe, |found| found.cards.len() == 2).await;
    assert_eq!(back.cards[1].uuid, uuid(2));
    assert!(!back.cards[1].sick.is_empty());
}

#[tokio::test]
async fn the_agent_waits_for_a_driver_that_comes_later() {
    let machine = Machine::new(&json!({"driver_error": 18}));
    let probe = machine.probe();

    let gone = until(&probe, |found| found.unavailable.contains("differ in version")).await;
    assert!(gone.cards.is_empty());
    assert!(probe.sample().is_empty());
    assert_eq!(probe.processes(), None);

    machine.becomes(&machine_of(&[card(1)]));
    until(&probe, |found| found.unavailable.is_empty() && found.cards.len() == 1).await;
}

#[tokio::test]
async fn what_a_card_does_not_support_is_absent() {
    let machine = Machine::new(&machine_of(&[with(
        card(1),
        &json!({"unsupported": ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates"]}),
    )]));
    let probe = machine.probe();

    let samples = soon(|| Some(probe.sample()).filter(|samples| !samples.is_empty())).await;

    assert_eq!(samples[0].power_mw, None);
    assert_eq!(samples[0].utilisation_percent, None);
    assert_eq!(samples[0].temperature_c, Some(41));
    assert_eq!(samples[0].memory_used_bytes, Some(1024 << 20));
}

#[tokio::test]
async fn an_old_driver_tells_memory_by_the_first_version_of_the_call() {
    let machine = Machine::new(&machine_of(&[with(
        card(1),
        &json!({"errors": {"nvmlDeviceGetMemoryInfo_v2": 13}}),
    )]));
    let probe = machine.probe();

    let found = until(&probe, |found| found.cards.len() == 1).await;

    assert_eq!(found.cards[0].memory_total, GpuMemoryMib(46_068));
    assert_eq!(found.cards[0].memory_reserved, GpuMemoryMib(0));
    assert_eq!(found.cards[0].sick, "");
}

#[tokio::test]
async fn a_card_that_needs_a_reset_is_sick() {
    let machine = Machine::new(&machine_of(&[with(
        card(1),
        &json!({"errors": {"nvmlDeviceGetTemperature": 16}}),
    )]));
    let probe = machine.probe();

    let found = until(&probe, |found| found.cards.iter().any(|card| !card.sick.is_empty())).await;

    assert!(found.cards[0].sick.contains("reset"), "{}", found.cards[0].sick);
}

#[tokio::test]
async fn processes_of_all_cards_are_listed_once_each() {
    let machine = Machine::new(&machine_of(&[
        with(
            card(1),
            &json!({"processes": [
                {"pid": 100, "used_bytes": 7}, {"pid": 100, "used_bytes": 7, "graphics": true},
                {"pid": 101},
            ]}),
        ),
        with(card(2), &json!({"processes": [{"pid": 100, "used_bytes": 9}]})),
    ]));
    let probe = machine.probe();

    let found = soon(|| probe.processes()).await;

    let on = |number, pid, used_bytes| GpuProcess { uuid: uuid(number), pid, used_bytes };
    assert_eq!(found, [on(1, 100, 7), on(1, 101, 0), on(2, 100, 9)]);
}

#[tokio::test]
async fn a_driver_that_hangs_makes_its_cards_sick() {
    let machine = Machine::new(&machine_of(&[card(1)]));
    let clock = Arc::new(ManualClock::at(UnixMillis(0)));
    let config = NvmlConfig { interval: Duration::from_secs(3600), ..machine.config() };
    let probe = NvmlProbe::start(config, clock.clone()).unwrap();
    until(&probe, |found| found.cards.len() == 1).await;
    soon(|| Some(probe.sample()).filter(|samples| samples.len() == 1)).await;

    clock.advance(Duration::from_secs(7 * 3600));

    assert!(probe.sample().is_empty());
    assert!(probe.inventory().cards[0].sick.contains("has not answered"));
}

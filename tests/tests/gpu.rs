//! The agent's own code over the library of a real driver. Prints what it read.
//!
//! `cargo test -p tianqi-tests --test gpu -- --ignored --nocapture`. One card shows neither NVLink
//! nor distances; a card with MIG off shows no MIG.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this test prints, and fails by panicking"
)]

use std::path::Path;
use std::time::Duration;

use tianqi_agent::gpu::GpuProbe;
use tianqi_agent::gpu::collector::{NvmlConfig, NvmlProbe};
use tianqi_agent::gpu::nvml::Library;
use tianqi_common::clock::{Clock, SystemClock};

#[test]
#[ignore = "needs a real NVIDIA card"]
fn a_real_card_answers_every_question() {
    let clock = SystemClock::new();
    let mut library = Library::open(None, Path::new("/sys")).unwrap();
    let timed = |what: &str, since: Duration| {
        println!("{what} took {:?}", clock.monotonic().saturating_sub(since));
    };

    let since = clock.monotonic();
    let inventory = library.read_inventory(&[]).unwrap();
    timed("inventory", since);
    println!("{inventory:#?}");
    let since = clock.monotonic();
    let samples = library.read_samples().unwrap();
    timed("samples", since);
    println!("{samples:#?}");
    let since = clock.monotonic();
    let processes = library.read_processes().unwrap();
    timed("processes", since);
    println!("{processes:#?}");

    assert_eq!(inventory.unavailable, "");
    assert!(!inventory.driver_version.is_empty() && !inventory.cards.is_empty());
    for card in &inventory.cards {
        assert!(card.uuid.0.starts_with("GPU-"), "{card:?}");
        assert!(card.memory_total.0 > 1024 && card.memory_reserved < card.memory_total, "{card:?}");
        assert_eq!(card.sick, "", "{card:?}");
    }
    assert_eq!(samples.len(), inventory.cards.len());
}

#[tokio::test]
#[ignore = "needs a real NVIDIA card"]
async fn the_collector_brings_real_samples() {
    let probe = NvmlProbe::start(NvmlConfig::default(), SystemClock::shared()).unwrap();
    let mut inventory = probe.watch();

    let read = inventory.wait_for(|found| !found.cards.is_empty());
    let cards =
        tokio::time::timeout(Duration::from_secs(60), read).await.unwrap().unwrap().cards.len();

    println!("{:#?}", probe.sample());
    assert_eq!(probe.sample().len(), cards);
    assert!(probe.processes().is_some());
}

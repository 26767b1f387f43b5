//! Whole paths beside their peers, in one run: `make bench`.
//!
//! Programs under test are the released ones (`TIANQI_TEST_BINARIES`, else built as for tests);
//! engines, folders and ports are of this run alone, and everything ends with it.
//! Arguments are words; only the sections whose name holds one of them run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark prints and stops at the first surprise"
)]

mod admin;
mod crowd;
mod direct;
mod durable;
mod forwards;
mod http;
mod list;
mod logins;
mod machine;
mod proc;
mod report;
mod rows;
mod ssh;
mod terminal;

use std::time::Duration;

use futures_util::FutureExt;
use report::Report;

/// Longest time for one section; all of them together stay under a quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(240);

fn main() {
    tianqi_tests::install_crypto();
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted =
        |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, load before the start {}", load.trim());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut report = Report::default();
    runtime.block_on(async {
        if wanted("controller") {
            section(&mut report, "controller", async |report| list::measure(report).await).await;
        }
        if wanted("logins") {
            section(&mut report, "logins", async |report| logins::measure(report).await).await;
        }
        if wanted("durable") {
            section(&mut report, "durable", async |report| durable::measure(report).await).await;
        }
        if wanted("forwards") {
            section(&mut report, "forwards", async |report| forwards::measure(report).await).await;
        }
        if wanted("ssh") {
            section(&mut report, "ssh", async |report| ssh::measure(report).await).await;
        }
        if wanted("machine") {
            section(&mut report, "machine", async |report| machine::measure(report).await).await;
        }
        if wanted("crowd") {
            section(&mut report, "crowd", async |report| crowd::measure(report).await).await;
        }
    });
    let _ = report.end();
}

/// Runs a section; one that fails or hangs is said not to be measured, and the next one runs.
async fn section(report: &mut Report, name: &str, measure: impl AsyncFnOnce(&mut Report)) {
    let measured = std::panic::AssertUnwindSafe(measure(report)).catch_unwind();
    match tokio::time::timeout(PATIENCE, measured).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => report.not_measured(name, "it failed; the message is above"),
        Err(_) => report.not_measured(name, "it took too long"),
    }
}

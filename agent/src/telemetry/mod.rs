//! Samples: what the machine, its cards and its instances use, read every few seconds.
//!
//! Everything about instances is read from the kernel (control groups, `/proc`), never by asking
//! Docker, so that twenty containers cost milliseconds and a stuck engine costs nothing. Samples wait
//! in a ring that drops the oldest and counts what it dropped.

pub mod batch;
pub mod cgroup;
pub mod host;
pub mod sample;

use std::path::PathBuf;

pub use batch::SampleQueue;
pub use sample::Sampler;
use tianqi_common::id::InstanceId;

/// A running instance to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which instance.
    pub instance: InstanceId,
    /// Docker's full id of its container.
    pub container_id: String,
    /// Its first process, in the pid namespace of the machine.
    pub pid: u32,
}

/// Where the kernel shows itself; tests put their own files there.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// Where control groups are mounted.
    pub cgroups: cgroup::Mounts,
}

impl Roots {
    /// Returns the places on this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { proc: PathBuf::from("/proc"), cgroups: cgroup::Mounts::parse(&table) }
    }
}

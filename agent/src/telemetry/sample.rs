//! Reading everything once: the machine, its cards, its instances.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tianqi_common::clock::SharedClock;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::telemetry::{InstanceSample, NodeSample, Sample};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::cgroup::{self, Membership};
use super::host::{self, CpuTicks};
use super::{Roots, SampleQueue, Target};
use crate::gpu::GpuProbe;

/// Pause between two samples.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// CPU time of a container at some moment.
#[derive(Clone, Debug)]
struct CpuMark {
    container_id: String,
    cpu_ns: u64,
    at: Duration,
}

/// Reads samples. It keeps what it needs to turn counters into rates.
pub struct Sampler {
    probe: Arc<dyn GpuProbe>,
    clock: SharedClock,
    targets: watch::Receiver<Vec<Target>>,
    docker_root: watch::Receiver<PathBuf>,
    roots: Roots,
    machine: Option<CpuTicks>,
    marks: BTreeMap<InstanceId, CpuMark>,
}

impl Sampler {
    /// Makes a sampler of the instances in `targets`, on the machine whose Docker keeps its data in
    /// `docker_root`.
    #[must_use]
    pub fn new(
        probe: Arc<dyn GpuProbe>,
        clock: SharedClock,
        targets: watch::Receiver<Vec<Target>>,
        docker_root: watch::Receiver<PathBuf>,
    ) -> Self {
        let roots = Roots::of_this_machine();
        Self { probe, clock, targets, docker_root, roots, machine: None, marks: BTreeMap::new() }
    }

    /// Reads the kernel's files from `roots` instead.
    #[must_use]
    pub fn with_roots(self, roots: Roots) -> Self {
        Self { roots, ..self }
    }

    /// Puts a sample into `queue` every `interval` until `cancel`. A reading that takes longer delays
    /// the next one and skips what it missed.
    pub async fn run(
        mut self,
        interval: Duration,
        queue: Arc<SampleQueue>,
        cancel: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // A filesystem that hangs must hold up this task only.
            let reading = tokio::task::spawn_blocking(move || {
                let sample = self.sample();
                (self, sample)
            });
            match reading.await {
                Ok((sampler, sample)) => {
                    self = sampler;
                    queue.push(sample);
                }
                Err(error) => {
                    tracing::error!(%error, "reading samples ended; this node sends no more numbers");
                    return;
                }
            }
        }
    }

    /// Reads everything once. Blocks for some milliseconds.
    pub fn sample(&mut self) -> Sample {
        let at = self.clock.now();
        let node = self.node();
        let gpus = self.probe.sample();
        let instances = self.instances();
        Sample { at, node, gpus, instances }
    }

    fn read(&self, below: &str) -> String {
        fs::read_to_string(self.roots.proc.join(below)).unwrap_or_default()
    }

    fn node(&mut self) -> NodeSample {
        let ticks = CpuTicks::parse(&self.read("stat"));
        let since = self.machine.replace(ticks);
        let disk = host::disk_bytes(&self.docker_root.borrow().clone());
        NodeSample {
            cpu_millicores: since.map_or(0, |since| ticks.millicores_since(since)),
            memory_used_bytes: host::memory_used(&self.read("meminfo")),
            disk_free_bytes: disk.map_or(0, |(free, _)| free),
        }
    }

    fn instances(&mut self) -> Vec<InstanceSample> {
        let targets = self.targets.borrow().clone();
        let gpu_memory = self.gpu_memory(&targets);
        let samples = targets
            .iter()
            .filter_map(|target| {
                let held = gpu_memory
                    .as_ref()
                    .map(|held| held.get(target.container_id.as_str()).copied().unwrap_or(0));
                self.instance(target, held)
            })
            .collect();
        self.marks.retain(|instance, _| targets.iter().any(|target| target.instance == *instance));
        samples
    }

    /// Reads one instance; nothing when its process is gone.
    fn instance(&mut self, target: &Target, held: Option<u64>) -> Option<InstanceSample> {
        let membership = Membership::parse(&self.read(&format!("{}/cgroup", target.pid)));
        let usage = cgroup::usage(&membership, &self.roots.cgroups, &target.container_id)?;
        let (rx, tx) = host::network_bytes(&self.read(&format!("{}/net/dev", target.pid)));
        Some(InstanceSample {
            id: target.instance,
            cpu_millicores: self.rate(target, usage.cpu_ns),
            memory_used_bytes: usage.memory_bytes,
            memory_limit_bytes: usage.memory_limit_bytes,
            network_rx_bytes: rx,
            network_tx_bytes: tx,
            block_read_bytes: usage.read_bytes,
            block_write_bytes: usage.write_bytes,
            pids: usage.pids,
            gpu_memory_used_bytes: held,
        })
    }

    /// Returns the thousandths of a core since the last sample; 0 for the first of a container.
    fn rate(&mut self, target: &Target, cpu_ns: u64) -> u64 {
        let at = self.clock.monotonic();
        let container_id = target.container_id.clone();
        let mark = CpuMark { container_id, cpu_ns, at };
        let Some(last) = self.marks.insert(target.instance, mark) else { return 0 };
        if last.container_id != target.container_id {
            return 0;
        }
        let used = u128::from(cpu_ns.saturating_sub(last.cpu_ns));
        let passed = at.saturating_sub(last.at).as_nanos().max(1);
        u64::try_from(used.saturating_mul(1000) / passed).unwrap_or(u64::MAX)
    }

    /// Returns the bytes of GPU memory per container, by the control groups of the processes that
    /// hold it; nothing where no probe can tell processes.
    fn gpu_memory(&self, targets: &[Target]) -> Option<BTreeMap<String, u64>> {
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for process in self.probe.processes()? {
            let membership = Membership::parse(&self.read(&format!("{}/cgroup", process.pid)));
            let ids = membership.container_ids();
            // The outermost container that is ours: an engine inside an instance shows two.
            let ours =
                ids.iter().find(|id| targets.iter().any(|target| target.container_id == **id));
            if let Some(id) = ours {
                let sum = held.entry((*id).to_owned()).or_default();
                *sum = sum.saturating_add(process.used_bytes);
            }
        }
        Some(held)
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;

use std::path::Path;

use tianqi_common::clock::{ManualClock, UnixMillis};
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::inventory::GpuInventory;

use super::cgroup::{Mount, Mounts};
use super::*;
use crate::gpu::GpuProcess;
use crate::gpu::fake::FakeProbe;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A machine made of files: one container with two processes, and one process of the host's own.
struct Machine {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    probe: Arc<FakeProbe>,
    targets: watch::Sender<Vec<Target>>,
    docker_root: watch::Sender<PathBuf>,
    instance: InstanceId,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let instance = InstanceId::new();
        let target = Target { instance, container_id: ID.to_owned(), pid: 100 };
        let machine = Self {
            docker_root: watch::Sender::new(dir.path().to_owned()),
            dir,
            clock: Arc::new(ManualClock::at(UnixMillis(1_000_000))),
            probe: Arc::new(FakeProbe::new(GpuInventory::default())),
            targets: watch::Sender::new(vec![target]),
            instance,
        };
        machine.put("stat", "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1\ncpu1 1\n");
        machine.put("meminfo", "MemTotal: 1000 kB\nMemAvailable: 600 kB\n");
        machine.put("100/cgroup", &format!("0::/docker/{ID}\n"));
        machine.put("100/net/dev", "eth0: 100 2 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n");
        machine.put("101/cgroup", &format!("0::/docker/{ID}/child\n"));
        machine.put("200/cgroup", "0::/system.slice/ssh.service\n");
        machine.uses(1_000_000);
        machine
    }

    fn put(&self, below: &str, text: &str) {
        let path = self.dir.path().join("proc").join(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn uses(&self, cpu_us: u64) {
        let group = self.dir.path().join("cgroup/docker").join(ID);
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("cpu.stat"), format!("usage_usec {cpu_us}\n")).unwrap();
        std::fs::write(group.join("memory.current"), "5000\n").unwrap();
    }

    fn sampler(&self) -> Sampler {
        let point = self.dir.path().join("cgroup");
        let v2 = Some(Mount { root: "/".to_owned(), point });
        let cgroups = Mounts { v1: BTreeMap::new(), v2 };
        let roots = Roots { proc: self.dir.path().join("proc"), cgroups };
        let (probe, clock) = (self.probe.clone(), self.clock.clone());
        Sampler::new(probe, clock, self.targets.subscribe(), self.docker_root.subscribe())
            .with_roots(roots)
    }
}

#[test]
fn rates_are_per_time_since_the_last_sample() {
    let machine = Machine::new();
    let mut sampler = machine.sampler();
    let first = sampler.sample();
    assert_eq!((first.at, first.node.cpu_millicores), (UnixMillis(1_000_000), 0));
    assert_eq!(first.instances[0].cpu_millicores, 0);

    machine.clock.advance(Duration::from_secs(5));
    machine.uses(1_000_000 + 2_500_000);
    machine.put("stat", "cpu  150 0 150 750 150 0 0 0 0 0\ncpu0 1\ncpu1 1\n");
    let second = sampler.sample();

    assert_eq!(second.instances[0].cpu_millicores, 500);
    assert_eq!(second.node.cpu_millicores, 1000);
    assert_eq!(second.node.memory_used_bytes, 400 * 1024);
    assert!(second.node.disk_free_bytes > 0);
    assert_eq!(second.instances[0].network_rx_bytes, 100);
    assert_eq!(second.instances[0].memory_used_bytes, 5000);
}

#[test]
fn gpu_memory_belongs_to_the_container_of_its_process() {
    let machine = Machine::new();
    let mut sampler = machine.sampler();
    assert_eq!(sampler.sample().instances[0].gpu_memory_used_bytes, None);

    let on = |pid, used_bytes| GpuProcess { uuid: GpuUuid("GPU-1".to_owned()), pid, used_bytes };
    machine.probe.set_processes(Some(vec![on(100, 5), on(101, 7), on(200, 11), on(999, 13)]));

    assert_eq!(sampler.sample().instances[0].gpu_memory_used_bytes, Some(12));
}

#[test]
fn an_instance_whose_process_number_went_to_another_is_left_out() {
    let machine = Machine::new();
    let mut sampler = machine.sampler();
    machine.put("100/cgroup", "0::/system.slice/ssh.service\n");

    assert!(sampler.sample().instances.is_empty());
}

#[test]
fn an_instance_in_a_new_container_starts_its_rates_anew() {
    let machine = Machine::new();
    let mut sampler = machine.sampler();
    sampler.sample();
    let marks = sampler.marks.get_mut(&machine.instance).unwrap();
    marks.container_id = "another".to_owned();
    marks.cpu_ns = 0;

    assert_eq!(sampler.sample().instances[0].cpu_millicores, 0);
    machine.targets.send_replace(Vec::new());
    sampler.sample();
    assert!(sampler.marks.is_empty(), "nothing is kept of instances that are gone");
}

#[tokio::test(start_paused = true)]
async fn the_sampler_fills_the_queue_until_it_is_cancelled() {
    let machine = Machine::new();
    let queue = Arc::new(SampleQueue::default());
    let cancel = CancellationToken::new();
    let running = tokio::spawn(machine.sampler().run(INTERVAL, Arc::clone(&queue), cancel.clone()));

    assert_eq!(queue.next(1).await.samples.len(), 1);
    assert_eq!(queue.next(1).await.samples.len(), 1);
    cancel.cancel();
    running.await.unwrap();
}

#[test]
fn this_machine_can_be_read() {
    let machine = Machine::new();
    let mut sampler = Sampler::new(
        machine.probe.clone(),
        machine.clock.clone(),
        watch::Sender::new(Vec::new()).subscribe(),
        watch::Sender::new(Path::new("/var/lib/docker").to_owned()).subscribe(),
    );

    let node = sampler.sample().node;

    assert!(node.memory_used_bytes > 0 && node.disk_free_bytes > 0, "{node:?}");
    assert!(sampler.machine.unwrap().cpus > 0);
}

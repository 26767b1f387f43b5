//! A slice in a real container: preload, limits and region arrive by every way into it.
//!
//! The library is our own stand-in (`tests/stub-vgpu`), which prints what reached its process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use tianqi_agent::docker::endpoint::Endpoint;
use tianqi_agent::docker::engine::Engine;
use tianqi_agent::docker::walls::Iptables;
use tianqi_agent::docker::{DockerHandle, NetworkSpec};
use tianqi_agent::gpu::hami::HamiInjector;
use tianqi_agent::gpu::inject::{Injection, SliceInjector};
use tianqi_agent::reconcile::ledger::Ledger;
use tianqi_agent::reconcile::{Reconciler, Settings};
use tianqi_agent::telemetry::cgroup::{Membership, usage};
use tianqi_agent::telemetry::{Roots, host};
use tianqi_common::clock::SystemClock;
use tianqi_common::id::InstanceId;
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{
    GpuSlice, GpuUuid, InstanceDesired, InstanceSpec, NodeDesired, RestartPolicy, Revision, Run,
};
use tianqi_common::wire::observed::{ContainerState, InstanceObserved, LimitKind, NodeObserved};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SLICE: GpuSlice = GpuSlice { memory: GpuMemoryMib(8192), cores: CorePercent(30) };
/// What the region says in every process, whatever its environment.
const REGION: &str = "magic=19920718 version=1.2 limit=8589934592 cores=30";

/// A container with a slice, and everything it leaves, for one test.
struct Sliced {
    injector: HamiInjector,
    instance: InstanceId,
    injection: Injection,
    container: String,
    state: PathBuf,
}

impl Sliced {
    fn start(image: &str) -> Self {
        let instance = InstanceId::new();
        let state = Dockerd::shared().root().join(format!("slices-{instance}"));
        let hami = state.join("build");
        fs::create_dir_all(&hami).unwrap();
        fs::copy(built_library(), hami.join("libvgpu.so")).unwrap();
        let injector = HamiInjector::new(state.join("agent"), hami);
        let injection = injector.prepare(instance, SLICE, &[card()]).unwrap();
        let name = format!("sliced-{instance}");
        let mut args = vec!["run".to_owned(), "--detach".to_owned(), format!("--name={name}")];
        args.push("--security-opt=no-new-privileges".to_owned());
        args.extend(injection.env.iter().map(|(name, value)| format!("--env={name}={value}")));
        args.extend(injection.binds.iter().map(|bind| {
            let mode = if bind.read_only { "ro" } else { "rw" };
            format!("--volume={}:{}:{mode}", bind.source, bind.target)
        }));
        args.push(image.to_owned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let container = Dockerd::shared().docker(&args);
        Self { injector, instance, injection, container, state }
    }

    fn exec(&self, program: &[&str]) -> Output {
        Dockerd::shared().try_docker(&[&["exec", &self.container], program].concat())
    }

    fn says(&self, program: &[&str]) -> String {
        let output = self.exec(program);
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            output.status.success(),
            "{program:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// Returns the last line: programs that start the one asked about carry its arguments too.
    fn reports(&self, program: &[&str]) -> String {
        self.says(program).lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Sliced {
    fn drop(&mut self) {
        let _ = Dockerd::shared().try_docker(&["rm", "--force", &self.container]);
        let _ = self.injector.cleanup(self.instance);
        let _ = fs::remove_dir_all(&self.state);
    }
}

fn card() -> GpuUuid {
    GpuUuid("GPU-00000000-0000-0000-0000-000000000001".to_owned())
}

fn built_library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let library = tests.ancestors().nth(2).unwrap().join("libvgpu.so");
    assert!(library.exists(), "{} is missing: cargo build -p tianqi-stub-vgpu", library.display());
    library
}

#[test]
fn a_slice_reaches_a_plain_shell_and_one_without_environment_and_one_after_su() {
    let sliced = Sliced::start(images::debian(Dockerd::shared()));
    let report = "/bin/true tianqi-report";

    let plain = sliced.reports(&["sh", "-c", report]);
    assert_eq!(
        plain,
        format!(
            "preloaded LD_PRELOAD=/libvgpu/build/libvgpu.so \
             CUDA_REDIRECT=/libvgpu/build/libvgpu.so CUDA_DEVICE_MEMORY_LIMIT_0=8192m \
             CUDA_DEVICE_SM_LIMIT=30 {REGION}"
        )
    );

    let nothing =
        "LD_PRELOAD=- CUDA_REDIRECT=- CUDA_DEVICE_MEMORY_LIMIT_0=- CUDA_DEVICE_SM_LIMIT=-";
    let bare = format!("preloaded {nothing} {REGION}");
    assert_eq!(sliced.reports(&["env", "-i", "/bin/true", "tianqi-report"]), bare);
    let as_nobody = ["su", "-", "nobody", "-s", "/bin/sh", "-c", report];
    assert_eq!(sliced.reports(&as_nobody), bare);

    let raised = ["env", "CUDA_DEVICE_MEMORY_LIMIT_0=20g", "/bin/true", "tianqi-report"];
    assert!(sliced.reports(&raised).ends_with(REGION));
}

#[test]
fn a_tenant_can_change_neither_the_library_nor_the_preload_line() {
    let sliced = Sliced::start(images::debian(Dockerd::shared()));

    for attempt in [
        "echo x > /libvgpu/build/libvgpu.so",
        "rm -f /libvgpu/build/libvgpu.so",
        "touch /libvgpu/build/more",
        "echo > /etc/ld.so.preload",
        "rm -f /etc/ld.so.preload",
        "mv /etc/ld.so.preload /tmp/away",
        "umount /etc/ld.so.preload",
        "mount -o remount,rw /libvgpu/build",
        "rm -f /tmp/cudevshr.cache",
    ] {
        assert!(!sliced.exec(&["sh", "-c", attempt]).status.success(), "{attempt} succeeded");
    }

    assert!(sliced.reports(&["env", "-i", "/bin/true", "tianqi-report"]).ends_with(REGION));
}

#[test]
fn a_scribbled_region_and_a_flooded_lock_directory_are_healed_at_the_next_start() {
    let engine = Dockerd::shared();
    let sliced = Sliced::start(images::debian(engine));
    let flood =
        "head -c 64M /dev/zero > /tmp/vgpulock/flood; head -c 64M /dev/zero > /tmp/cudevshr.cache";
    assert!(!sliced.exec(&["sh", "-c", flood]).status.success(), "64 MiB fit in");
    assert!(!sliced.reports(&["sh", "-c", "/bin/true tianqi-report"]).ends_with(REGION));

    engine.docker(&["stop", &sliced.container]);
    sliced.injector.reseed(sliced.instance, SLICE, &[card()]).unwrap();
    engine.docker(&["start", &sliced.container]);

    assert!(sliced.reports(&["sh", "-c", "/bin/true tianqi-report"]).ends_with(REGION));
    assert_eq!(sliced.says(&["ls", "/tmp/vgpulock"]), "");
}

#[test]
fn nothing_is_left_of_a_removed_instance() {
    let engine = Dockerd::shared();
    let sliced = Sliced::start(images::busybox(engine));
    let region = sliced.injection.binds.iter().find(|bind| !bind.read_only).unwrap().source.clone();
    assert!(fs::metadata(&region).is_ok());

    engine.docker(&["rm", "--force", &sliced.container]);
    sliced.injector.cleanup(sliced.instance).unwrap();

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&sliced.instance.to_string()), "{mounts}");
    assert!(sliced.injector.leftovers(&[].into()).is_empty());
}

#[test]
fn a_container_is_read_from_its_control_groups() {
    let engine = Dockerd::shared();
    let sliced = Sliced::start(images::busybox(engine));
    let pid = engine.docker(&["inspect", "--format={{.State.Pid}}", &sliced.container]);
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();

    let membership = Membership::parse(&read("cgroup"));
    let found = usage(&membership, &Roots::of_this_machine().cgroups, &sliced.container).unwrap();

    assert!(found.cpu_ns > 0 && found.memory_bytes > 0 && found.pids > 0, "{found:?}");
    assert_eq!(found.memory_limit_bytes, 0);
    let (received, _) = host::network_bytes(&read("net/dev"));
    assert!(received < 1 << 30, "{received}");
}

fn desired(image: &str, name: &str) -> InstanceDesired {
    let spec = InstanceSpec {
        container_name: format!("{name}-1"),
        image: image.to_owned(),
        cpu: Millicores(500),
        memory: MemoryMib(128),
        system_disk: DiskGib(0),
        data_disk: DiskGib(0),
        shm: MemoryMib(16),
        pids_limit: 64,
        gpus: vec![GpuUuid("SIM-1".to_owned())],
        slice: Some(SLICE),
        env: Vec::new(),
        restart: RestartPolicy::Never,
    };
    InstanceDesired { id: InstanceId::new(), generation: 1, run: Run::Running, spec }
}

/// Waits until what is on the node is as a test wants it.
async fn until(
    observed: &mut watch::Receiver<NodeObserved>,
    holds: impl FnMut(&NodeObserved) -> bool,
) -> NodeObserved {
    let patience = Duration::from_secs(60);
    let waited = tokio::time::timeout(patience, observed.wait_for(holds))
        .await
        .map(|found| found.unwrap().clone());
    waited.unwrap_or_else(|_| panic!("never came; last was {:?}", *observed.borrow()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_gives_a_slice_to_an_image_with_glibc_and_says_which_image_holds_none() {
    let engine = Dockerd::start();
    let data_dir = engine.root().join("agent");
    let hami = engine.root().join("build");
    fs::create_dir_all(&data_dir).unwrap();
    fs::create_dir_all(&hami).unwrap();
    fs::copy(built_library(), hami.join("libvgpu.so")).unwrap();
    let injector = Arc::new(HamiInjector::new(&data_dir, &hami));
    let endpoint = Endpoint::parse(&engine.endpoint(), None, None, None).unwrap();
    let docker = DockerHandle::new(Arc::new(Engine::new(endpoint).unwrap()));
    let (bridge, subnet) = engine.instance_network();
    let network = NetworkSpec { bridge, subnet, ..NetworkSpec::default() };
    let settings = Settings { network, ..Settings::default() };
    let clock = SystemClock::shared();
    let ledger = Ledger::open(&data_dir, clock.now()).unwrap();
    let guard = Arc::new(Iptables);
    let reconciler = Reconciler::new(docker, ledger, injector.clone(), guard, clock, settings);
    let glibc = desired(images::debian(&engine), "glibc");
    let none = desired(images::busybox(&engine), "none");
    let (glibc_id, none_id) = (glibc.id, none.id);
    let revision = |generation| Revision { epoch: 0, generation };
    let instances = vec![glibc, none];
    let wanted = NodeDesired { revision: revision(1), instances, tombstones: Vec::new() };
    let wanted = watch::Sender::new(Some(wanted));
    let (seen, mut observed) = watch::channel(NodeObserved::default());
    let cancel = CancellationToken::new();
    let _stop = cancel.clone().drop_guard();
    tokio::spawn(reconciler.run(wanted.subscribe(), Arc::default(), seen, cancel));

    let found = until(&mut observed, |found| {
        let runs = |instance: &InstanceObserved| instance.state == ContainerState::Running;
        found.instances.len() == 2 && found.instances.iter().all(runs)
    })
    .await;

    let of = |id| found.instances.iter().find(|instance| instance.id == id).unwrap();
    let slice_of = |id| of(id).limits.iter().find(|limit| limit.kind == LimitKind::Slice).unwrap();
    let env_of = |id| {
        let container = of(id).container_id.clone().unwrap();
        engine.docker(&["inspect", "--format={{.Config.Env}}{{.HostConfig.Binds}}", &container])
    };
    assert!(slice_of(glibc_id).enforced, "{:?}", slice_of(glibc_id));
    assert!(env_of(glibc_id).contains("LD_PRELOAD=/libvgpu/build/libvgpu.so"));
    assert!(!slice_of(none_id).enforced && slice_of(none_id).reason.contains("glibc"));
    assert!(!env_of(none_id).contains("LD_PRELOAD") && !env_of(none_id).contains("vgpu"));
    let container = of(glibc_id).container_id.clone().unwrap();
    let program = ["exec", &container, "env", "-i", "/bin/true", "tianqi-report"];
    assert!(engine.docker(&program).ends_with(REGION));

    let tombstones = vec![glibc_id, none_id];
    wanted.send_replace(Some(NodeDesired { revision: revision(2), instances: vec![], tombstones }));
    until(&mut observed, |found| {
        found.removed.len() == 2 && found.removed.iter().all(|removed| removed.leftovers.is_empty())
    })
    .await;
    assert!(injector.leftovers(&[].into()).is_empty());
    assert!(engine.containers_labelled("tianqi.instance").is_empty());
}

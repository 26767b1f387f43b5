//! A slice in a real container: preload, limits and region arrive by every way into it.
//!
//! The library is our own stand-in (`tests/stub-vgpu`), which prints what reached its process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use tianqi_agent::gpu::hami::HamiInjector;
use tianqi_agent::gpu::inject::{Injection, SliceInjector};
use tianqi_agent::telemetry::cgroup::{Membership, usage};
use tianqi_agent::telemetry::{Roots, host};
use tianqi_common::id::InstanceId;
use tianqi_common::unit::{CorePercent, GpuMemoryMib};
use tianqi_common::wire::desired::{GpuSlice, GpuUuid};
use tianqi_tests::dockerd::Dockerd;
use tianqi_tests::images;

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

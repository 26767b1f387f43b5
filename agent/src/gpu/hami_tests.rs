use tianqi_common::unit::{CorePercent, GpuMemoryMib};

use super::*;

const SLICE: GpuSlice = GpuSlice { memory: GpuMemoryMib(2048), cores: CorePercent(50) };

/// An injector over a library that can be loaded, unmounting what a failed test leaves.
struct Bench {
    state: tempfile::TempDir,
    injector: HamiInjector,
    instance: InstanceId,
}

impl Bench {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let hami = state.path().join("build");
        fs::create_dir(&hami).unwrap();
        let places = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib/aarch64-linux-gnu/libm.so.6",
            "/lib64/libm.so.6",
        ];
        let library = places.iter().find_map(|place| fs::read(place).ok()).unwrap();
        fs::write(hami.join(FILE_NAME), library).unwrap();
        let injector = HamiInjector::new(state.path().join("agent"), hami);
        Self { state, injector, instance: InstanceId::new() }
    }

    fn card() -> [GpuUuid; 1] {
        [GpuUuid("GPU-1".to_owned())]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.injector.cleanup(self.instance);
    }
}

#[test]
fn prepare_makes_everything_that_it_binds() {
    let bench = Bench::new();

    let injection = bench.injector.prepare(bench.instance, SLICE, &Bench::card()).unwrap();

    for bind in &injection.binds {
        assert!(Path::new(&bind.source).exists(), "{}", bind.source);
    }
    let source =
        |target| &injection.binds.iter().find(|bind| bind.target == target).unwrap().source;
    assert_eq!(fs::read(source("/etc/ld.so.preload")).unwrap(), b"/libvgpu/build/libvgpu.so\n");
    assert!(Path::new(source("/libvgpu/build")).join(FILE_NAME).exists());
    assert!(source("/libvgpu/build").contains(&bench.injector.library().sha256));
    let lock = fs::metadata(source("/tmp/vgpulock")).unwrap();
    assert_eq!(lock.permissions().mode() & 0o7777, 0o777);
    assert_eq!(bench.injector.region(bench.instance).unwrap().limits[0], 2048 << 20);
    assert!(injection.limits[0].enforced);
}

#[test]
fn reseed_restores_what_a_tenant_or_a_reboot_destroyed() {
    let bench = Bench::new();
    bench.injector.prepare(bench.instance, SLICE, &Bench::card()).unwrap();
    fs::write(bench.injector.region_file(bench.instance), b"scribble").unwrap();
    fs::write(bench.injector.lock_dir(bench.instance).join("lock"), b"").unwrap();

    bench.injector.reseed(bench.instance, SLICE, &Bench::card()).unwrap();
    assert_eq!(bench.injector.region(bench.instance).unwrap().core_limits[0], 50);
    assert_eq!(fs::read_dir(bench.injector.lock_dir(bench.instance)).unwrap().count(), 0);

    nix::mount::umount(&bench.injector.home(bench.instance)).unwrap();
    assert!(bench.injector.region(bench.instance).is_err());
    bench.injector.reseed(bench.instance, SLICE, &Bench::card()).unwrap();
    assert_eq!(bench.injector.region(bench.instance).unwrap().core_limits[0], 50);
}

#[test]
fn a_flooded_lock_directory_does_not_starve_the_region() {
    let bench = Bench::new();
    bench.injector.prepare(bench.instance, SLICE, &Bench::card()).unwrap();

    let flood = fs::write(bench.injector.lock_dir(bench.instance).join("flood"), vec![1; 8 << 20]);

    assert!(flood.is_err());
    let region = bench.injector.region_file(bench.instance);
    fs::OpenOptions::new().write(true).open(&region).unwrap();
    bench.injector.reseed(bench.instance, SLICE, &Bench::card()).unwrap();
    assert_eq!(bench.injector.region(bench.instance).unwrap().limits[0], 2048 << 20);
}

#[test]
fn cleanup_leaves_nothing_and_may_come_twice() {
    let bench = Bench::new();
    bench.injector.prepare(bench.instance, SLICE, &Bench::card()).unwrap();
    let stranger = InstanceId::new();
    fs::create_dir(bench.injector.home(stranger)).unwrap();

    bench.injector.cleanup(bench.instance).unwrap();
    bench.injector.cleanup(bench.instance).unwrap();

    assert!(!bench.injector.home(bench.instance).exists());
    assert_eq!(bench.injector.leftovers(&BTreeSet::new()), [stranger]);
    assert!(bench.injector.leftovers(&BTreeSet::from([stranger])).is_empty());
}

#[test]
fn a_node_without_a_library_says_so_and_injects_nothing() {
    let bench = Bench::new();
    bench.injector.set_dir(bench.state.path().join("nothing"));

    let injection = bench.injector.prepare(bench.instance, SLICE, &Bench::card()).unwrap();

    assert!(injection.binds.is_empty() && injection.env.is_empty());
    assert!(injection.limits[0].reason.contains("libvgpu.so cannot be read"));
    assert!(!bench.injector.library().unusable.is_empty());
    bench.injector.reseed(bench.instance, SLICE, &Bench::card()).unwrap();
    assert!(!bench.injector.home(bench.instance).exists(), "reseed makes no home of its own");
}

#[test]
fn a_library_that_the_operator_replaces_is_noticed() {
    let bench = Bench::new();
    let first = bench.injector.library();
    let file = bench.state.path().join("build").join(FILE_NAME);
    let mut bytes = fs::read(&file).unwrap();
    bytes.push(0);
    fs::write(&file, bytes).unwrap();

    let second = bench.injector.library();

    assert_ne!(first.sha256, second.sha256);
    assert_eq!(second.unusable, "");
}

#[test]
fn simulated_cards_without_a_library_say_that_they_are_simulated() {
    let bench = Bench::new();
    bench.injector.set_dir(bench.state.path().join("nothing"));
    let card = [GpuUuid("SIM-1".to_owned())];

    let injection = bench.injector.prepare(bench.instance, SLICE, &card).unwrap();

    assert_eq!(injection.limits[0].reason, "simulated card");
}

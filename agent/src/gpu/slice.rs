//! What a slice adds to a container: pure.
//!
//! Limits reach processes on three ways, because each alone can be lost: the environment (lost by
//! `env -i`, `su` and ssh), a preload file (survives those), and a region file that the agent filled
//! in before the first process starts (HAMi-core believes it before the environment).

use tianqi_common::wire::desired::GpuSlice;
use tianqi_common::wire::observed::{LimitKind, LimitState};

use super::inject::{Bind, Injection};

/// Directory of the library in a container.
pub const LIBRARY_DIR: &str = "/libvgpu/build";
/// The library in a container.
pub const LIBRARY: &str = "/libvgpu/build/libvgpu.so";
/// The file that makes the dynamic loader load the library into every process.
pub const PRELOAD_FILE: &str = "/etc/ld.so.preload";
/// Where HAMi-core looks for its region file.
pub const REGION_FILE: &str = "/tmp/cudevshr.cache";
/// Where builds of HAMi-core before 2026-02 keep their lock.
pub const LOCK_DIR: &str = "/tmp/vgpulock";

/// Where the files of one slice are on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFiles {
    /// Directory of one version of the library.
    pub library_dir: String,
    /// A file whose one line is [`LIBRARY`].
    pub preload: String,
    /// The region file of the instance.
    pub region: String,
    /// The lock directory of the instance.
    pub lock_dir: String,
}

/// Returns what the container of an enforced slice gets.
#[must_use]
pub fn injection(slice: GpuSlice, files: &SliceFiles) -> Injection {
    Injection {
        env: environment(slice),
        binds: binds(files),
        limits: vec![LimitState { kind: LimitKind::Slice, enforced: true, reason: String::new() }],
    }
}

/// Returns what the container of a slice gets that this node cannot enforce, because of `reason`.
#[must_use]
pub fn not_enforced(reason: impl Into<String>) -> Injection {
    let state = LimitState { kind: LimitKind::Slice, enforced: false, reason: reason.into() };
    Injection { limits: vec![state], ..Injection::default() }
}

fn environment(slice: GpuSlice) -> Vec<(String, String)> {
    // HAMi-core reads a number and one letter; anything longer makes every allocation fail.
    let memory = format!("{}m", slice.memory.0);
    let cores = slice.cores.0.clamp(1, 100).to_string();
    [
        ("LD_PRELOAD", LIBRARY),
        ("CUDA_REDIRECT", LIBRARY),
        ("CUDA_DEVICE_MEMORY_LIMIT", &memory),
        ("CUDA_DEVICE_MEMORY_LIMIT_0", &memory),
        ("CUDA_DEVICE_SM_LIMIT", &cores),
        ("CUDA_DEVICE_MEMORY_SHARED_CACHE", REGION_FILE),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn binds(files: &SliceFiles) -> Vec<Bind> {
    [
        (&files.library_dir, LIBRARY_DIR, true),
        (&files.preload, PRELOAD_FILE, true),
        (&files.region, REGION_FILE, false),
        (&files.lock_dir, LOCK_DIR, false),
    ]
    .map(|(source, target, read_only)| Bind {
        source: source.clone(),
        target: target.to_owned(),
        read_only,
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use tianqi_common::unit::{CorePercent, GpuMemoryMib};

    use super::*;

    fn files() -> SliceFiles {
        SliceFiles {
            library_dir: "/state/hami/abc".to_owned(),
            preload: "/state/hami/ld.so.preload".to_owned(),
            region: "/state/regions/i/cudevshr.cache".to_owned(),
            lock_dir: "/state/regions/i/lock".to_owned(),
        }
    }

    fn slice(memory: u64, cores: u32) -> GpuSlice {
        GpuSlice { memory: GpuMemoryMib(memory), cores: CorePercent(cores) }
    }

    #[test]
    fn environment_is_exactly_what_hami_core_reads() {
        let env = injection(slice(8192, 30), &files()).env;

        let written: Vec<String> =
            env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            written,
            [
                "LD_PRELOAD=/libvgpu/build/libvgpu.so",
                "CUDA_REDIRECT=/libvgpu/build/libvgpu.so",
                "CUDA_DEVICE_MEMORY_LIMIT=8192m",
                "CUDA_DEVICE_MEMORY_LIMIT_0=8192m",
                "CUDA_DEVICE_SM_LIMIT=30",
                "CUDA_DEVICE_MEMORY_SHARED_CACHE=/tmp/cudevshr.cache",
                "CUDA_DEVICE_ORDER=PCI_BUS_ID",
            ]
        );
    }

    #[test]
    fn cores_stay_between_1_and_100() {
        let cores = |given| {
            let env = injection(slice(1, given), &files()).env;
            env.into_iter().find(|(name, _)| name == "CUDA_DEVICE_SM_LIMIT").unwrap().1
        };

        assert_eq!((cores(0), cores(100), cores(4000)), ("1".into(), "100".into(), "100".into()));
    }

    #[test]
    fn only_region_and_lock_can_be_written() {
        let injection = injection(slice(8192, 30), &files());

        let writable: Vec<_> = injection
            .binds
            .iter()
            .filter(|bind| !bind.read_only)
            .map(|bind| bind.target.as_str())
            .collect();
        assert_eq!(writable, ["/tmp/cudevshr.cache", "/tmp/vgpulock"]);
        let targets: Vec<_> = injection.binds.iter().map(|bind| bind.target.as_str()).collect();
        assert!(targets.contains(&"/libvgpu/build") && targets.contains(&"/etc/ld.so.preload"));
        assert!(injection.limits[0].enforced);
    }

    #[test]
    fn a_slice_that_is_not_enforced_adds_nothing() {
        let injection = not_enforced("no library");

        assert!(injection.env.is_empty() && injection.binds.is_empty());
        assert_eq!(injection.limits[0].reason, "no library");
        assert!(!injection.limits[0].enforced);
    }
}

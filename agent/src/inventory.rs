//! What this machine is. Nothing here needs Docker or a driver, so the agent starts without either.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use sysinfo::{CpuRefreshKind, Disks, MemoryRefreshKind, RefreshKind, System};
use tianqi_common::unit::{MIB, MemoryMib};
use tianqi_common::wire::inventory::{
    Disk, DockerEngine, GpuInventory, HamiLibrary, NodeInventory,
};

use crate::telemetry::host::disk_bytes;

/// Where Docker keeps its data unless it says otherwise.
pub const DOCKER_ROOT: &str = "/var/lib/docker";
/// Filesystems that hold no data of the machine's own.
const PSEUDO: [&str; 10] = [
    "tmpfs",
    "overlay",
    "aufs",
    "fuse.lxcfs",
    "ramfs",
    "debugfs",
    "tracefs",
    "fusectl",
    "nsfs",
    "efivarfs",
];
/// Most disks that are reported.
const MOST_DISKS: usize = 64;

/// What others know of the machine.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The Docker engine, when it answered.
    pub docker: Option<DockerEngine>,
    /// Where it keeps its data; [`DOCKER_ROOT`] when it is not known.
    pub docker_root: Option<PathBuf>,
    /// The cards.
    pub gpus: GpuInventory,
    /// The slicing library.
    pub hami: HamiLibrary,
}

/// Returns what the machine calls itself; empty when it has no name.
#[must_use]
pub fn hostname() -> String {
    System::host_name().unwrap_or_default()
}

/// Finds out everything about the machine and adds `parts`. Blocks for some milliseconds.
#[must_use]
pub fn collect(parts: Parts) -> NodeInventory {
    let refresh = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh).ok();
    let cpus = system.as_ref().map(System::cpus).unwrap_or_default();
    let memory = system.as_ref().map_or(0, System::total_memory);
    let docker_root = parts.docker_root.unwrap_or_else(|| PathBuf::from(DOCKER_ROOT));
    NodeInventory {
        hostname: hostname(),
        os: os_name(&read("/etc/os-release")).unwrap_or_else(|| "Linux".to_owned()),
        kernel: System::kernel_version().unwrap_or_default(),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_model: cpu_model(&read("/proc/cpuinfo")).unwrap_or_default(),
        cpu_cores: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        memory: MemoryMib(memory / MIB),
        disks: disks(mounted(), &docker_root),
        docker: parts.docker,
        gpus: parts.gpus,
        hami: parts.hami,
        agent_program: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Returns the name that an `os-release` file gives to people.
fn os_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// Returns the model of the first CPU; processors by Arm do not tell theirs.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn mounted() -> Vec<(String, Disk)> {
    let Ok(disks) = Disks::new_with_refreshed_list() else { return Vec::new() };
    let described = disks.iter().map(|disk| {
        let found = Disk {
            mount: disk.mount_point().to_string_lossy().into_owned(),
            filesystem: disk.file_system().to_string_lossy().into_owned(),
            total_bytes: disk.total_space(),
            free_bytes: disk.available_space(),
            holds_docker: false,
        };
        (disk.name().to_string_lossy().into_owned(), found)
    });
    described.collect()
}

/// Puts Docker's disk first, and leaves out what holds no data and what is mounted a second time.
/// Each disk comes with the device it is on.
fn disks(found: Vec<(String, Disk)>, docker_root: &Path) -> Vec<Disk> {
    let mut found: Vec<(String, Disk)> = found
        .into_iter()
        .filter(|(_, disk)| disk.total_bytes > 0 && !PSEUDO.contains(&disk.filesystem.as_str()))
        .collect();
    // Of two mounts of one device the shorter path is the one that people know.
    found.sort_by(|(_, a), (_, b)| (a.mount.len(), &a.mount).cmp(&(b.mount.len(), &b.mount)));
    let mut devices = Vec::new();
    let mut disks = Vec::new();
    for (device, disk) in found {
        let of_docker = docker_root.starts_with(&disk.mount);
        if !devices.contains(&device) || of_docker {
            devices.push(device);
            disks.push(disk);
        }
    }
    let holder = disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| docker_root.starts_with(&disk.mount))
        .max_by_key(|(_, disk)| disk.mount.len())
        .map(|(position, _)| position);
    match holder {
        Some(position) => {
            let mut holder = disks.remove(position);
            holder.holds_docker = true;
            disks.insert(0, holder);
        }
        // In a container the root is an overlay, which is left out above.
        None => disks.splice(0..0, unlisted(docker_root)).for_each(drop),
    }
    disks.sort_by_key(|disk| (Reverse(disk.holds_docker), disk.mount.clone()));
    disks.truncate(MOST_DISKS);
    disks
}

fn unlisted(docker_root: &Path) -> Option<Disk> {
    let (free_bytes, total_bytes) = disk_bytes(docker_root)?;
    let mount = docker_root.to_string_lossy().into_owned();
    Some(Disk { mount, filesystem: String::new(), total_bytes, free_bytes, holds_docker: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(device: &str, mount: &str, filesystem: &str) -> (String, Disk) {
        let (mount, filesystem) = (mount.to_owned(), filesystem.to_owned());
        let disk = Disk { mount, filesystem, total_bytes: 9, free_bytes: 1, holds_docker: false };
        (device.to_owned(), disk)
    }

    fn mounts(found: &[Disk]) -> Vec<&str> {
        found.iter().map(|disk| disk.mount.as_str()).collect()
    }

    #[test]
    fn the_disk_of_docker_comes_first_and_copies_are_left_out() {
        let found = disks(
            vec![
                disk("overlay", "/var/lib/docker/overlay2/x/merged", "overlay"),
                disk("/dev/sda1", "/", "ext4"),
                disk("/dev/sda1", "/snap/bind", "ext4"),
                disk("/dev/sdb1", "/var/lib", "xfs"),
                disk("tmpfs", "/dev/shm", "tmpfs"),
                disk("/dev/sdc1", "/data", "ext4"),
            ],
            Path::new("/var/lib/docker"),
        );

        assert_eq!(mounts(&found), ["/var/lib", "/", "/data"]);
        assert!(found[0].holds_docker && !found[1].holds_docker);
    }

    #[test]
    fn a_machine_whose_root_is_an_overlay_still_has_a_disk() {
        let found = disks(vec![disk("overlay", "/", "overlay")], Path::new("/var/lib/docker"));

        assert_eq!(mounts(&found), ["/var/lib/docker"]);
        assert!(found[0].holds_docker && found[0].total_bytes > 0);
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        let os = "NAME=\"x\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(os_name(os).unwrap(), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_name(""), None);
        let cpu = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(cpu_model(cpu).unwrap(), "Some CPU @ 2 GHz");
    }

    #[test]
    fn this_machine_is_described_without_docker_and_without_a_driver() {
        let found = collect(Parts::default());

        assert!(!found.hostname.is_empty() && !found.kernel.is_empty() && !found.os.is_empty());
        assert!(found.cpu_cores > 0 && found.memory.0 > 0);
        assert!(found.disks.first().is_some_and(|disk| disk.holds_docker), "{:?}", found.disks);
        assert_eq!(found.docker, None);
    }
}

//! What a control group uses, on version 1, version 2 and machines with both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Length of Docker's full container ids, in hexadecimal digits.
const ID_DIGITS: usize = 64;
/// Version 1 writes "no limit" as a number near the largest; above this one it means that.
const NO_LIMIT: u64 = 1 << 62;

/// Where the control groups of this machine are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Version 1, by controller.
    pub v1: BTreeMap<String, Mount>,
    /// Version 2.
    pub v2: Option<Mount>,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The group that is mounted; `/` except inside containers.
    pub root: String,
    /// Where.
    pub point: PathBuf,
}

impl Mounts {
    /// Reads a mount table (`/proc/self/mountinfo`).
    #[must_use]
    pub fn parse(table: &str) -> Self {
        let mut mounts = Self::default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(point)) = (left.next(), left.next()) else { continue };
            let mount = Mount { root: root.to_owned(), point: PathBuf::from(point) };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => mounts.v2 = mounts.v2.or(Some(mount)),
                (Some("cgroup"), Some(options)) => {
                    for controller in options.split(',') {
                        mounts.v1.entry(controller.to_owned()).or_insert_with(|| mount.clone());
                    }
                }
                _ => {}
            }
        }
        mounts
    }
}

/// The groups of one process: controller and path; the controller of version 2 is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership(Vec<(String, String)>);

impl Membership {
    /// Reads `/proc/<pid>/cgroup`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut groups = Vec::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            groups.extend(controllers.split(',').map(|name| (name.to_owned(), path.to_owned())));
        }
        Self(groups)
    }

    /// Returns the ids of the containers that the process is in, from the outermost inwards, as the
    /// first hierarchy that names any tells them.
    #[must_use]
    pub fn container_ids(&self) -> Vec<&str> {
        let ids_of =
            |path| -> Vec<&str> { str::split(path, '/').filter_map(container_id).collect() };
        self.0
            .iter()
            .map(|(_, path)| ids_of(path.as_str()))
            .find(|ids| !ids.is_empty())
            .unwrap_or_default()
    }

    /// Returns the directory of `container` in the hierarchy of `controller`. A process may sit in a
    /// group below its container's (systemd makes some); the container's own counts.
    fn dir(&self, mounts: &Mounts, controller: &str, container: &str) -> Option<PathBuf> {
        let mount =
            if controller.is_empty() { mounts.v2.as_ref() } else { mounts.v1.get(controller) }?;
        let (_, path) = self.0.iter().find(|(name, _)| name == controller)?;
        let below = path.strip_prefix(mount.root.trim_end_matches('/'))?;
        let mut dir = mount.point.clone();
        for part in below.split('/').filter(|part| !part.is_empty()) {
            if part == ".." {
                return None;
            }
            dir.push(part);
            if container_id(part) == Some(container) {
                return Some(dir);
            }
        }
        None
    }
}

/// Returns the container id in a part of a path: `<id>`, `docker-<id>.scope` and the like.
fn container_id(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit('-').next()?;
    let is_id = id.len() == ID_DIGITS && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_id.then_some(id)
}

/// What a container uses. What the kernel does not tell is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds of CPU time since the container started.
    pub cpu_ns: u64,
    /// Bytes of memory, without page cache that can go.
    pub memory_bytes: u64,
    /// Most bytes of memory; 0 for no limit.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub write_bytes: u64,
}

/// Reads what `container` uses. Returns nothing when the process is not in that container, as when
/// it ended and its number went to another.
#[must_use]
pub fn usage(membership: &Membership, mounts: &Mounts, container: &str) -> Option<Usage> {
    if !membership.container_ids().contains(&container) {
        return None;
    }
    let v1 = |controller| membership.dir(mounts, controller, container);
    let v2 = membership.dir(mounts, "", container);
    let mut usage = Usage::default();
    if let Some(dir) = v1("cpuacct") {
        usage.cpu_ns = number(&dir.join("cpuacct.usage")).unwrap_or(0);
    } else if let Some(dir) = &v2 {
        let stat = text(&dir.join("cpu.stat"));
        usage.cpu_ns = keyed(&stat, "usage_usec").unwrap_or(0).saturating_mul(1000);
    }
    if let Some(dir) = v1("memory") {
        let stat = text(&dir.join("memory.stat"));
        let cache = keyed(&stat, "total_inactive_file").unwrap_or(0);
        let used = number(&dir.join("memory.usage_in_bytes")).unwrap_or(0);
        usage.memory_bytes = used.saturating_sub(cache);
        let limit = number(&dir.join("memory.limit_in_bytes")).unwrap_or(0);
        usage.memory_limit_bytes = if limit >= NO_LIMIT { 0 } else { limit };
    } else if let Some(dir) = &v2 {
        let cache = keyed(&text(&dir.join("memory.stat")), "inactive_file").unwrap_or(0);
        let used = number(&dir.join("memory.current")).unwrap_or(0);
        usage.memory_bytes = used.saturating_sub(cache);
        usage.memory_limit_bytes = number(&dir.join("memory.max")).unwrap_or(0);
    }
    if let Some(dir) = v1("pids").or_else(|| v2.clone()) {
        usage.pids = number(&dir.join("pids.current")).unwrap_or(0);
    }
    (usage.read_bytes, usage.write_bytes) = if let Some(dir) = v1("blkio") {
        blkio_v1(&text(&dir.join("blkio.throttle.io_service_bytes")))
    } else {
        v2.map(|dir| io_v2(&text(&dir.join("io.stat")))).unwrap_or_default()
    };
    Some(usage)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    text(path).trim().parse().ok()
}

/// Returns the number after `key` in lines of a key and a number.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Sums lines such as `8:0 Read 4096`.
fn blkio_v1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| {
        let lines = text.lines().filter_map(|line| {
            let mut parts = line.split(' ').skip(1);
            (parts.next()? == kind).then(|| parts.next()?.parse::<u64>().ok())?
        });
        lines.fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

/// Sums lines such as `8:0 rbytes=4096 wbytes=0 rios=1 …`.
fn io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let fields = text.split_ascii_whitespace().filter_map(|field| field.strip_prefix(key));
        fields.filter_map(|value| value.parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;

//! Numbers of the machine and of single processes, from `/proc`.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// CPU time of the machine since it started, in the kernel's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTicks {
    /// Ticks in which a CPU worked.
    pub busy: u64,
    /// All ticks of all CPUs.
    pub all: u64,
    /// CPUs.
    pub cpus: u64,
}

impl CpuTicks {
    /// Reads `/proc/stat`.
    #[must_use]
    pub fn parse(stat: &str) -> Self {
        let all_cpus = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        // The last two fields, guests, are part of the first two already.
        let ticks: Vec<u64> = all_cpus
            .split_ascii_whitespace()
            .take(8)
            .filter_map(|tick| tick.parse().ok())
            .collect();
        let all = ticks.iter().copied().fold(0, u64::saturating_add);
        let idle = ticks.iter().copied().skip(3).take(2).fold(0, u64::saturating_add);
        let is_cpu = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let cpus = stat.lines().filter(is_cpu).count() as u64;
        Self { busy: all.saturating_sub(idle), all, cpus }
    }

    /// Returns the thousandths of a core in use since `earlier`.
    #[must_use]
    pub fn millicores_since(self, earlier: Self) -> u64 {
        let busy = self.busy.saturating_sub(earlier.busy);
        let all = self.all.saturating_sub(earlier.all).max(1);
        busy.saturating_mul(self.cpus).saturating_mul(1000) / all
    }
}

/// Returns the bytes of memory in use by `/proc/meminfo`: all that cannot be given away.
#[must_use]
pub fn memory_used(meminfo: &str) -> u64 {
    let kib = |key: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    };
    kib("MemTotal:").saturating_sub(kib("MemAvailable:")).saturating_mul(1024)
}

/// Returns the free and all bytes of the filesystem that holds `path`, or would hold it.
#[must_use]
pub fn disk_bytes(path: &Path) -> Option<(u64, u64)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let found = statvfs(existing).ok()?;
    let unit = found.fragment_size();
    Some((found.blocks_available().saturating_mul(unit), found.blocks().saturating_mul(unit)))
}

/// Returns the bytes received and sent on all interfaces but loopback by `/proc/<pid>/net/dev`.
#[must_use]
pub fn network_bytes(dev: &str) -> (u64, u64) {
    let mut total = (0_u64, 0_u64);
    for line in dev.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let mut numbers = numbers.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        total.0 = total.0.saturating_add(numbers.next().unwrap_or(0));
        total.1 = total.1.saturating_add(numbers.nth(7).unwrap_or(0));
    }
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpu_counts_busy_ticks_of_all_cpus() {
        let before = CpuTicks::parse("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1\ncpu1 1\nintr 5\n");
        let after = CpuTicks::parse("cpu  150 0 150 750 150 0 0 0 90 0\ncpu0 1\ncpu1 1\nintr 5\n");

        assert_eq!((before.busy, before.all, before.cpus), (200, 1000, 2));
        assert_eq!(after.millicores_since(before), 1000, "half of two CPUs");
        assert_eq!(before.millicores_since(after), 0);
    }

    #[test]
    fn memory_in_use_leaves_out_what_can_be_given_away() {
        let text = "MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:    600 kB\n";

        assert_eq!(memory_used(text), 400 * 1024);
    }

    #[test]
    fn network_leaves_out_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 100 2 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n  eth1:7 2 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n";

        assert_eq!(network_bytes(text), (107, 55));
    }

    #[test]
    fn disk_of_a_directory_that_is_still_missing_is_the_one_that_would_hold_it() {
        let dir = tempfile::tempdir().unwrap();

        let (free, all) = disk_bytes(&dir.path().join("not/yet")).unwrap();

        assert!(free > 0 && free <= all);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "[ -~\\n]{0,200}") {
            let ticks = CpuTicks::parse(&text);
            let _ = ticks.millicores_since(ticks);
            let _ = (memory_used(&text), network_bytes(&text));
        }
    }
}

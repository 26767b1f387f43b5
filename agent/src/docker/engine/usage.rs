//! What a container uses, from Docker's statistics.

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt;

use super::{Engine, QUICK};
use crate::docker::{ContainerUsage, DockerError};

impl Engine {
    pub(super) async fn read_usage(&self, container: &str) -> Result<ContainerUsage, DockerError> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let mut answers = Box::pin(self.client.stats(container, Some(options)));
        let first = tokio::time::timeout(QUICK, answers.next()).await;
        match first {
            Ok(Some(Ok(stats))) => Ok(read(&stats)),
            Ok(Some(Err(error))) => Err(self.error("stats", QUICK, error)),
            Ok(None) => Err(DockerError::Protocol {
                what: "stats",
                message: "the answer is empty".to_owned(),
            }),
            Err(_) => Err(DockerError::TimedOut { what: "stats", after: QUICK }),
        }
    }
}

fn read(stats: &ContainerStatsResponse) -> ContainerUsage {
    let cpu = stats.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref());
    let memory = stats.memory_stats.clone().unwrap_or_default();
    // Page cache that nobody uses is given back at once when memory runs short. cgroup v1 calls it
    // total_inactive_file, v2 inactive_file; docker stats leaves out the same.
    let details = memory.stats.unwrap_or_default();
    let cache = details.get("total_inactive_file").or_else(|| details.get("inactive_file"));
    let used = memory.usage.unwrap_or_default();
    let networks = stats.networks.as_ref();
    let sum = |pick: fn(&bollard::models::ContainerNetworkStats) -> Option<u64>| {
        networks.map_or(0, |all| all.values().filter_map(pick).sum())
    };
    let blocks = stats.blkio_stats.as_ref().and_then(|io| io.io_service_bytes_recursive.as_ref());
    let moved = |op: &str| {
        blocks.map_or(0, |all| {
            all.iter()
                .filter(|e| e.op.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(op)))
                .filter_map(|entry| entry.value)
                .sum()
        })
    };
    let pids = stats.pids_stats.as_ref().and_then(|pids| pids.current).unwrap_or_default();
    ContainerUsage {
        cpu_ns: cpu.and_then(|cpu| cpu.total_usage).unwrap_or_default(),
        memory_bytes: used.saturating_sub(cache.copied().unwrap_or_default()),
        memory_limit_bytes: memory.limit.unwrap_or_default(),
        network_rx_bytes: sum(|network| network.rx_bytes),
        network_tx_bytes: sum(|network| network.tx_bytes),
        block_read_bytes: moved("read"),
        block_write_bytes: moved("write"),
        pids: u32::try_from(pids).unwrap_or(u32::MAX),
    }
}

//! Figures over HTTP.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::live::Last;
use crate::authz::Grant;
use crate::authz::policy::InstancesRead;
use crate::authz::resource::InstanceRef;
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::timestamp::Timestamp;
use crate::features::Ctx;

/// What an instance uses now.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Stats {
    /// When it was read.
    at: Timestamp,
    /// Thousandths of a core in use.
    cpu_millicores: u64,
    /// CPU in use, in percent of one core.
    cpu_percent: f64,
    /// Bytes of memory in use, without page cache.
    memory_used_bytes: u64,
    /// Most bytes allowed; 0 for no limit.
    memory_limit_bytes: u64,
    /// Bytes received since the container started.
    network_rx_bytes: u64,
    /// Bytes sent since the container started.
    network_tx_bytes: u64,
    /// Bytes read from disks since the container started.
    block_read_bytes: u64,
    /// Bytes written to disks since the container started.
    block_write_bytes: u64,
    /// Processes and threads.
    pids: u64,
    /// Bytes of GPU memory that its processes hold; none where NVML does not tell.
    gpu_memory_used_bytes: Option<u64>,
}

impl From<Last> for Stats {
    fn from(last: Last) -> Self {
        let it = last.sample;
        let millicores = u32::try_from(it.cpu_millicores).unwrap_or(u32::MAX);
        Self {
            at: last.at.into(),
            cpu_millicores: it.cpu_millicores,
            cpu_percent: f64::from(millicores) / 10.0,
            memory_used_bytes: it.memory_used_bytes,
            memory_limit_bytes: it.memory_limit_bytes,
            network_rx_bytes: it.network_rx_bytes,
            network_tx_bytes: it.network_tx_bytes,
            block_read_bytes: it.block_read_bytes,
            block_write_bytes: it.block_write_bytes,
            pids: it.pids,
            gpu_memory_used_bytes: it.gpu_memory_used_bytes,
        }
    }
}

/// Returns what an instance uses now.
#[utoipa::path(get, path = "/instances/{id}/stats", tag = "instances", params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = Stats), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub(super) async fn stats(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesRead>,
) -> Result<Json<Stats>> {
    let it = grant.resource();
    let last = it.node.and_then(|node| ctx.live.last(node, it.id));
    let last = last.ok_or_else(|| {
        let detail =
            "there are no figures of it: it does not run, or its first sample is still on the way";
        Problem::conflict("no_figures", detail)
    })?;
    Ok(Json(last.into()))
}

//! The last figures of a node and of an instance.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use tianqi_common::wire::telemetry::GpuSample;
use utoipa::ToSchema;

use super::store::{self, Standing};
use crate::authz::Grant;
use crate::authz::policy::{InstancesRead, NodesRead};
use crate::authz::resource::{InstanceRef, NodeRef, Resource};
use crate::core::error::{Problem, ProblemBody, Result};
use crate::core::timestamp::Timestamp;
use crate::features::Ctx;

/// What an instance uses now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InstanceStats {
    /// When it was read, by the node's clock.
    sampled_at: Timestamp,
    /// Milliseconds since it arrived.
    age_ms: u64,
    /// Thousandths of a core in use.
    cpu_millicores: u64,
    /// Thousandths of a core that it may use.
    cpu_limit_millicores: Option<u64>,
    /// Percent of the cores that it may use.
    cpu_percent: Option<f64>,
    /// Bytes of memory in use, without page cache.
    memory_used_bytes: u64,
    /// Most bytes of memory; null for no limit.
    memory_limit_bytes: Option<u64>,
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
    /// Bytes of GPU memory that its processes hold; null where the node cannot tell.
    gpu_memory_used_bytes: Option<u64>,
}

/// What a node uses now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeStats {
    /// When it was read, by the node's clock.
    sampled_at: Timestamp,
    /// Milliseconds since it arrived.
    age_ms: u64,
    /// Thousandths of a core in use.
    cpu_millicores: u64,
    /// Bytes of memory in use.
    memory_used_bytes: u64,
    /// Free bytes where Docker keeps its data.
    disk_free_bytes: u64,
    /// Its cards.
    gpus: Vec<GpuStats>,
}

/// What a card does now; null for what it cannot tell.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GpuStats {
    /// Which card.
    uuid: String,
    /// Percent of time that a kernel ran.
    utilisation_percent: Option<u32>,
    /// Bytes in use.
    memory_used_bytes: Option<u64>,
    /// Degrees Celsius.
    temperature_c: Option<u32>,
    /// Milliwatts.
    power_mw: Option<u32>,
}

impl From<GpuSample> for GpuStats {
    fn from(sample: GpuSample) -> Self {
        Self {
            uuid: sample.uuid.0,
            utilisation_percent: sample.utilisation_percent,
            memory_used_bytes: sample.memory_used_bytes,
            temperature_c: sample.temperature_c,
            power_mw: sample.power_mw,
        }
    }
}

/// Returns what an instance used when its node last looked, some seconds ago.
#[utoipa::path(get, path = "/instances/{id}/stats", tag = "instances", params(("id" = Uuid, Path)),
    responses((status = 200, body = InstanceStats), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub(super) async fn stats(
    State(ctx): State<Ctx>,
    grant: Grant<InstanceRef, InstancesRead>,
) -> Result<Json<InstanceStats>> {
    let instance = grant.resource();
    let standing = store::standing(&ctx.db, instance.id).await?.ok_or_else(InstanceRef::missing)?;
    let last = instance.node.and_then(|node| ctx.live.instance(node, instance.id));
    let Some(last) = last.filter(|_| is_measured(&standing)) else {
        return Err(no_figures(instance, &standing));
    };
    let (age, sample) = (last.age(ctx.clock.now()), last.sample);
    Ok(Json(InstanceStats {
        sampled_at: last.at.into(),
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        cpu_millicores: sample.cpu_millicores,
        cpu_limit_millicores: standing.cpu_limit_millicores,
        cpu_percent: share(sample.cpu_millicores, standing.cpu_limit_millicores),
        memory_used_bytes: sample.memory_used_bytes,
        memory_limit_bytes: (sample.memory_limit_bytes > 0).then_some(sample.memory_limit_bytes),
        network_rx_bytes: sample.network_rx_bytes,
        network_tx_bytes: sample.network_tx_bytes,
        block_read_bytes: sample.block_read_bytes,
        block_write_bytes: sample.block_write_bytes,
        pids: sample.pids,
        gpu_memory_used_bytes: sample.gpu_memory_used_bytes,
    }))
}

/// Returns what a node and its cards did when the node last looked, some seconds ago.
#[utoipa::path(get, path = "/nodes/{id}/telemetry", tag = "nodes", params(("id" = Uuid, Path)),
    responses((status = 200, body = NodeStats), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub(super) async fn node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesRead>,
) -> Result<Json<NodeStats>> {
    let id = grant.resource().id;
    let last = ctx.live.node(id).ok_or_else(|| {
        let detail = "this node has sent no figures since the controller started; they come within \
                      10 s of its agent's connection";
        Problem::conflict("no_sample", detail)
    })?;
    let (age, sample) = (last.age(ctx.clock.now()), last.sample);
    Ok(Json(NodeStats {
        sampled_at: last.at.into(),
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        cpu_millicores: sample.node.cpu_millicores,
        memory_used_bytes: sample.node.memory_used_bytes,
        disk_free_bytes: sample.node.disk_free_bytes,
        gpus: sample.gpus.into_iter().map(GpuStats::from).collect(),
    }))
}

/// Whether figures of this phase mean anything: an old sample outlives the container by seconds. Of
/// an instance whose node is silent, the last figures are shown with their age.
fn is_measured(standing: &Standing) -> bool {
    matches!(standing.phase.as_str(), "running" | "stopping" | "unknown")
}

fn no_figures(instance: &InstanceRef, standing: &Standing) -> Problem {
    let because =
        if standing.reason.is_empty() { String::new() } else { format!(": {}", standing.reason) };
    let phase = &standing.phase;
    match (instance.node, is_measured(standing)) {
        (None, _) => {
            Problem::conflict("not_placed", format!("the instance is {phase}, on no node{because}"))
        }
        (Some(_), false) => {
            Problem::conflict("not_running", format!("the instance is {phase}{because}"))
        }
        (Some(_), true) => Problem::conflict(
            "no_sample",
            "its node has sent no figures of it yet; they come within 10 s of its start",
        ),
    }
}

/// Returns the percentage with one decimal.
fn share(used: u64, limit: Option<u64>) -> Option<f64> {
    let limit = limit.filter(|limit| *limit > 0)?;
    let permille = used.saturating_mul(1_000) / limit;
    Some(f64::from(u32::try_from(permille).unwrap_or(u32::MAX)) / 10.0)
}

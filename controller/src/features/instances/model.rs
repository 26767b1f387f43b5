//! What people ask for and what they are shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tianqi_common::id::{ImageId, InstanceId, NodeId, SpecId, UserId};
use tianqi_common::name::InstanceName;
use tianqi_common::unit::{CorePercent, DiskGib, GpuMemoryMib, MemoryMib, Millicores};
use tianqi_common::wire::desired::{GpuSlice, RestartPolicy};
use tianqi_scheduler::{GpuRequest, Policy, Request};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::core::error::{Problem, Result};

/// Longest remark, in characters.
pub const REMARK_MAX: usize = 1_000;
/// Most environment variables of an instance.
pub const ENV_MAX: usize = 100;
/// Longest name of an environment variable, in bytes.
pub const ENV_NAME_MAX: usize = 128;
/// Longest value of an environment variable, in bytes.
pub const ENV_VALUE_MAX: usize = 4 << 10;
/// Most bytes of all environment variables together.
pub const ENV_TOTAL_MAX: usize = 32 << 10;
/// Largest priority, either way from 0.
pub const PRIORITY_MAX: i32 = 100;
/// Most instances of one request that deletes many.
pub const DELETE_MANY_MAX: usize = 100;
/// Most processes and threads of an instance.
pub const PIDS_LIMIT: u32 = 16_384;

/// A new instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// Letters, digits, `-` and `_`, 1 to 50; unique among the owner's instances.
    pub name: String,
    /// An image on offer.
    pub image_id: Uuid,
    /// A spec on offer.
    pub spec_id: Uuid,
    /// The node it must go to; any when left out.
    #[serde(default)]
    pub node_id: Option<Uuid>,
    /// Free text, at most 1 000 characters.
    #[serde(default)]
    pub remark: String,
    /// Environment variables; names that steer GPU sharing are refused.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What happens when its process ends by itself.
    #[serde(default)]
    #[schema(value_type = String, example = "never")]
    pub restart_policy: RestartPolicy,
    /// Its place in the queue, −100 to 100, higher first. Only admins may set it.
    #[serde(default)]
    pub priority: Option<i32>,
    /// Whether to refuse at once when nothing fits now, instead of queueing.
    #[serde(default)]
    pub fail_if_full: bool,
}

/// What may be changed of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchInstance {
    /// Another name.
    #[serde(default)]
    pub name: Option<String>,
    /// Another remark.
    #[serde(default)]
    pub remark: Option<String>,
}

/// A checked [`CreateInstance`].
#[derive(Clone, Debug)]
pub struct NewInstance {
    /// Its name.
    pub name: InstanceName,
    /// Its image.
    pub image: ImageId,
    /// Its spec.
    pub spec: SpecId,
    /// The node it must go to.
    pub node: Option<NodeId>,
    /// Free text.
    pub remark: String,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// What happens when its process ends by itself.
    pub restart: RestartPolicy,
    /// Its place in the queue.
    pub priority: Option<i32>,
    /// Whether not to queue.
    pub fail_if_full: bool,
}

impl CreateInstance {
    /// Checks everything that can be checked without the database.
    ///
    /// # Errors
    ///
    /// `bad_name`, `bad_remark`, `bad_env`, `reserved_env`, `bad_priority` (422).
    pub fn check(self) -> Result<NewInstance> {
        let name = check_name(&self.name)?;
        check_remark(&self.remark)?;
        check_env(&self.env)?;
        if let Some(priority) = self.priority
            && !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority)
        {
            let detail = format!("priority {priority} is not within ±{PRIORITY_MAX}");
            return Err(Problem::invalid("bad_priority", detail));
        }
        Ok(NewInstance {
            name,
            image: ImageId(self.image_id),
            spec: SpecId(self.spec_id),
            node: self.node_id.map(NodeId),
            remark: self.remark,
            env: self.env,
            restart: self.restart_policy,
            priority: self.priority,
            fail_if_full: self.fail_if_full,
        })
    }
}

/// Checks an instance's name.
///
/// # Errors
///
/// `bad_name` (422).
pub fn check_name(name: &str) -> Result<InstanceName> {
    InstanceName::parse(name).map_err(|error| Problem::invalid("bad_name", error.to_string()))
}

/// Checks a remark.
///
/// # Errors
///
/// `bad_remark` (422).
pub fn check_remark(remark: &str) -> Result<()> {
    let length = remark.chars().count();
    if length > REMARK_MAX {
        let detail = format!("the remark has {length} characters; at most {REMARK_MAX} are kept");
        return Err(Problem::invalid("bad_remark", detail));
    }
    if remark.contains('\0') {
        return Err(Problem::invalid("bad_remark", "the remark holds a zero byte"));
    }
    Ok(())
}

/// Variables that steer GPU sharing, exactly or by their beginning. A user who set one could take
/// more of a card than was granted.
const RESERVED: &[&str] = &[
    "LD_PRELOAD",
    "LD_AUDIT",
    "CUDA_REDIRECT",
    "CUDA_DISABLE_CONTROL",
    "GPU_CORE_UTILIZATION_POLICY",
    "CUDA_VISIBLE_DEVICES",
];
const RESERVED_PREFIXES: &[&str] = &["CUDA_DEVICE_", "NVIDIA_"];

fn check_env(env: &BTreeMap<String, String>) -> Result<()> {
    let bad = |detail: String| Err(Problem::invalid("bad_env", detail));
    if env.len() > ENV_MAX {
        return bad(format!("{} variables are given; at most {ENV_MAX} are allowed", env.len()));
    }
    let total: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > ENV_TOTAL_MAX {
        return bad(format!(
            "the variables have {total} bytes; at most {ENV_TOTAL_MAX} are allowed"
        ));
    }
    for (name, value) in env {
        let is_head = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_name = name.starts_with(is_head)
            && name.len() <= ENV_NAME_MAX
            && name.chars().all(|c| is_head(c) || c.is_ascii_digit());
        if !is_name {
            let shown: String = name.chars().take(40).collect();
            return bad(format!(
                "{shown:?} is no name for a variable: letters, digits and '_', not beginning with a digit, at most {ENV_NAME_MAX}"
            ));
        }
        if value.len() > ENV_VALUE_MAX || value.contains('\0') {
            return bad(format!(
                "the value of {name} is over {ENV_VALUE_MAX} bytes or holds a zero byte"
            ));
        }
        let upper = name.to_ascii_uppercase();
        if RESERVED.contains(&upper.as_str())
            || RESERVED_PREFIXES.iter().any(|prefix| upper.starts_with(prefix))
        {
            let detail =
                format!("{name} steers GPU sharing and is set by the platform; leave it out");
            return Err(Problem::invalid("reserved_env", detail));
        }
    }
    Ok(())
}

/// The size of an instance as its spec was when it was created. Changing the spec changes nothing
/// for instances that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecSnapshot {
    /// The spec's name.
    pub name: String,
    /// The model of card asked for; any when `None`.
    pub gpu_model: Option<String>,
    /// Cards.
    pub gpu_count: u32,
    /// Memory of a slice.
    pub gpu_memory_mib: Option<u64>,
    /// Cores of a slice, in percent.
    pub gpu_core_percent: Option<u32>,
    /// Whether it takes a part of one card.
    pub slicing: bool,
    /// CPU.
    pub cpu_millicores: u64,
    /// Memory.
    pub memory_mib: u64,
    /// Size of the writable layer; 0 for no limit.
    pub system_disk_gib: u64,
    /// Size of the volume at `/data`; 0 for none.
    pub data_disk_gib: u64,
    /// Price in millionths.
    pub price_per_hour_micros: i64,
}

impl SpecSnapshot {
    /// Returns the part of one card that it asks for; `None` when it asks for whole cards or none.
    #[must_use]
    pub fn slice(&self) -> Option<GpuSlice> {
        let memory = self.gpu_memory_mib.filter(|_| self.slicing && self.gpu_count > 0)?;
        let cores = self.gpu_core_percent.unwrap_or(tianqi_scheduler::WHOLE_CARD.0);
        Some(GpuSlice { memory: GpuMemoryMib(memory), cores: CorePercent(cores) })
    }

    /// Returns what the scheduler is asked for.
    #[must_use]
    pub fn request(&self, node: Option<NodeId>, image: &str) -> Request {
        let model = self.gpu_model.clone();
        let gpu = match self.slice() {
            _ if self.gpu_count == 0 => GpuRequest::None,
            Some(GpuSlice { memory, cores }) => GpuRequest::Slice { memory, cores, model },
            None => GpuRequest::Whole { count: self.gpu_count, model },
        };
        Request {
            cpu: Millicores(self.cpu_millicores),
            memory: MemoryMib(self.memory_mib),
            disk: DiskGib(self.system_disk_gib.saturating_add(self.data_disk_gib)),
            gpu,
            node,
            image: Some(image.to_owned()),
            policy: Policy::default(),
        }
    }

    /// Returns the size of `/dev/shm`: half of the memory, because data loaders of several
    /// processes hand batches over there and Docker's 64 MiB stall them.
    #[must_use]
    pub fn shm(&self) -> MemoryMib {
        MemoryMib((self.memory_mib / 2).max(64))
    }
}

/// Returns the name of an instance's container.
#[must_use]
pub fn container_name(name: &InstanceName, id: InstanceId, now_s: i64) -> String {
    format!("{name}-{id}-{now_s}")
}

/// Names a restart policy as the API and the database do.
#[must_use]
pub fn policy_word(policy: RestartPolicy) -> &'static str {
    match policy {
        RestartPolicy::Never => "never",
        RestartPolicy::OnFailure => "on_failure",
        RestartPolicy::Always => "always",
    }
}

/// Reads the name of a restart policy.
#[must_use]
pub fn policy_from_word(word: &str) -> Option<RestartPolicy> {
    [RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always]
        .into_iter()
        .find(|policy| policy_word(*policy) == word)
}

/// Who an instance is for and what it is made of, at creation.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Whose it is.
    pub owner: UserId,
    /// The image's address.
    pub image_address: String,
    /// The spec as it is.
    pub spec: SpecSnapshot,
}

//! What counts towards its owner's quota, and the refusal when it is too much.
//!
//! The meaning of each quantity is told in the room `quotas`. What is used is counted from the rows
//! and never kept beside them, so there is no second number that could be wrong.

use serde_json::json;
use tianqi_common::id::{InstanceId, UserId};
use tianqi_common::unit::Millicores;
use tianqi_scheduler::quota::{Amounts, Excess, Quantity, check};

use super::lifecycle::{Desired, State};
use super::model::SpecSnapshot;
use super::store::{self, Instance};
use crate::authz::quota::{Holder, holder, lock};
use crate::core::db::{Db, DbError, Source, Tx};
use crate::core::error::{Problem, Result};
use crate::core::number::CpuCores;

/// Returns what an instance counts for as long as it exists.
fn kept(spec: &SpecSnapshot) -> Amounts {
    let disk_gib = spec.system_disk_gib.saturating_add(spec.data_disk_gib);
    Amounts { disk_gib, ..Amounts::default() }
}

/// Returns what an instance counts besides while it should run.
fn running(spec: &SpecSnapshot) -> Amounts {
    let slice = spec.slice();
    Amounts {
        gpus: if slice.is_some() { 0 } else { u64::from(spec.gpu_count) },
        gpu_memory_mib: slice.map_or(0, |slice| slice.memory.0),
        cpu_millicores: spec.cpu_millicores,
        memory_mib: spec.memory_mib,
        ..Amounts::default()
    }
}

/// Returns what an instance counts for.
fn counted(desired: Desired, spec: &SpecSnapshot) -> Amounts {
    let one = Amounts { instances: 1, ..Amounts::default() };
    match desired {
        Desired::Running => kept(spec).plus(&running(spec)).plus(&one),
        Desired::Stopped => kept(spec).plus(&one),
        Desired::Deleted => kept(spec),
    }
}

/// What an instance is about to take of its owner's quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    owner: UserId,
    /// The instance, when it exists already: what it counts for now is not counted again.
    instance: Option<InstanceId>,
    amounts: Amounts,
}

impl Wanted {
    /// What a new instance takes.
    pub(super) fn by_new(owner: UserId, spec: &SpecSnapshot) -> Self {
        Self { owner, instance: None, amounts: counted(Desired::Running, spec) }
    }

    /// What a step takes: something when the instance should run and should not before.
    pub(super) fn by_step(before: &Instance, after: State) -> Option<Self> {
        let starts = before.state.desired != Desired::Running && after.desired == Desired::Running;
        let (owner, instance) = (before.owner, Some(before.id));
        starts.then(|| Self { owner, instance, amounts: running(&before.spec) })
    }

    /// Locks the owner's quota and returns the refusal, if it is too much; otherwise the caller takes
    /// it in the same transaction.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub(super) async fn refusal(&self, tx: &mut Tx) -> Result<Option<Problem>, DbError> {
        match lock(tx, self.owner).await? {
            Some(holder) => self.judge(tx, &holder).await,
            None => Ok(Some(gone())),
        }
    }

    /// Returns the refusal that would come now, if one would; it may be otherwise a moment later.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the engine refuses.
    pub(super) async fn foreseen(&self, db: &Db) -> Result<Option<Problem>, DbError> {
        match holder(db, self.owner).await? {
            Some(holder) => self.judge(db, &holder).await,
            None => Ok(Some(gone())),
        }
    }

    async fn judge(&self, from: impl Source, holder: &Holder) -> Result<Option<Problem>, DbError> {
        if holder.limits.is_unlimited() {
            return Ok(None);
        }
        let used = usage(from, self.owner, self.instance).await?;
        let refused = check(&holder.limits, &used, &self.amounts).err();
        Ok(refused.map(|excesses| exceeded(&holder.name, &excesses)))
    }
}

/// Returns what `owner` uses, without `except`.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(super) async fn usage(
    from: impl Source,
    owner: UserId,
    except: Option<InstanceId>,
) -> Result<Amounts, DbError> {
    let groups = store::alike(from, owner, except).await?;
    let sum = |sum: Amounts, group: &store::Alike| {
        sum.plus(&counted(group.desired, &group.spec).times(group.count))
    };
    Ok(groups.iter().fold(Amounts::default(), sum))
}

/// The account was deleted while its last request was on its way.
fn gone() -> Problem {
    Problem::conflict("owner_gone", "the account that this is for was deleted meanwhile")
}

fn exceeded(name: &str, excesses: &[Excess]) -> Problem {
    let told: Vec<String> = excesses.iter().map(Excess::to_string).collect();
    let detail = format!(
        "this goes over the quota of {name}: {}; stop or delete instances, or ask an admin for a larger quota",
        told.join("; ")
    );
    let data: Vec<_> = excesses.iter().map(shown).collect();
    Problem::conflict("quota_exceeded", detail).with(json!({ "exceeded": data }))
}

/// Returns an excess with the names and units of the API.
fn shown(excess: &Excess) -> serde_json::Value {
    let (name, unit): (_, fn(u64) -> serde_json::Value) = match excess.quantity {
        Quantity::Instances => ("instances", |amount| json!(amount)),
        Quantity::Gpus => ("gpus", |amount| json!(amount)),
        Quantity::GpuMemory => ("gpu_memory_mib", |amount| json!(amount)),
        Quantity::Cpu => ("cpu_cores", |amount| json!(CpuCores(Millicores(amount)))),
        Quantity::Memory => ("memory_mib", |amount| json!(amount)),
        Quantity::Disk => ("disk_gib", |amount| json!(amount)),
    };
    json!({
        "limit": name,
        "allowed": unit(excess.limit),
        "used": unit(excess.used),
        "wanted": unit(excess.wanted),
        "over": unit(excess.over),
    })
}

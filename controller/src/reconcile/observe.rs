//! What agents report becomes rows: by compare-and-set, once, and only where something changed.

use std::collections::{BTreeMap, BTreeSet};

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::desired::GpuUuid;
use tianqi_common::wire::observed::{ContainerState, InstanceObserved, NodeObserved, Removed};

use crate::core::db::{Db, DbError, Tx};
use crate::features::instances::change::Change;
use crate::features::instances::fleet;
use crate::features::instances::lifecycle::{Desired, Event, Next, Phase, Seen, State, next};
use crate::features::instances::store::{self, Instance, Why};

/// How often a report is compared again when rows change meanwhile.
const ATTEMPTS: u32 = 5;
/// What a real card's uuid does not begin with.
const SIMULATED: &str = "SIM-";

/// What a report led to.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Instances whose rows changed.
    pub(crate) changed: Vec<InstanceId>,
    /// Whether capacity became free.
    pub(crate) freed: bool,
    /// Images that the node lacks, each with an instance that waits for it.
    pub(crate) missing: BTreeMap<String, InstanceId>,
}

/// Takes in the report of a node.
///
/// # Errors
///
/// [`DbError`] when the engine refuses; the same report can be taken in again.
pub(crate) async fn take(
    db: &Db,
    node: NodeId,
    report: &NodeObserved,
    now: UnixMillis,
) -> Result<Taken, DbError> {
    let mut taken = Taken::default();
    for _ in 0..ATTEMPTS {
        let rows = store::on_node(db, node).await?;
        let (changes, gone) = compare(&rows, report, now);
        taken.missing = missing(&rows, report);
        if changes.is_empty() && gone.is_empty() {
            break;
        }
        match write(db, node, &changes, &gone, now, &mut taken).await {
            Ok(true) => break,
            // Somebody else changed a row meanwhile: what is left is compared again.
            Ok(false) => {}
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

/// Returns the changes that a report makes, and the instances of which nothing is left.
fn compare(
    rows: &[Instance],
    report: &NodeObserved,
    now: UnixMillis,
) -> (Vec<Change>, Vec<InstanceId>) {
    let by_id: BTreeMap<InstanceId, &Instance> = rows.iter().map(|it| (it.id, it)).collect();
    let seen = report.instances.iter().filter_map(|seen| {
        let it = by_id.get(&seen.id)?;
        observed(it, seen, &report.docker.reason, now)
    });
    let mut changes: Vec<Change> = seen.collect();
    let mut gone = Vec::new();
    for removed in &report.removed {
        let Some(it) = by_id.get(&removed.id) else { continue };
        if removed.leftovers.is_empty() {
            if next(it.state, Event::Removed) == Next::Gone {
                gone.push(it.id);
            }
        } else {
            changes.extend(leftover(it, removed, now));
        }
    }
    (changes, gone)
}

fn leftover(it: &Instance, removed: &Removed, now: UnixMillis) -> Option<Change> {
    let text = format!("not everything could be removed yet: {}", removed.leftovers.join("; "));
    let why = Why::new("leftovers", text.clone());
    if it.state.desired != Desired::Deleted || it.why == why {
        return None;
    }
    Some(Change::to(it, it.state, why, false, now).noting("leftovers", text))
}

fn observed(
    it: &Instance,
    seen: &InstanceObserved,
    docker_reason: &str,
    now: UnixMillis,
) -> Option<Change> {
    if it.state.desired == Desired::Deleted {
        return None;
    }
    let mut before = it.clone();
    // After the restore of an old copy the agent may have acted on a later generation than the row
    // knows of. The row counts on from there, so that its next change is newer again.
    before.generation = before.generation.max(seen.generation);
    let is_elsewhere = before.generation != it.generation
        && it.state.runs_on_node() != matches!(seen.state, ContainerState::Running);
    let acted = seen.generation == before.generation && !is_elsewhere;
    let event = Seen { container: &seen.state, acted, policy: it.policy };
    let state = match next(it.state, Event::Observed(&event)) {
        Next::To(state) => state,
        Next::Same | Next::Gone | Next::Refused => it.state,
    };
    let why = why(it, state, seen, docker_reason, now).unwrap_or_else(|| it.why.clone());
    let mut change = Change::to(&before, state, why, is_elsewhere, now);
    change.before.generation = it.generation;
    record(&mut change.after, seen);
    if change.after == *it {
        return None;
    }
    if state.phase != it.state.phase || change.after.why.code != it.why.code {
        let text = match change.after.why.text.as_str() {
            "" => format!("it is {}", state.phase.as_str()),
            text => text.to_owned(),
        };
        change = change.noting(state.phase.as_str(), text);
    }
    Some(change)
}

/// Writes what was seen into the row.
fn record(after: &mut Instance, seen: &InstanceObserved) {
    after.observed_generation = seen.generation;
    if seen.state == ContainerState::Unknown {
        return;
    }
    after.container_id.clone_from(&seen.container_id);
    after.restarts = seen.restarts;
    after.started_at = seen.started_at;
    if !seen.limits.is_empty() {
        after.limits = serde_json::to_string(&seen.limits).unwrap_or_default();
    }
    if let ContainerState::Exited { code, .. } = &seen.state
        && after.state.phase != Phase::Pending
    {
        after.exit_code = Some(*code);
    }
}

/// Says why an instance is in the phase that a report led to; nothing when what was said before
/// still holds.
fn why(
    it: &Instance,
    to: State,
    seen: &InstanceObserved,
    docker: &str,
    now: UnixMillis,
) -> Option<Why> {
    let is_news = it.state.phase != to.phase;
    match to.phase {
        Phase::Pending | Phase::Deleting => None,
        Phase::Running => Some(running(it, seen)),
        Phase::Creating => creating(it, seen, now),
        Phase::Exited => is_news.then(|| ended(it, &seen.state)),
        Phase::Failed => is_news.then(|| failed(&seen.state)),
        Phase::Stopping => stopping(it, seen),
        Phase::Unknown => Some(Why::new(
            "docker_down",
            format!("the Docker engine of its node does not answer: {docker}"),
        )),
    }
}

fn running(it: &Instance, seen: &InstanceObserved) -> Why {
    let real = |gpus: &[GpuUuid]| -> BTreeSet<String> {
        // Simulated cards are never asked of Docker.
        gpus.iter().filter(|gpu| !gpu.0.starts_with(SIMULATED)).map(|gpu| gpu.0.clone()).collect()
    };
    let (granted, given) = (real(&it.gpus), real(&seen.gpus));
    if granted == given {
        return Why::default();
    }
    let list = |gpus: BTreeSet<String>| {
        if gpus.is_empty() {
            "none".to_owned()
        } else {
            gpus.into_iter().collect::<Vec<_>>().join(", ")
        }
    };
    let text = format!(
        "its container has other cards than granted: {} instead of {}",
        list(given),
        list(granted)
    );
    Why::new("gpu_mismatch", text)
}

fn creating(it: &Instance, seen: &InstanceObserved, now: UnixMillis) -> Option<Why> {
    match &seen.state {
        ContainerState::ImageMissing => (it.why.code != "image_pulling").then(|| {
            Why::new("image_pulling", format!("its node fetches the image {}", it.image_address))
        }),
        ContainerState::Failed { message, retrying: true } => {
            let since = failing_since(it).unwrap_or(now);
            let detail = serde_json::json!({ "failing_since_ms": since.0 }).to_string();
            Some(Why { detail, ..Why::new(RETRYING, message) })
        }
        ContainerState::Exited { code, .. } if seen.generation >= it.generation => {
            let text = format!("its process ended with code {code} and is started again");
            Some(Why::new("restarting", text))
        }
        ContainerState::Absent
        | ContainerState::Creating
        | ContainerState::Running
        | ContainerState::Stopping
        | ContainerState::Exited { .. }
        | ContainerState::Failed { .. }
        | ContainerState::Unknown => {
            let is_over = matches!(it.why.code.as_str(), "image_pulling" | RETRYING);
            let is_said = it.state.phase == Phase::Creating && !is_over;
            (!is_said).then(|| Why::new("creating", "its container is being made or started"))
        }
    }
}

/// The word for an instance whose container the agent tries to make or start again and again.
pub(crate) const RETRYING: &str = "retrying";

/// Returns since when the agent tries in vain.
pub(crate) fn failing_since(it: &Instance) -> Option<UnixMillis> {
    let detail: serde_json::Value =
        serde_json::from_str(&it.why.detail).ok().filter(|_| it.why.code == RETRYING)?;
    detail.get("failing_since_ms")?.as_i64().map(UnixMillis)
}

fn ended(it: &Instance, container: &ContainerState) -> Why {
    if it.state.desired == Desired::Stopped {
        return match it.why.code.as_str() {
            "drained" => Why::new("drained", "it was stopped because its node is drained"),
            _ => Why::new("stopped", "it was stopped; node, disk and data are kept"),
        };
    }
    match container {
        ContainerState::Exited { out_of_memory: true, code, .. } => {
            let text = format!("the kernel ended its process for lack of memory (code {code})");
            Why::new("out_of_memory", text)
        }
        ContainerState::Exited { code, message, .. } if message.is_empty() => {
            Why::new("exited", format!("its process ended by itself with code {code}"))
        }
        ContainerState::Exited { message, .. } => Why::new("exited", message),
        ContainerState::Absent
        | ContainerState::ImageMissing
        | ContainerState::Creating
        | ContainerState::Running
        | ContainerState::Stopping
        | ContainerState::Failed { .. }
        | ContainerState::Unknown => Why::new("exited", "its process ended"),
    }
}

fn failed(container: &ContainerState) -> Why {
    match container {
        ContainerState::Failed { message, .. } => Why::new("container_failed", message),
        ContainerState::Absent
        | ContainerState::ImageMissing
        | ContainerState::Creating
        | ContainerState::Running
        | ContainerState::Stopping
        | ContainerState::Exited { .. }
        | ContainerState::Unknown => Why::new(
            "container_missing",
            "its container was removed outside of the platform; start makes another",
        ),
    }
}

fn stopping(it: &Instance, seen: &InstanceObserved) -> Option<Why> {
    if let ContainerState::Failed { message, .. } = &seen.state {
        return Some(Why::new("stop_failing", message));
    }
    let text = match it.state.phase {
        Phase::Stopping => return None,
        Phase::Exited | Phase::Failed => {
            "it was started outside of the platform; it is being stopped"
        }
        Phase::Pending | Phase::Creating | Phase::Running | Phase::Deleting | Phase::Unknown => {
            "it is being stopped"
        }
    };
    Some(Why::new("stopping", text))
}

fn missing(rows: &[Instance], report: &NodeObserved) -> BTreeMap<String, InstanceId> {
    let wanted: BTreeMap<InstanceId, &Instance> =
        rows.iter().filter(|it| it.state.runs_on_node()).map(|it| (it.id, it)).collect();
    let lacking = report.instances.iter().filter(|seen| seen.state == ContainerState::ImageMissing);
    lacking
        .filter_map(|seen| wanted.get(&seen.id))
        .map(|it| (it.image_address.clone(), it.id))
        .collect()
}

/// Writes everything in one transaction. Returns false when a row had changed meanwhile and was
/// left alone; the others are written all the same.
async fn write(
    db: &Db,
    node: NodeId,
    changes: &[Change],
    gone: &[InstanceId],
    now: UnixMillis,
    taken: &mut Taken,
) -> Result<bool, DbError> {
    let ids = BTreeSet::from([node]);
    let mut tx = db.begin().await?;
    fleet::lock_nodes(&mut tx, &ids).await?;
    let (mut changed, mut is_whole, mut concerns, mut freed) = (Vec::new(), true, false, false);
    for change in changes {
        if !change.write(&mut tx, now).await? {
            is_whole = false;
            continue;
        }
        changed.push(change.before.id);
        concerns |= change.concerns_node();
        freed |= change.before.state.keeps_capacity() && !change.after.state.keeps_capacity();
    }
    for id in gone {
        if bury(&mut tx, *id, now).await? {
            changed.push(*id);
            (concerns, freed) = (true, true);
        }
    }
    if concerns {
        store::touch_nodes(&mut tx, &ids).await?;
    }
    tx.commit().await?;
    taken.changed.extend(changed);
    taken.freed |= freed;
    Ok(is_whole)
}

async fn bury(tx: &mut Tx, id: InstanceId, now: UnixMillis) -> Result<bool, DbError> {
    let buried = store::bury(tx, id, now).await?;
    if buried {
        store::note(tx, id, now, "deleted", "container and data are gone").await?;
    }
    Ok(buried)
}

//! Settles ends and failures that the agent did not turn around.
//!
//! An agent starts a container again after a reboot or an outage of its engine, so an end is final
//! only when the agent, still connected, has left it so for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};

use crate::core::db::{Db, DbError};
use crate::features::instances::change::Change;
use crate::features::instances::lifecycle::{Event, Next, Phase, next};
use crate::features::instances::store::{self, Instance, Why};
use crate::reconcile::Agents;
use crate::reconcile::observe::failing_since;

/// How long an end must stand.
const SETTLED: Duration = Duration::from_secs(10);
/// How long an agent tries to make or start a container before the instance counts as failed and
/// its capacity goes to others.
const PATIENCE: Duration = Duration::from_secs(60);

/// What settling gave.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Instances that are settled now.
    pub(crate) changed: Vec<InstanceId>,
    /// Their nodes.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Whether there are others that are not yet.
    pub(crate) is_open: bool,
}

/// Settles what stands long enough.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub(crate) async fn settle<A: Agents>(
    db: &Db,
    agents: &A,
    now: UnixMillis,
) -> Result<Settled, DbError> {
    let mut settled = Settled::default();
    for it in store::unsettled(db).await? {
        let Some(node) = it.node.filter(|node| agents.is_connected(*node)) else { continue };
        let Some(change) = change(&it, now) else {
            settled.is_open = true;
            continue;
        };
        let mut tx = db.begin().await?;
        store::touch_nodes(&mut tx, &BTreeSet::from([node])).await?;
        if change.write(&mut tx, now).await? {
            tx.commit().await?;
            settled.changed.push(it.id);
            settled.nodes.insert(node);
        }
    }
    Ok(settled)
}

fn change(it: &Instance, now: UnixMillis) -> Option<Change> {
    let (event, why, note) = if it.state.phase == Phase::Exited {
        (now.since(it.updated_at) >= SETTLED).then(|| {
            let note = ("ended", format!("{}; CPU, memory and cards are released", it.why.text));
            (Event::EndConfirmed, it.why.clone(), note)
        })?
    } else {
        let since = failing_since(it)?;
        (now.since(since) >= PATIENCE).then(|| {
            let why = Why::new("container_failed", it.why.text.clone());
            (Event::GaveUp, why, ("failed", it.why.text.clone()))
        })?
    };
    let Next::To(state) = next(it.state, event) else { return None };
    Some(Change::to(it, state, why, false, now).noting(note.0, note.1))
}

//! The last sample of each node, and with it of each instance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{InstanceId, NodeId};
use tianqi_common::wire::telemetry::{InstanceSample, Sample, SampleBatch};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::store;
use crate::core::error::Chain;
use crate::core::event::Event;
use crate::features::Ctx;
use crate::link::samples::SampleReceiver;

/// What was read last.
#[derive(Clone, Debug, PartialEq)]
pub struct Last<T> {
    /// When the node read it, by its clock.
    pub at: UnixMillis,
    /// When it arrived, by the controller's clock.
    pub received_at: UnixMillis,
    /// What was read.
    pub sample: T,
}

impl<T> Last<T> {
    /// Returns how long ago it arrived; the clocks of nodes play no part.
    #[must_use]
    pub fn age(&self, now: UnixMillis) -> Duration {
        now.since(self.received_at)
    }
}

type Samples = BTreeMap<NodeId, Last<Sample>>;

/// Holds one sample for each node; the next one replaces it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Live(watch::Sender<Samples>);

impl Live {
    /// Takes in what a node sent; the newest sample counts.
    pub(super) fn take(&self, node: NodeId, batch: SampleBatch, now: UnixMillis) {
        let Some(sample) = batch.samples.into_iter().last() else { return };
        let last = Last { at: sample.at, received_at: now, sample };
        self.0.send_modify(|samples| {
            samples.insert(node, last);
        });
    }

    /// Returns the last sample of a node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<Last<Sample>> {
        self.0.borrow().get(&node).cloned()
    }

    /// Returns the last sample of an instance that is on `node`; nothing when it did not run then.
    #[must_use]
    pub fn instance(&self, node: NodeId, id: InstanceId) -> Option<Last<InstanceSample>> {
        let samples = self.0.borrow();
        let last = samples.get(&node)?;
        let sample = last.sample.instances.iter().find(|sample| sample.id == id)?.clone();
        Some(Last { at: last.at, received_at: last.received_at, sample })
    }

    /// Forgets every node that is not among `known`.
    pub(super) fn keep(&self, known: &BTreeSet<NodeId>) {
        self.0.send_modify(|samples| samples.retain(|node, _| known.contains(node)));
    }

    fn holds(&self, node: NodeId) -> bool {
        self.0.borrow().contains_key(&node)
    }
}

/// Takes in samples as they come, and forgets nodes that are removed, until `cancel`.
pub async fn ingest(ctx: Ctx, mut samples: SampleReceiver, cancel: CancellationToken) {
    let mut events = ctx.events.listen();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            (node, batch) = samples.recv() => {
                let is_new = !ctx.live.holds(node);
                ctx.live.take(node, batch, ctx.clock.now());
                // The last batch of a node may still wait in the queue when the node is removed.
                if is_new {
                    forget_removed(&ctx).await;
                }
            }
            event = events.recv() => match event {
                Ok(Event::Node(node)) if ctx.live.holds(node) => forget_removed(&ctx).await,
                Err(RecvError::Lagged(_)) => forget_removed(&ctx).await,
                Ok(
                    Event::Node(_) | Event::Instance(_) | Event::Drain(_) | Event::Catalogue
                    | Event::Revoked(_) | Event::Roles | Event::Forward(_),
                ) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

async fn forget_removed(ctx: &Ctx) {
    match store::nodes(&ctx.db).await {
        Ok(known) => ctx.live.keep(&known),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "samples of removed nodes are kept for now");
        }
    }
}

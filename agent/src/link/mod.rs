//! The connection to the controller: dials, says hello, and stays.
//!
//! The rest of the agent meets the link through channels alone. Desired state and settings come
//! down, observed state and inventory go up; of each the newest counts. Samples wait in a short
//! queue, streams are handed to a [`StreamService`]. While the controller is away everything else
//! goes on, and the identity is never thrown away.

pub mod backoff;
mod control;
mod dispatch;
mod renewal;
mod session;
mod telemetry;

use std::time::Duration;

use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::id::BootId;
use tianqi_common::wire::desired::{NodeDesired, NodeSettings};
use tianqi_common::wire::inventory::NodeInventory;
use tianqi_common::wire::observed::NodeObserved;
use tianqi_common::wire::telemetry::SampleBatch;
use tianqi_common::wire::{CloseCode, Version};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::enroll::{self, DialError, IdentityStore};

pub use dispatch::StreamService;

use backoff::Backoff;
use session::Ended;

/// Batches of samples that wait for the connection; whoever makes them keeps and drops the rest.
pub const SAMPLE_QUEUE: usize = 4;

/// What the link needs of the process.
pub struct LinkParts<S> {
    /// Who this node is.
    pub identity: IdentityStore,
    /// What the time is.
    pub clock: SharedClock,
    /// Where desired state goes; the newest counts.
    pub desired: watch::Sender<Option<NodeDesired>>,
    /// Where the settings of the node's page go; the newest count.
    pub settings: watch::Sender<Option<NodeSettings>>,
    /// What is on the node.
    pub observed: watch::Receiver<Option<NodeObserved>>,
    /// What the machine is.
    pub inventory: watch::Receiver<Option<NodeInventory>>,
    /// Samples.
    pub samples: mpsc::Receiver<SampleBatch>,
    /// Who serves streams.
    pub streams: S,
    /// The version this agent speaks; [`tianqi_common::wire::VERSION`] but in tests.
    pub version: Version,
}

impl<S> std::fmt::Debug for LinkParts<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkParts").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What every connection of this start of the agent says of itself.
#[derive(Clone, Copy, Debug)]
struct Start {
    boot: BootId,
    started_at: UnixMillis,
}

/// Keeps a connection to the controller until `stopping` is cancelled.
pub async fn run<S: StreamService>(mut parts: LinkParts<S>, stopping: CancellationToken) {
    let start = Start { boot: BootId::new(), started_at: parts.clock.now() };
    let mut backoff = Backoff::default();
    let mut told = Told::default();
    let mut renew_first = false;
    while !stopping.is_cancelled() {
        if renew_first || is_expired(&parts) {
            renew(&parts, &mut told).await;
        }
        let began = parts.clock.monotonic();
        let ended = session::run(&mut parts, start, &stopping).await;
        let served = parts.clock.monotonic().saturating_sub(began);
        renew_first = false;
        match &ended {
            Ended::Stopped => return,
            Ended::Unreached(DialError::Closed { code: Some(CloseCode::Unauthorised), .. }) => {
                // Perhaps the certificate has expired by the controller's clock.
                renew_first = true;
                backoff.refused();
            }
            Ended::Refused { .. } => backoff.refused(),
            Ended::Unreached(_) => backoff.ended_after(Duration::ZERO),
            Ended::Lost { was_served, .. } => {
                backoff.ended_after(if *was_served { served } else { Duration::ZERO });
            }
        }
        told.tell(&ended.to_string());
        let delay = backoff.delay(rand::random());
        let _ = tokio::time::timeout(delay, stopping.cancelled()).await;
    }
}

fn is_expired<S>(parts: &LinkParts<S>) -> bool {
    let validity = parts.identity.current().validity();
    validity.is_some_and(|validity| validity.not_after <= parts.clock.now())
}

async fn renew<S>(parts: &LinkParts<S>, told: &mut Told) {
    let clock = parts.clock.clone();
    match enroll::renew_expired(&parts.identity, parts.version, clock).await {
        Ok(()) => tracing::info!("the node's expired certificate was renewed"),
        Err(error) => told.tell(&format!("the node's certificate was not renewed: {error}")),
    }
}

/// Says the same thing once, however often it happens.
#[derive(Debug, Default)]
struct Told(String);

impl Told {
    fn tell(&mut self, text: &str) {
        if self.0 == text {
            tracing::debug!("still: {text}");
        } else {
            tracing::warn!("{text}; the agent keeps trying, its instances run on");
            text.clone_into(&mut self.0);
        }
    }
}

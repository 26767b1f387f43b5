//! What is written down of who comes into an instance through a forward.
//!
//! A forward may take thousands of connections a second, so they are written down by visits: the first
//! connection of a source opens one, and without its row nobody is let in. Later connections of the
//! source join it. It ends when none of them is open and a minute has passed since it began. A source is
//! an address, and of IPv6 a network of 64 bits. More than [`MOST`] sources at once share one visit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use tokio::sync::Mutex;

use super::port::IntoInstance;
use crate::authz::policy::{ForwardsWrite, Permission as _};
use crate::core::audit::{Access, Ending};
use crate::core::db::DbError;
use crate::core::error::Chain;
use crate::features::Ctx;
use tianqi_common::id::ForwardId;

/// How long a visit takes in at least.
const MINUTE: Duration = Duration::from_secs(60);
/// Sources with a visit of their own.
const MOST: usize = 1_024;

/// The visits of one forward. The lock is held while a row of a new visit is written: whoever comes in
/// that moment waits for it.
#[derive(Debug, Default)]
pub(super) struct Visits(Mutex<HashMap<Option<IpNet>, Visit>>);

#[derive(Debug)]
struct Visit {
    access: Access,
    began: Duration,
    open: u64,
    connections: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// A connection's part in a visit; it must be ended by [`Visits::leave`].
#[derive(Debug)]
pub(super) struct Joined(Option<IpNet>);

impl Visits {
    /// Writes down that somebody from `source` comes in, or counts it to the visit that is open.
    ///
    /// # Errors
    ///
    /// [`DbError`] when the row could not be written.
    pub(super) async fn join(
        &self,
        ctx: &Ctx,
        (forward, grant): (ForwardId, &IntoInstance),
        source: IpAddr,
    ) -> Result<Joined, DbError> {
        let mut visits = self.0.lock().await;
        let mut key = Some(network(source));
        if !visits.contains_key(&key) && visits.len() >= MOST {
            key = None;
        }
        if let Some(visit) = visits.get_mut(&key) {
            visit.open += 1;
            visit.connections += 1;
            return Ok(Joined(key));
        }
        let mut doer = grant.actor().doer();
        doer.remote_address = key.map(|_| source.to_canonical().to_string()).unwrap_or_default();
        let face = (ForwardsWrite::NAME, "forward");
        let access = Access::begin(&ctx.db, &ctx.clock.0, doer, face, grant.resource().id);
        access.opened(json!({ "forward": forward })).await?;
        let began = ctx.clock.monotonic();
        let visit = Visit { access, began, open: 1, connections: 1, bytes_in: 0, bytes_out: 0 };
        visits.insert(key, visit);
        Ok(Joined(key))
    }

    /// Counts what a connection has carried to its visit.
    pub(super) async fn leave(&self, joined: &Joined, (bytes_in, bytes_out): (u64, u64)) {
        if let Some(visit) = self.0.lock().await.get_mut(&joined.0) {
            visit.open = visit.open.saturating_sub(1);
            visit.bytes_in = visit.bytes_in.saturating_add(bytes_in);
            visit.bytes_out = visit.bytes_out.saturating_add(bytes_out);
        }
    }

    /// Writes down the end of visits that are over; of all of them when the forward stops.
    pub(super) async fn end(&self, ctx: &Ctx, is_stopping: bool) {
        let now = ctx.clock.monotonic();
        let over: Vec<Visit> = {
            let mut visits = self.0.lock().await;
            let is_over = |visit: &Visit| {
                is_stopping || (visit.open == 0 && now.saturating_sub(visit.began) >= MINUTE)
            };
            visits.extract_if(|_, visit| is_over(visit)).map(|(_, visit)| visit).collect()
        };
        for visit in over {
            let reason = if is_stopping { "forward_stopped" } else { "client_left" };
            let ending = Ending {
                reason: reason.to_owned(),
                exit_code: None,
                bytes_in: visit.bytes_in,
                bytes_out: visit.bytes_out,
            };
            let more = json!({ "connections": visit.connections });
            if let Err(error) = visit.access.closed_with(ending, more).await {
                tracing::warn!(error = %Chain(&error), "the end of a visit through a forward is missing from the audit");
            }
        }
    }
}

/// Returns what counts as one source.
fn network(source: IpAddr) -> IpNet {
    match source.to_canonical() {
        address @ IpAddr::V4(_) => IpNet::from(address),
        // A network of 64 bits is always well formed; the address alone stands in for it.
        address @ IpAddr::V6(_) => {
            IpNet::new(address, 64).map_or_else(|_| IpNet::from(address), |net| net.trunc())
        }
    }
}

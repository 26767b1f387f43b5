//! What the channels of one connection share.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tianqi_common::id::{InstanceId, UserId};
use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::flow::{Flow, Version};
use super::host_key::HostKey;
use super::model::Target;
use crate::authz::Actor;
use crate::authz::login::Visitor;
use crate::authz::watch::{self, InUse};
use crate::core::audit::Via;
use crate::core::error::{Chain, Problem, Result};
use crate::core::event::Event;
use crate::core::slots::{Slot, Slots};
use crate::features::Ctx;

/// How long somebody who is let in only to be told why they may do nothing is told so.
const TOLD: Duration = Duration::from_secs(30);
/// Channels that one connection may open in its life. russh remembers a little of each that the
/// server closed, so there is an end.
const CHANNELS_EVER: usize = 20_000;

/// What all connections share.
#[derive(Clone, Debug)]
pub(super) struct Door {
    /// What the rooms reach.
    pub ctx: Ctx,
    /// The host key.
    pub host_key: HostKey,
    /// Connections of each account.
    pub accounts: Slots<UserId>,
}

/// Somebody who has logged in.
#[derive(Debug)]
pub(super) struct Who {
    /// As whom, or why they may do nothing.
    pub actor: Result<Actor>,
    /// The instance that they go into, if they named one.
    pub target: Option<Target>,
    /// The account's place for this connection.
    _slot: Option<Slot<UserId>>,
}

/// When the connection was used last.
#[derive(Debug, Default)]
struct Use {
    session: InUse,
    at_ms: AtomicU64,
}

/// One connection, or the one inside it that a jump makes.
#[derive(Debug)]
pub(super) struct Connection {
    /// What all share.
    pub door: Door,
    /// Holds the client back.
    pub flow: Flow,
    /// What the client says it is.
    pub version: Version,
    /// Ends the connection.
    pub cut: CancellationToken,
    /// Its channels.
    pub tasks: TaskTracker,
    remote: IpAddr,
    who: OnceLock<Who>,
    logged_in: CancellationToken,
    channels: AtomicUsize,
    opened: AtomicUsize,
    used: Arc<Use>,
    is_inner: bool,
}

/// A channel's place among those of its connection; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place(Arc<Connection>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.channels.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connection {
    /// A connection from `remote` on which nobody has logged in.
    pub(super) fn new(door: Door, remote: IpAddr) -> Self {
        Self {
            door,
            flow: Flow::default(),
            version: Version::default(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            remote: remote.to_canonical(),
            who: OnceLock::new(),
            logged_in: CancellationToken::new(),
            channels: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            used: Arc::default(),
            is_inner: false,
        }
    }

    /// The connection inside this one that leads into `instance` alone, as `actor`.
    pub(super) fn inner(&self, actor: Actor, instance: InstanceId) -> Self {
        let inner = Self {
            cut: self.cut.child_token(),
            used: self.used.clone(),
            is_inner: true,
            ..Self::new(self.door.clone(), self.remote)
        };
        let target = Some(Target::Id(instance));
        // Nobody can have been first.
        let _ = inner.who.set(Who { actor: Ok(actor), target, _slot: None });
        inner
    }

    /// Whether it is inside another, which has proved who comes.
    pub(super) fn is_inner(&self) -> bool {
        self.is_inner
    }

    /// What the rooms reach.
    pub(super) fn ctx(&self) -> &Ctx {
        &self.door.ctx
    }

    /// Whoever is not logged in yet.
    pub(super) fn visitor(&self) -> Visitor {
        Visitor {
            remote: self.remote,
            request_id: String::new(),
            user_agent: self.version.get(),
            via: Via::Ssh,
        }
    }

    /// Somebody has logged in as `actor`. Whoever has too many connections is let in to be told so.
    pub(super) fn enter(&self, actor: Actor, target: Option<Target>) {
        let slot = self.door.accounts.take(actor.id);
        let who = match slot {
            None => {
                let detail = "this account has as many SSH connections as it may; close one";
                let problem = Problem::too_many("too_many_sessions", detail);
                self.leave(actor);
                Who { actor: Err(problem), target, _slot: None }
            }
            Some(slot) => Who { actor: Ok(actor), target, _slot: Some(slot) },
        };
        // A second login on one connection does not happen: russh takes none after the first.
        let _ = self.who.set(who);
        self.logged_in.cancel();
    }

    /// Who has logged in.
    pub(super) fn who(&self) -> Option<&Who> {
        self.who.get()
    }

    /// As whom, or why they may do nothing.
    pub(super) fn actor(&self) -> Result<&Actor> {
        match self.who.get().map(|who| &who.actor) {
            Some(Ok(actor)) => Ok(actor),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err(Problem::unauthorised("unauthorised", "log in first")),
        }
    }

    /// Returns when somebody has logged in.
    pub(super) async fn logged_in(&self) {
        self.logged_in.cancelled().await;
    }

    /// Takes a place for a channel; nothing when there are too many.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let most = usize::try_from(self.ctx().config.jumpbox.channels_per_connection);
        let is_full = self.channels.load(Ordering::Acquire) >= most.unwrap_or(usize::MAX);
        let is_worn = self.opened.fetch_add(1, Ordering::AcqRel) >= CHANNELS_EVER;
        if is_full || is_worn {
            return None;
        }
        // Only the connection's own callbacks add, one at a time.
        self.channels.fetch_add(1, Ordering::AcqRel);
        Some(Place(self.clone()))
    }

    /// Whether more than one channel is open.
    pub(super) fn has_several_channels(&self) -> bool {
        self.channels.load(Ordering::Acquire) > 1
    }

    /// Bytes went through, `from_client` if they came from there: then they count as a use of the
    /// session.
    pub(super) fn mark_use(&self, from_client: bool) {
        let now = self.ctx().clock.monotonic().as_millis();
        self.used.at_ms.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
        if from_client {
            self.used.session.mark();
        }
    }

    /// What counts as a use of the session.
    pub(super) fn in_use(&self) -> InUse {
        self.used.session.clone()
    }

    /// Returns why the connection is over although nobody hung up. `heard` has listened since before
    /// anybody logged in.
    pub(super) async fn over(&self, heard: &mut Receiver<Event>) -> String {
        self.logged_in().await;
        let actor = match self.actor() {
            Ok(actor) => actor,
            Err(problem) => {
                tokio::time::sleep(TOLD).await;
                return problem.detail;
            }
        };
        self.mark_use(false);
        let in_use = self.in_use();
        tokio::select! {
            problem = watch::left(&self.ctx().authz, actor, &in_use, heard) => problem.detail,
            reason = self.timed_out() => reason,
        }
    }

    async fn timed_out(&self) -> String {
        let rules = &self.ctx().config.jumpbox;
        let hours = match rules.absolute_hours {
            0 => Duration::MAX,
            hours => Duration::from_secs(u64::from(hours) * 3_600),
        };
        let idle = match rules.idle_minutes {
            0 => Duration::MAX,
            minutes => Duration::from_secs(u64::from(minutes) * 60),
        };
        tokio::select! {
            () = tokio::time::sleep(hours) => "the longest time of a connection is over".to_owned(),
            () = self.idle_for(idle) => "the connection was not used for too long".to_owned(),
        }
    }

    async fn idle_for(&self, limit: Duration) {
        loop {
            let used = Duration::from_millis(self.used.at_ms.load(Ordering::Relaxed));
            let passed = self.ctx().clock.monotonic().saturating_sub(used);
            let Some(left) = limit.checked_sub(passed).filter(|left| !left.is_zero()) else {
                return;
            };
            tokio::time::sleep(left).await;
        }
    }

    /// The connection has ended: so does its session.
    pub(super) async fn ended(&self) {
        if let Ok(actor) = self.actor() {
            end_session(self.ctx(), actor).await;
        }
    }

    fn leave(&self, actor: Actor) {
        let ctx = self.ctx().clone();
        self.tasks.spawn(async move { end_session(&ctx, &actor).await });
    }
}

async fn end_session(ctx: &Ctx, actor: &Actor) {
    if let Err(problem) = ctx.authz.ssh_left(actor).await {
        tracing::warn!(error = problem.detail, "a session of SSH stays until it is idle");
    }
}

/// Writes that something is missing from the audit.
pub(super) fn missing_row(error: &crate::core::db::DbError) {
    tracing::warn!(error = %Chain(error), "the end of an SSH channel is missing from the audit");
}

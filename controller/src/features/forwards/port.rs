//! What every connection of a forward shares while it listens.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tianqi_common::wire::stream::{Dial, StreamOpen};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admit::Limits;
use super::live::Meter;
use super::model::{Protocol, Rule, Target};
use super::splice::Pipes;
use super::udp::batch::Batches;
use super::visits::Visits;
use crate::authz::Grant;
use crate::authz::policy::ForwardsWrite;
use crate::authz::resource::InstanceRef;
use crate::config::Forwards;
use crate::features::Ctx;
use crate::link::{LinkError, WorkStream};

/// Loopback inside an instance: what listens there is reached wherever it listens.
const INSIDE: &str = "127.0.0.1";

/// The right on which a forward stands.
pub(super) type IntoInstance = Arc<Grant<InstanceRef, ForwardsWrite>>;

/// What a forward stands on now.
#[derive(Debug)]
pub(super) struct Right {
    /// The owner's right to the instance; nothing for a forward that leads to an address.
    pub grant: Option<IntoInstance>,
    /// Whether the instance should run.
    pub should_run: bool,
}

/// What a change of a row may alter without closing anything.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Who is let in.
    pub limits: Limits,
    /// How long a UDP flow may rest.
    pub udp_idle: Duration,
    /// The owner's right to the instance; nothing for a forward that leads to an address.
    pub grant: Option<IntoInstance>,
    /// Whether the instance should run; what is open into one that was stopped ends.
    pub should_run: bool,
}

impl Settings {
    /// Puts together what a row and the configuration say.
    pub(super) fn of(rule: &Rule, config: &Forwards, right: Right) -> Self {
        let all = match rule.protocol {
            Protocol::Tcp => config.connections,
            Protocol::Udp => config.udp_flows,
        };
        let limits = Limits {
            allowed: rule.allowed.clone(),
            own: rule.max_connections.into(),
            all: all.into(),
        };
        let Right { grant, should_run } = right;
        Self { limits, udp_idle: rule.udp_idle, grant, should_run }
    }
}

/// What all forwards share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Spare pipes.
    pub pipes: Pipes,
    /// Buffers for datagrams.
    pub batches: Batches,
}

/// A forward that listens.
#[derive(Debug)]
pub(super) struct Port {
    /// What the rooms reach.
    pub ctx: Ctx,
    /// As it stood when it began to listen.
    pub rule: Rule,
    /// As it stands now.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Its numbers.
    pub meter: Arc<Meter>,
    /// The connections, or flows, of all forwards.
    pub all: Arc<AtomicU64>,
    /// What all forwards share.
    pub shared: Arc<Shared>,
    /// What is written down of who came.
    pub visits: Visits,
    /// Ends what listens and everything that came in by it.
    pub stop: CancellationToken,
    /// Everything that came in by it.
    pub tasks: TaskTracker,
}

impl Port {
    /// Returns the settings as they are now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// Waits until the instance should run no longer.
    pub(super) async fn until_instance_stops(&self) {
        let mut settings = self.settings.clone();
        if settings.wait_for(|settings| !settings.should_run).await.is_err() {
            // Nobody says any more how it stands: the forward itself ends.
            std::future::pending().await
        }
    }

    /// How long reaching the target may take.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.ctx.config.forwards.connect_seconds.into())
    }

    /// Notes what went wrong.
    pub(super) fn failed(&self, what: impl Into<String>) {
        self.meter.failed(self.ctx.clock.now(), what);
    }

    /// Opens a stream into the instance.
    ///
    /// # Errors
    ///
    /// Why not, in words.
    pub(super) async fn dial(&self, grant: &IntoInstance) -> Result<WorkStream, String> {
        let Target::Instance(instance, port) = self.rule.target else {
            return Err("it does not lead into an instance".to_owned());
        };
        let dial = Dial { instance, host: INSIDE.to_owned(), port };
        let open = match self.rule.protocol {
            Protocol::Tcp => StreamOpen::Tcp(dial),
            Protocol::Udp => StreamOpen::Udp(dial),
        };
        let opened = self.ctx.link.open(grant, open);
        match tokio::time::timeout(self.patience(), opened).await {
            Ok(opened) => opened.map_err(|error| said(&error)),
            Err(_) => Err(format!("the instance did not answer within {:?}", self.patience())),
        }
    }
}

fn said(error: &LinkError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

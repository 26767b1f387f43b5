//! One forward that listens, from its start to its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::live::Carried;
use super::model::{Protocol, Rule, Target};
use super::port::{Port, Settings, Shared};
use super::tcp;
use super::udp::{self, socket::Socket};
use super::visits::Visits;
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::error::Chain;
use crate::features::Ctx;

/// How long what is open may take to end; it is told at once and has nothing to wait for.
const ENDING: Duration = Duration::from_secs(2);
/// How often what a forward to an address has carried is written down while it goes on.
const HOUR: Duration = Duration::from_secs(3_600);

/// Why a forward stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody put it off.
    SwitchedOff,
    /// Somebody changed where it listens, where it leads, or who may come.
    Changed,
    /// Somebody deleted it.
    Deleted,
    /// Its owner may no longer, or the instance is gone.
    RightEnded,
    /// The controller ends.
    Shutdown,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::SwitchedOff => "switched_off",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
            Self::RightEnded => "right_ended",
            Self::Shutdown => "shutdown",
        }
    }
}

/// A forward that listens.
#[derive(Debug)]
pub(super) struct Running {
    port: Arc<Port>,
    settings: watch::Sender<Arc<Settings>>,
    listens: JoinHandle<()>,
    /// When it was last written down what it carried, and how much it was then.
    written: (Duration, Carried),
}

impl Running {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// Why not, in words.
    pub(super) fn start(
        ctx: &Ctx,
        shared: &Arc<Shared>,
        rule: &Rule,
        settings: Settings,
    ) -> Result<Self, String> {
        let meter = ctx.ports.meter(rule.id);
        let written = (ctx.clock.monotonic(), meter.carried());
        let (settings, current) = watch::channel(Arc::new(settings));
        let port = Arc::new(Port {
            ctx: ctx.clone(),
            rule: rule.clone(),
            settings: current,
            meter,
            all: match rule.protocol {
                Protocol::Tcp => ctx.ports.connections(),
                Protocol::Udp => ctx.ports.flows(),
            },
            shared: shared.clone(),
            visits: Visits::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let refused = |error: io::Error| reason(rule, &error);
        let listens = match rule.protocol {
            Protocol::Tcp => {
                let listener = tcp::listen(rule.listen).map_err(refused)?;
                tokio::spawn(tcp::serve(listener, port.clone()))
            }
            Protocol::Udp => {
                let socket = Socket::listen(rule.listen).map_err(refused)?;
                tokio::spawn(udp::serve(socket, port.clone()))
            }
        };
        Ok(Self { port, settings, listens, written })
    }

    /// Takes new settings up, if what listens may go on with them.
    pub(super) fn take_up(&self, rule: &Rule, settings: &Settings) -> bool {
        let may_go_on = self.port.rule.is_same_way(rule) && !self.listens.is_finished();
        if may_go_on {
            self.settings.send_replace(Arc::new(settings.clone()));
        }
        may_go_on
    }

    /// Tells everything to end without waiting for it.
    pub(super) fn cancel(&self) {
        self.port.stop.cancel();
    }

    /// Ends everything, and writes down what was carried. The port is free afterwards.
    pub(super) async fn stop(mut self, why: Why) {
        self.cancel();
        // An error means that it failed, and it is gone then too.
        let _ = (&mut self.listens).await;
        self.port.tasks.close();
        if tokio::time::timeout(ENDING, self.port.tasks.wait()).await.is_err() {
            tracing::warn!(forward.id = %self.port.rule.id, "connections of a forward take long to end");
        }
        self.port.visits.end(&self.port.ctx, true).await;
        self.write_counts("stopped", why.as_str()).await;
    }

    /// Writes down what is over, and every hour what was carried.
    pub(super) async fn write_down(&mut self) {
        self.port.visits.end(&self.port.ctx, false).await;
        let now = self.port.ctx.clock.monotonic();
        if now.saturating_sub(self.written.0) >= HOUR {
            self.write_counts("carried", "").await;
        }
    }

    /// Connections to an address come too fast for a row each; they are counted.
    async fn write_counts(&mut self, event: &str, reason: &str) {
        let (ctx, rule) = (&self.port.ctx, &self.port.rule);
        let now = ctx.clock.monotonic();
        let (since, before) =
            std::mem::replace(&mut self.written, (now, self.port.meter.carried()));
        let carried = self.written.1.since(before);
        if carried == Carried::default() || matches!(rule.target, Target::Instance(..)) {
            return;
        }
        let lasted = now.saturating_sub(since).as_millis();
        let entry = Entry {
            doer: &Doer::system(),
            action: "forwards:carry",
            target_kind: "forward",
            target_id: rule.id.to_string(),
            outcome: Outcome::Done,
            detail: json!({
                "event": event, "reason": reason, "owner": rule.owner,
                "listen": rule.listen.to_string(), "protocol": rule.protocol,
                "connections": carried.total, "refused": carried.refused,
                "bytes_in": carried.bytes_in, "bytes_out": carried.bytes_out,
                "duration_ms": u64::try_from(lasted).unwrap_or(u64::MAX),
            }),
        };
        if let Err(error) = audit::record_alone(&ctx.db, ctx.clock.now(), &entry).await {
            tracing::warn!(error = %Chain(&error), "what a forward carried is missing from the audit");
        }
    }
}

/// Says why a port cannot be listened on.
fn reason(rule: &Rule, error: &io::Error) -> String {
    let (protocol, listen, kind) = (rule.protocol.as_str(), rule.listen, error.kind());
    if kind == io::ErrorKind::AddrInUse {
        return format!("{protocol} {listen} is taken by another program");
    }
    if kind == io::ErrorKind::AddrNotAvailable {
        return format!("{} is not an address of this machine", listen.ip());
    }
    if kind == io::ErrorKind::PermissionDenied {
        return format!(
            "{protocol} {listen} needs CAP_NET_BIND_SERVICE, which the controller does not have"
        );
    }
    format!("{protocol} {listen} cannot be listened on: {error}")
}

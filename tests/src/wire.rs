//! Both ends of the wire in one process: a real listener and real agents' links over loopback, with
//! an in-memory directory of nodes and streams that echo.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tianqi_agent::enroll::{self, EnrollError, Identity, IdentityStore, Join};
use tianqi_agent::link::{LinkParts as AgentParts, StreamService};
use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::id::NodeId;
use tianqi_common::wire::desired::{NodeDesired, NodeSettings};
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::inventory::NodeInventory;
use tianqi_common::wire::join::{JoinRefusal, JoinToken};
use tianqi_common::wire::observed::NodeObserved;
use tianqi_common::wire::stream::{Command, Exec, ExecFrame, StreamOpen, StreamReply};
use tianqi_common::wire::telemetry::SampleBatch;
use tianqi_common::wire::{VERSION, Version};
use tianqi_controller::core::ca::{AgentCertificate, Authority, Ca, Lifetimes};
use tianqi_controller::link::samples::{self, SampleReceiver};
use tianqi_controller::link::{
    Admission, AgentEvent, DirectoryError, JoinAttempt, JoinDenied, Link, LinkConfig, LinkParts,
    LinkServer, NodeDirectory, Refusal,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The secret of the one good token.
pub const SECRET: &str = "a-good-secret";

/// Nodes in memory. The token [`SECRET`] is good; `used-up` and `expired` are what they say.
#[derive(Debug, Default)]
pub struct Directory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_key: BTreeMap<[u8; 32], NodeId>,
    serials: BTreeMap<String, NodeId>,
    removed: BTreeSet<NodeId>,
    refusals: Vec<Refusal>,
}

impl Directory {
    /// Removes a node; its certificates are worth nothing from here on.
    pub fn remove(&self, node: NodeId) {
        self.state.lock().expect("state").removed.insert(node);
    }

    /// Returns the codes of what was refused so far.
    #[must_use]
    pub fn refusals(&self) -> Vec<&'static str> {
        let state = self.state.lock().expect("state");
        state.refusals.iter().map(|refusal| refusal.code).collect()
    }

    /// Returns how many certificates were made.
    #[must_use]
    pub fn certificates(&self) -> usize {
        self.state.lock().expect("state").serials.len()
    }
}

impl NodeDirectory for Directory {
    async fn admit(&self, node: NodeId, serial: &str) -> Result<Admission, DirectoryError> {
        let state = self.state.lock().expect("state");
        Ok(match state.serials.get(serial) {
            Some(_) if state.removed.contains(&node) => Admission::Removed,
            Some(known) if *known == node => Admission::Admitted,
            _ => Admission::Unknown,
        })
    }

    async fn join(&self, attempt: JoinAttempt) -> Result<NodeId, JoinDenied> {
        let is = |secret: &str| attempt.secret_hash == sha256(secret.as_bytes());
        let refused = |code, text: &str| Err(JoinDenied::Refused(code, text.to_owned()));
        if is("used-up") {
            return refused(JoinRefusal::UsedUp, "the token was used as often as it may be");
        }
        if is("expired") {
            return refused(JoinRefusal::Expired, "the token has expired; make a new one");
        }
        if !is(SECRET) {
            return refused(JoinRefusal::UnknownToken, "there is no such token; copy it whole");
        }
        let mut state = self.state.lock().expect("state");
        Ok(*state.by_key.entry(attempt.key_hash).or_insert_with(NodeId::new))
    }

    async fn record_certificate(
        &self,
        node: NodeId,
        certificate: &AgentCertificate,
    ) -> Result<(), DirectoryError> {
        self.state.lock().expect("state").serials.insert(certificate.serial.clone(), node);
        Ok(())
    }

    async fn record_refusal(&self, refusal: Refusal) {
        self.state.lock().expect("state").refusals.push(refusal);
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// A controller's end.
pub struct ControllerEnd {
    /// Reaches the agents.
    pub link: Link,
    /// Knows the nodes.
    pub directory: Arc<Directory>,
    /// What agents report.
    pub events: mpsc::Receiver<AgentEvent>,
    /// What agents measure.
    pub samples: SampleReceiver,
    /// Who signs.
    pub ca: Arc<Ca>,
    /// Where it listens.
    pub address: SocketAddr,
    server: LinkServer,
    clock: SharedClock,
}

impl ControllerEnd {
    /// Starts with a new authority and no nodes.
    #[must_use]
    pub fn start(clock: SharedClock, lifetimes: Lifetimes) -> Self {
        let authority = Authority::generate(clock.now()).expect("authority");
        let ca = Ca::new(vec![authority], lifetimes).expect("ca");
        Self::start_with(clock, Arc::new(ca), Arc::default(), ([127, 0, 0, 1], 0).into())
    }

    /// Starts where another one was stopped.
    #[must_use]
    pub fn start_with(
        clock: SharedClock,
        ca: Arc<Ca>,
        directory: Arc<Directory>,
        listen: SocketAddr,
    ) -> Self {
        let (link, (events, received)) = (Link::default(), mpsc::channel(1_024));
        let (sender, samples) = samples::queue(64);
        let parts = LinkParts {
            config: LinkConfig::at(listen),
            ca: ca.clone(),
            directory: directory.clone(),
            clock: clock.clone(),
            events,
            samples: sender,
        };
        let server = link.start(parts).expect("listener");
        let address = server.address();
        Self { link, directory, events: received, samples, ca, address, server, clock }
    }

    /// Returns a token with this secret and the right fingerprint.
    #[must_use]
    pub fn token(&self, secret: &str) -> JoinToken {
        let fingerprint = self.ca.fingerprint(self.clock.now()).expect("fingerprint");
        JoinToken { secret: secret.to_owned(), fingerprint }
    }

    /// Returns what a join into `data_dir` needs.
    #[must_use]
    pub fn join(&self, data_dir: &Path, secret: &str) -> Join {
        Join {
            controller: self.address.to_string(),
            token: self.token(secret),
            data_dir: data_dir.to_owned(),
            force: false,
            hostname: "gpu-07".to_owned(),
            version: VERSION,
        }
    }

    /// Joins into `data_dir` with the good token.
    ///
    /// # Errors
    ///
    /// As [`enroll::join`].
    pub async fn enroll(&self, data_dir: &Path) -> Result<Identity, EnrollError> {
        enroll::join(&self.join(data_dir, SECRET), self.clock.clone()).await
    }

    /// Waits for the next event for which `wanted` gives something; others are passed over.
    pub async fn event<T>(&mut self, mut wanted: impl FnMut(AgentEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the link runs");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the event did not come")
    }

    /// Waits until an agent is served.
    pub async fn connected(&mut self) -> NodeId {
        self.event(
            |event| {
                if let AgentEvent::Connected { node, .. } = event { Some(node) } else { None }
            },
        )
        .await
    }

    /// Waits until an agent is gone and says why.
    pub async fn disconnected(&mut self) -> String {
        self.event(|event| {
            if let AgentEvent::Disconnected { reason, .. } = event { Some(reason) } else { None }
        })
        .await
    }

    /// Stops listening.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

/// An agent's end.
#[derive(Debug)]
pub struct AgentEnd {
    /// Who it is.
    pub identity: IdentityStore,
    /// What it was told should be.
    pub desired: watch::Receiver<Option<NodeDesired>>,
    /// What it was told of its settings.
    pub settings: watch::Receiver<Option<NodeSettings>>,
    /// What it says is.
    pub observed: watch::Sender<Option<NodeObserved>>,
    /// What it says it has.
    pub inventory: watch::Sender<Option<NodeInventory>>,
    /// What it measures.
    pub samples: mpsc::Sender<SampleBatch>,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

impl AgentEnd {
    /// Starts the link of the identity in `data_dir`.
    #[must_use]
    pub fn start(data_dir: &Path, clock: SharedClock, version: Version) -> Self {
        let identity = IdentityStore::open(data_dir).expect("identity");
        let (desired, desired_in) = watch::channel(None);
        let (settings, settings_in) = watch::channel(None);
        let (observed, observed_out) = watch::channel(None);
        let (inventory, inventory_out) = watch::channel(None);
        let (samples, samples_out) = mpsc::channel(tianqi_agent::link::SAMPLE_QUEUE);
        let stopping = CancellationToken::new();
        let parts = AgentParts {
            identity: identity.clone(),
            clock,
            desired,
            settings,
            observed: observed_out,
            inventory: inventory_out,
            samples: samples_out,
            streams: Echo,
            version,
        };
        let task = tokio::spawn(tianqi_agent::link::run(parts, stopping.clone()));
        Self {
            identity,
            desired: desired_in,
            settings: settings_in,
            observed,
            inventory,
            samples,
            stopping,
            task,
        }
    }

    /// Stops the link and waits for it.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.task.await.expect("the link ends well");
    }
}

/// Streams that give back what they get. The command `stuck` takes nothing and says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Echo;

impl StreamService for Echo {
    async fn serve<R, W>(&self, open: StreamOpen, mut reader: R, mut writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        frame::write(&mut writer, &StreamReply::Open, Limit::OPEN).await.expect("reply");
        let is_stuck = matches!(
            &open,
            StreamOpen::Exec(Exec { command: Command::Argv(argv), .. }) if argv == &["stuck"]
        );
        if is_stuck {
            return std::future::pending().await;
        }
        while let Ok(Some(ExecFrame::Stdin(bytes))) = frame::read(&mut reader, Limit::STREAM).await
        {
            let echo = ExecFrame::Stdout(bytes);
            if frame::write(&mut writer, &echo, Limit::STREAM).await.is_err() {
                return;
            }
        }
    }
}

/// A folder that goes away with the value, and its path.
#[must_use]
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("tianqi-link-").tempdir().expect("folder");
    let path = folder.path().join("data");
    (folder, path)
}

/// A time at which manual clocks begin.
pub const NOON: UnixMillis = UnixMillis(1_800_000_000_000);

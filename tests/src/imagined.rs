//! A node that is imagined: the agent's own link in this process, joined to a real controller. Its
//! instances run as soon as they are placed, and its terminals run programs that echo.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tianqi_agent::enroll::{self, IdentityStore, Join};
use tianqi_agent::link::{LinkParts, SAMPLE_QUEUE, StreamService};
use tianqi_common::clock::SystemClock;
use tianqi_common::id::{NodeId, TerminalId};
use tianqi_common::unit::MemoryMib;
use tianqi_common::wire::Version;
use tianqi_common::wire::desired::{NodeDesired, Run};
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::inventory::{Disk, NodeInventory};
use tianqi_common::wire::observed::{
    ContainerState, DockerState, DockerStatus, InstanceObserved, NodeObserved,
};
use tianqi_common::wire::stream::{
    ExecFrame, LogFrame, PtySize, StreamOpen, StreamRefusal, StreamReply, Terminal,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, text};
use crate::cluster::Cluster;
use crate::deadline::Deadline;

/// The exit code of a program that was hung up.
pub const HUNG_UP: i32 = 129;

/// What a program in a terminal has come to.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Everything that it showed.
    pub output: Vec<u8>,
    /// How many of the first bytes are no longer kept.
    pub forgotten: usize,
    /// What it was told, but what was typed.
    pub heard: Vec<ExecFrame>,
    /// How often somebody came, the start included.
    pub attachments: usize,
    /// Whether somebody is there.
    pub is_attached: bool,
    /// Its exit code.
    pub ended: Option<i32>,
}

type Programs = Arc<Mutex<BTreeMap<TerminalId, watch::Sender<Program>>>>;

/// The node. It goes away with the value.
#[derive(Debug)]
pub struct ImaginedNode {
    /// Which.
    pub id: NodeId,
    streams: Streams,
    _folder: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

/// The streams of an imagined node.
#[derive(Clone, Debug, Default)]
struct Streams {
    programs: Programs,
    /// What was opened, by its kind.
    opened: Arc<Mutex<Vec<StreamOpen>>>,
}

impl ImaginedNode {
    /// Joins a node that speaks `version`, and waits until the controller may place instances on it.
    pub async fn join(cluster: &Cluster, admin: &Client, version: Version) -> Self {
        let token = admin.post("/join-tokens", &serde_json::json!({ "max_uses": 1 })).await;
        let folder = tempfile::Builder::new().prefix("tianqi-imagined-").tempdir().expect("folder");
        let join = Join {
            controller: cluster.agents().to_owned(),
            token: text(&token, "token").parse().expect("a token"),
            data_dir: folder.path().join("data"),
            force: false,
            hostname: "imagined".to_owned(),
            version,
        };
        let identity = enroll::join(&join, SystemClock::shared()).await.expect("it is let in");
        let store = IdentityStore::open(&join.data_dir).expect("an identity");
        let (streams, stopping) = (Streams::default(), CancellationToken::new());
        tokio::spawn(run(store, streams.clone(), version, stopping.clone()));
        let path = format!("/nodes/{}", identity.node);
        let deadline = Deadline::after(crate::client::PATIENCE);
        while admin.get(&path).await["docker_status"] != "connected" {
            deadline.pause_async("the imagined node is not ready").await;
        }
        Self { id: identity.node, streams, _folder: folder, _stop: stopping.drop_guard() }
    }

    /// Returns the programs that run, the oldest first.
    #[must_use]
    pub fn terminals(&self) -> Vec<TerminalId> {
        self.programs().keys().copied().collect()
    }

    /// Returns a program as it stands.
    ///
    /// # Panics
    ///
    /// When it is gone.
    #[must_use]
    pub fn program(&self, id: TerminalId) -> Program {
        self.programs().get(&id).expect("the program is kept").borrow().clone()
    }

    /// Changes a program: what it shows, what is forgotten, how it ends.
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn change(&self, id: TerminalId, change: impl FnOnce(&mut Program)) {
        self.programs().get(&id).expect("the program is kept").send_modify(change);
    }

    /// Waits until a program is so, or is gone.
    pub async fn until(&self, id: TerminalId, what: &str, is_so: impl Fn(&Program) -> bool) {
        let deadline = Deadline::after(crate::client::PATIENCE);
        loop {
            let found = self.programs().get(&id).map(|program| program.borrow().clone());
            match found {
                Some(program) if !is_so(&program) => {
                    deadline.pause_async(&format!("not {what}: {program:?}")).await;
                }
                Some(_) | None => return,
            }
        }
    }

    /// Returns what was opened so far.
    #[must_use]
    pub fn opened(&self) -> Vec<StreamOpen> {
        self.streams.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn programs(&self) -> std::sync::MutexGuard<'_, BTreeMap<TerminalId, watch::Sender<Program>>> {
        self.streams.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    identity: IdentityStore,
    streams: Streams,
    version: Version,
    stopping: CancellationToken,
) {
    let (desired, told) = watch::channel(None);
    let (settings, _settings) = watch::channel(None);
    let (reports, observed) = watch::channel(None);
    let (_inventory, inventory) = watch::channel(Some(machine()));
    let (_batches, samples) = mpsc::channel(SAMPLE_QUEUE);
    let clock = SystemClock::shared();
    let parts = LinkParts {
        identity,
        clock,
        desired,
        settings,
        observed,
        inventory,
        samples,
        streams,
        version,
    };
    tokio::select! {
        () = tianqi_agent::link::run(parts, stopping) => {}
        () = obey(told, reports) => {}
    }
}

fn machine() -> NodeInventory {
    let disk = Disk {
        mount: "/".to_owned(),
        filesystem: "ext4".to_owned(),
        total_bytes: 1 << 40,
        free_bytes: 1 << 40,
        holds_docker: true,
    };
    NodeInventory {
        hostname: "imagined".to_owned(),
        cpu_cores: 64,
        memory: MemoryMib(65_536),
        disks: vec![disk],
        ..NodeInventory::default()
    }
}

/// Reports what should be as what is.
async fn obey(
    mut told: watch::Receiver<Option<NodeDesired>>,
    reports: watch::Sender<Option<NodeObserved>>,
) {
    loop {
        let desired = told.borrow_and_update().clone().unwrap_or_default();
        let instances = desired.instances.iter().map(|instance| InstanceObserved {
            id: instance.id,
            generation: instance.generation,
            state: match instance.run {
                Run::Running => ContainerState::Running,
                Run::Stopped => ContainerState::Absent,
            },
            container_id: Some(format!("container-of-{}", instance.id)),
            started_at: None,
            restarts: 0,
            limits: Vec::new(),
            gpus: Vec::new(),
        });
        let docker = DockerState { status: DockerStatus::Connected, reason: String::new() };
        let (revision, instances) = (desired.revision, instances.collect());
        let report = NodeObserved { revision, docker, instances, ..NodeObserved::default() };
        reports.send_replace(Some(report));
        if told.changed().await.is_err() {
            return;
        }
    }
}

impl StreamService for Streams {
    async fn serve<R, W>(&self, open: StreamOpen, mut reader: R, mut writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(open.clone());
        match open {
            StreamOpen::Terminal(wanted) => self.terminal(wanted, reader, writer).await,
            StreamOpen::Exec(_) => {
                let _ = frame::write(&mut writer, &StreamReply::Open, Limit::OPEN).await;
                while let Ok(Some(frame)) = frame::read(&mut reader, Limit::STREAM).await {
                    if let ExecFrame::Stdin(bytes) = frame {
                        let echo = ExecFrame::Stdout(bytes);
                        let _ = frame::write(&mut writer, &echo, Limit::STREAM).await;
                    }
                }
            }
            StreamOpen::Logs(_) | StreamOpen::LogQuery(_) => {
                let _ = frame::write(&mut writer, &StreamReply::Open, Limit::OPEN).await;
                for frame in [LogFrame::Stdout("a line\n".into()), LogFrame::End] {
                    let _ = frame::write(&mut writer, &frame, Limit::STREAM).await;
                }
            }
            StreamOpen::Pull(_)
            | StreamOpen::Check(_)
            | StreamOpen::Tcp(_)
            | StreamOpen::Udp(_)
            | StreamOpen::Sftp(_) => {
                refuse(&mut writer, StreamRefusal::Unsupported, "it is imagined").await;
            }
        }
    }
}

async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, code: StreamRefusal, message: &str) {
    let reply = StreamReply::Refused { code, message: message.to_owned() };
    let _ = frame::write(writer, &reply, Limit::OPEN).await;
}

impl Streams {
    async fn terminal<R, W>(&self, wanted: Terminal, reader: R, mut writer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let id = wanted.id;
        let program = {
            let mut all = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted.resume.is_none() {
                all.insert(id, watch::Sender::new(Program::default()));
            }
            all.get(&id).cloned()
        };
        let Some(program) = program else {
            return refuse(&mut writer, StreamRefusal::Gone, "it is gone").await;
        };
        program.send_modify(|it| {
            it.attachments += 1;
            it.is_attached = true;
            it.heard.extend(wanted.exec.pty.map(ExecFrame::Resize));
        });
        let mine = program.borrow().attachments;
        let hear = tokio::spawn(hear(reader, program.clone()));
        let stop = hear.abort_handle();
        tokio::select! {
            _ = hear => {}
            () = self.show(id, &program, wanted.resume.unwrap_or(0), mine, &mut writer) => {}
        }
        stop.abort();
        program.send_modify(|it| it.is_attached &= it.attachments != mine);
        if program.borrow().ended.is_some() {
            self.programs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    /// Shows what a program shows until it ends or somebody else comes.
    async fn show<W: AsyncWrite + Unpin>(
        &self,
        id: TerminalId,
        program: &watch::Sender<Program>,
        from: u64,
        mine: usize,
        writer: &mut W,
    ) {
        let mut changed = program.subscribe();
        let forgotten = program.borrow().forgotten;
        let mut shown = usize::try_from(from).unwrap_or(usize::MAX).max(forgotten);
        let _ = frame::write(writer, &StreamReply::Open, Limit::OPEN).await;
        let position = ExecFrame::Position { offset: shown as u64 };
        let _ = frame::write(writer, &position, Limit::STREAM).await;
        loop {
            let Program { output, attachments, ended, .. } = changed.borrow_and_update().clone();
            if attachments != mine {
                return;
            }
            for piece in output.get(shown..).unwrap_or_default().chunks(32 << 10) {
                let frame = ExecFrame::Stdout(piece.to_vec().into());
                if frame::write(writer, &frame, Limit::STREAM).await.is_err() {
                    return;
                }
                shown += piece.len();
            }
            if let Some(code) = ended {
                let _ = frame::write(writer, &ExecFrame::Exit { code }, Limit::STREAM).await;
                self.programs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Passes on what a program is told.
async fn hear<R: AsyncRead + Unpin>(mut reader: R, program: watch::Sender<Program>) {
    while let Ok(Some(frame)) = frame::read::<ExecFrame, _>(&mut reader, Limit::STREAM).await {
        program.send_modify(|it| {
            if let ExecFrame::Stdin(bytes) = frame {
                it.output.extend_from_slice(&bytes);
                return;
            }
            if frame == ExecFrame::Hangup {
                it.ended = Some(HUNG_UP);
            }
            it.heard.push(frame);
        });
    }
}

/// Returns the sizes that a program was told.
#[must_use]
pub fn sizes(program: &Program) -> Vec<PtySize> {
    let size =
        |frame: &ExecFrame| if let ExecFrame::Resize(size) = frame { Some(*size) } else { None };
    program.heard.iter().filter_map(size).collect()
}

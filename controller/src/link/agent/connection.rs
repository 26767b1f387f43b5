//! One connected agent: its control stream, its samples, and the streams opened to it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{BootId, NodeId};
use tianqi_common::wire::control::{ToAgent, ToController};
use tianqi_common::wire::desired::{NodeDesired, NodeSettings};
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::hello::HelloReply;
use tianqi_common::wire::stream::{StreamOpen, StreamRefusal, StreamReply};
use tianqi_common::wire::telemetry::SampleBatch;
use tianqi_common::wire::{CloseCode, IDLE_TIMEOUT_S, Version};
use tokio::sync::{mpsc, watch};

use super::enroll;
use super::handshake::{self, Greeted, close, part};
use super::listener::Shared;
use crate::link::directory::NodeDirectory;
use crate::link::stream::{WorkStream, is_violation, to_link_error};
use crate::link::{AgentEvent, LinkError};

/// How long opening a work stream may take, the agent's answer included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Control goes before keystrokes, keystrokes before everything else.
const PRIORITY_CONTROL: i32 = 20;
const PRIORITY_EXEC: i32 = 10;
const PRIORITY_BULK: i32 = 0;
/// Answers that wait for the control stream; the reader of requests waits when it is full.
const ANSWERS: usize = 4;

/// A connected agent.
#[derive(Debug)]
pub(in crate::link) struct Connected {
    pub(super) node: NodeId,
    pub(super) boot: BootId,
    started_at: UnixMillis,
    /// The version that both sides speak.
    version: Version,
    quic: Connection,
    desired: watch::Sender<Option<NodeDesired>>,
    settings: watch::Sender<Option<NodeSettings>>,
    reports: watch::Sender<u64>,
    goodbye: watch::Sender<Option<Goodbye>>,
}

#[derive(Clone, Debug)]
struct Goodbye {
    code: CloseCode,
    message: String,
}

/// The receiving ends of what is published to one agent.
struct Outbox {
    desired: watch::Receiver<Option<NodeDesired>>,
    settings: watch::Receiver<Option<NodeSettings>>,
    reports: watch::Receiver<u64>,
    goodbye: watch::Receiver<Option<Goodbye>>,
    answers: mpsc::Receiver<ToAgent>,
}

impl Connected {
    /// Returns what orders two connections of one node: when their agents started.
    pub(super) fn start(&self) -> (UnixMillis, BootId) {
        (self.started_at, self.boot)
    }

    pub(in crate::link) fn publish(&self, desired: NodeDesired) -> bool {
        self.desired.send(Some(desired)).is_ok()
    }

    pub(in crate::link) fn settings(&self, settings: NodeSettings) -> bool {
        self.settings.send(Some(settings)).is_ok()
    }

    pub(in crate::link) fn report(&self) -> bool {
        self.reports.send_modify(|count| *count = count.wrapping_add(1));
        !self.reports.is_closed()
    }

    /// Sends a goodbye and closes. Returns whether the connection still stood.
    pub(in crate::link) fn say_goodbye(&self, code: CloseCode, message: &str) -> bool {
        let message = message.to_owned();
        self.goodbye.send(Some(Goodbye { code, message })).is_ok()
    }

    pub(in crate::link) async fn open(&self, open: StreamOpen) -> Result<WorkStream, LinkError> {
        if self.version.minor < open.since_minor() {
            let message = format!(
                "the agent of this node speaks {}, which has no {}; upgrade it",
                self.version,
                open.kind()
            );
            return Err(LinkError::Refused { code: StreamRefusal::Unsupported, message });
        }
        match tokio::time::timeout(OPEN_TIMEOUT, self.open_unhurried(open)).await {
            Ok(opened) => opened,
            Err(_) => Err(LinkError::TimedOut(OPEN_TIMEOUT.as_secs())),
        }
    }

    async fn open_unhurried(&self, open: StreamOpen) -> Result<WorkStream, LinkError> {
        let (mut send, mut recv) =
            self.quic.open_bi().await.map_err(|error| LinkError::Lost(error.into()))?;
        let priority = match open {
            StreamOpen::Exec(_) | StreamOpen::Terminal(_) => PRIORITY_EXEC,
            StreamOpen::Logs(_)
            | StreamOpen::LogQuery(_)
            | StreamOpen::Pull(_)
            | StreamOpen::Check(_)
            | StreamOpen::Tcp(_)
            | StreamOpen::Udp(_)
            | StreamOpen::Sftp(_) => PRIORITY_BULK,
        };
        // Fails only for a stream that is closed, which the write below reports.
        let _ = send.set_priority(priority);
        frame::write(&mut send, &open, Limit::OPEN).await.map_err(to_link_error)?;
        let reply = frame::read::<StreamReply, _>(&mut recv, Limit::OPEN).await;
        match reply {
            Ok(Some(StreamReply::Open)) => {
                let quic = self.quic.clone();
                let on_violation = Arc::new(move |error: &FrameError| {
                    close(&quic, CloseCode::Protocol, &error.to_string());
                });
                Ok(WorkStream::with_violation(recv, send, on_violation))
            }
            Ok(Some(StreamReply::Refused { code, message })) => {
                Err(LinkError::Refused { code, message })
            }
            Ok(None) => Err(LinkError::Frame(FrameError::Truncated)),
            Err(error) => {
                if is_violation(&error) {
                    close(&self.quic, CloseCode::Protocol, &error.to_string());
                }
                Err(to_link_error(error))
            }
        }
    }
}

/// Serves one connection from its hello to its end.
pub(super) async fn serve<D: NodeDirectory>(shared: Arc<Shared<D>>, quic: Connection) {
    let Some(greeted) = handshake::greet(&shared, &quic).await else { return };
    let (answer, answers) = mpsc::channel(ANSWERS);
    let (connected, outbox) = connected(&greeted, &quic, answers);
    let Greeted { hello, serial, version, mut send, recv } = greeted;
    let node = hello.node;
    match shared.registry.enter(&connected) {
        Ok(None) => {}
        Ok(Some(older)) => {
            tracing::info!(node.id = %node, "a newer connection of node {node} takes over");
            older
                .say_goodbye(CloseCode::Superseded, "a newer start of this node's agent took over");
        }
        Err(_) => {
            let message = "a newer start of this node's agent is connected; does another machine \
                           hold a copy of this identity?";
            tracing::warn!(node.id = %node, "an older start of the agent of node {node} was refused");
            let (code, text) = (CloseCode::Superseded, message.to_owned());
            return handshake::refuse(version, &quic, &mut send, "superseded", text, code).await;
        }
    }
    let now = shared.clock.now();
    let welcome = HelloReply::Welcome { version, now };
    if handshake::reply(shared.version, &mut send, &welcome).await.is_ok() {
        let event = AgentEvent::Connected {
            node,
            boot: hello.boot,
            started_at: hello.started_at,
            program: hello.program,
            skew_ms: hello.now.0.saturating_sub(now.0),
            address: quic.remote_address(),
        };
        let _ = shared.events.send(event).await;
        let ended = run(&shared, &connected, &serial, (send, recv), outbox, answer).await;
        // An agent that heard a goodbye may end its side before ours is done with saying it.
        let said = connected.goodbye.borrow().clone();
        let reason = said.map_or(ended, |goodbye| {
            close(&connected.quic, goodbye.code, &goodbye.message);
            goodbye.message
        });
        tracing::info!(node.id = %node, "the agent of node {node} is gone: {reason}");
        shared.registry.leave(&connected);
        let silence = match connected.quic.close_reason() {
            Some(ConnectionError::TimedOut) => IDLE_TIMEOUT_S,
            _ => 0,
        };
        let heard_at = UnixMillis(shared.clock.now().0 - 1_000 * silence.cast_signed());
        let gone = AgentEvent::Disconnected { node, boot: connected.boot, reason, heard_at };
        let _ = shared.events.send(gone).await;
    } else {
        shared.registry.leave(&connected);
    }
}

fn connected(
    greeted: &Greeted,
    quic: &Connection,
    answers: mpsc::Receiver<ToAgent>,
) -> (Arc<Connected>, Outbox) {
    let (desired, desired_out) = watch::channel(None);
    let (settings, settings_out) = watch::channel(None);
    let (reports, reports_out) = watch::channel(0);
    let (goodbye, goodbye_out) = watch::channel(None);
    let outbox = Outbox {
        desired: desired_out,
        settings: settings_out,
        reports: reports_out,
        goodbye: goodbye_out,
        answers,
    };
    let connected = Connected {
        node: greeted.hello.node,
        boot: greeted.hello.boot,
        started_at: greeted.hello.started_at,
        version: greeted.version,
        quic: quic.clone(),
        desired,
        settings,
        reports,
        goodbye,
    };
    (Arc::new(connected), outbox)
}

/// Runs the parts of a connection until one of them ends, and says why.
async fn run<D: NodeDirectory>(
    shared: &Shared<D>,
    connected: &Connected,
    serial: &str,
    (send, recv): (SendStream, RecvStream),
    outbox: Outbox,
    answer: mpsc::Sender<ToAgent>,
) -> String {
    let quic = &connected.quic;
    let ended = tokio::select! {
        ended = read_control(shared, connected.node, serial, recv, answer) => ended,
        ended = read_samples(shared, connected.node, quic) => ended,
        goodbye = write_control(send, outbox) => {
            return match goodbye {
                Some(Goodbye { code, message }) => {
                    close(quic, code, &message);
                    message
                }
                None => words(&quic.closed().await),
            };
        }
        error = quic.closed() => return words(&error),
    };
    match ended {
        Ok(()) => {
            close(quic, CloseCode::Shutdown, "the agent ended its control stream");
            "the agent ended its control stream".to_owned()
        }
        Err(error) if is_violation(&error) || matches!(error, FrameError::Truncated) => {
            close(quic, CloseCode::Protocol, &error.to_string());
            format!("the agent broke the protocol: {error}")
        }
        Err(_) => words(&quic.closed().await),
    }
}

/// Says which leg failed.
fn words(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => {
            format!("nothing was heard for {IDLE_TIMEOUT_S} s: the machine or the network is down")
        }
        ConnectionError::ApplicationClosed(closed) => {
            let reason: String =
                String::from_utf8_lossy(&closed.reason).chars().take(200).collect();
            format!("the agent closed the connection: {reason}")
        }
        ConnectionError::Reset => "the agent's machine no longer knows the connection".to_owned(),
        ConnectionError::LocallyClosed => "the controller closed the connection".to_owned(),
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::CidsExhausted => format!("the connection failed: {error}"),
    }
}

async fn read_control<D: NodeDirectory>(
    shared: &Shared<D>,
    node: NodeId,
    serial: &str,
    mut recv: RecvStream,
    answer: mpsc::Sender<ToAgent>,
) -> Result<(), FrameError> {
    let mut renewals = enroll::Renewals::default();
    while let Some(message) = frame::read(&mut recv, Limit::CONTROL).await? {
        let event = match message {
            ToController::Inventory(inventory) => AgentEvent::Inventory(node, inventory),
            ToController::Observed(observed) => AgentEvent::Observed(node, Box::new(observed)),
            ToController::Renew { csr_pem } => {
                let renewed = renewals.renew(shared, node, serial, &csr_pem).await;
                // The writer only goes away together with this reader.
                let _ = answer.send(renewed).await;
                continue;
            }
        };
        // Waits when the rooms are behind; the agent's next report then waits in its own queue.
        let _ = shared.events.send(event).await;
    }
    Ok(())
}

async fn read_samples<D: NodeDirectory>(
    shared: &Shared<D>,
    node: NodeId,
    quic: &Connection,
) -> Result<(), FrameError> {
    loop {
        let mut stream = quic.accept_uni().await.map_err(|error| FrameError::Io(error.into()))?;
        while let Some(batch) = frame::read::<SampleBatch, _>(&mut stream, Limit::TELEMETRY).await?
        {
            shared.samples.push(node, batch);
        }
    }
}

/// Writes what is published, newest first, until a goodbye is said or the stream fails.
async fn write_control(mut send: SendStream, outbox: Outbox) -> Option<Goodbye> {
    let Outbox { mut desired, mut settings, mut reports, mut goodbye, mut answers } = outbox;
    let _ = send.set_priority(PRIORITY_CONTROL);
    loop {
        let message = tokio::select! {
            biased;
            said = said(&mut goodbye) => {
                let said = said?;
                farewell(&mut send, &said).await;
                return Some(said);
            }
            Some(answer) = answers.recv() => Some(answer),
            changed = settings.changed() => {
                changed.ok()?;
                settings.borrow_and_update().clone().map(ToAgent::Settings)
            }
            changed = desired.changed() => {
                changed.ok()?;
                desired.borrow_and_update().clone().map(ToAgent::Desired)
            }
            changed = reports.changed() => {
                changed.ok()?;
                reports.borrow_and_update();
                Some(ToAgent::Report)
            }
        };
        let Some(message) = message else { continue };
        let written = tokio::select! {
            written = frame::write(&mut send, &message, Limit::CONTROL) => written,
            // The agent takes nothing more: what was begun is cut off by the close that follows.
            said = said(&mut goodbye) => return said,
        };
        match written {
            Ok(()) => {}
            Err(error @ FrameError::TooLong { .. }) => {
                tracing::error!(error = %error, "a control message was not sent");
            }
            Err(_) => return None,
        }
    }
}

/// Waits for a goodbye; nothing when nobody can say one any more.
async fn said(goodbye: &mut watch::Receiver<Option<Goodbye>>) -> Option<Goodbye> {
    goodbye.wait_for(Option::is_some).await.ok()?.clone()
}

async fn farewell(send: &mut SendStream, said: &Goodbye) {
    let code = match said.code {
        CloseCode::Shutdown => "shutdown",
        CloseCode::Superseded => "superseded",
        CloseCode::Unauthorised => "removed",
        CloseCode::Protocol => "protocol",
        CloseCode::Version => "version",
    };
    let message = ToAgent::Goodbye { code: code.to_owned(), message: said.message.clone() };
    let told = frame::write(send, &message, Limit::CONTROL);
    if matches!(tokio::time::timeout(Duration::from_secs(1), told).await, Ok(Ok(()))) {
        part(send).await;
    }
}

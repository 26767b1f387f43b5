//! Keeps one terminal: the program on its far side, what it showed last, and who looks at it.
//!
//! One task owns all of it. While somebody looks, the terminal waits for them, so that nothing is
//! lost; while nobody does, what it shows goes into the backlog alone.

use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tianqi_common::wire::frame::{self, CHUNK, FrameError, Limit};
use tianqi_common::wire::stream::{
    Exec, ExecFrame, PtySize, StreamRefusal, StreamReply, TERMINAL_BACKLOG, TERMINAL_KEPT_S,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep};

use super::backlog::Backlog;
use super::command;
use super::pipes::{HANGUP_GRACE, code_of, group};
use super::pty::Pty;
use super::stream::refuse;

/// Frames of one person that wait for the program to take its input; they wait when it is full.
const TYPED: usize = 32;
/// Bytes read at once.
const READ: usize = 16 << 10;
/// A child that the program left behind may hold the terminal; it is not waited for longer.
const LEFT_BEHIND: Duration = Duration::from_millis(250);
/// A program redraws itself when its terminal changes: it is a row shorter for so long.
const REDRAW: Duration = Duration::from_millis(60);

/// Somebody who comes back to a terminal.
pub(super) struct Visitor {
    /// Their stream; the reply is still to be sent.
    pub(super) stream: UnixStream,
    /// The size of what they look through.
    pub(super) size: PtySize,
    /// Bytes that they have seen.
    pub(super) seen: u64,
}

/// Runs a program with a terminal for one stream; it is hung up when the stream ends.
pub(super) async fn serve(
    stream: UnixStream,
    wanted: &Exec,
    size: PtySize,
) -> Result<(), FrameError> {
    let (_, nobody) = mpsc::channel(1);
    run(stream, wanted, size, nobody, Duration::ZERO).await
}

/// Runs a program with a terminal that waits for `visitors` when its stream breaks.
pub(super) async fn keep(
    stream: UnixStream,
    wanted: &Exec,
    size: PtySize,
    visitors: mpsc::Receiver<Visitor>,
) -> Result<(), FrameError> {
    run(stream, wanted, size, visitors, Duration::from_secs(TERMINAL_KEPT_S)).await
}

async fn run(
    mut stream: UnixStream,
    wanted: &Exec,
    size: PtySize,
    visitors: mpsc::Receiver<Visitor>,
    patience: Duration,
) -> Result<(), FrameError> {
    let started = command::program(wanted).and_then(|mut program| {
        let name = program.get_program().display().to_string();
        Pty::spawn(&mut program, size).map_err(|error| format!("{name}: {error}"))
    });
    let (pty, child) = match started {
        Ok(started) => started,
        Err(message) => return refuse(&mut stream, StreamRefusal::BadRequest, message).await,
    };
    let keeper = Keeper {
        group: group(&child),
        pty,
        size,
        backlog: Backlog::new(TERMINAL_BACKLOG),
        heard: None,
        writer: None,
        outgoing: Vec::new(),
        typed: Bytes::new(),
        patience,
        timers: Timers::default(),
        is_ending: false,
    };
    keeper.run(stream, child, visitors).await;
    Ok(())
}

/// What somebody who looks at the terminal sends.
struct Heard {
    frames: mpsc::Receiver<ExecFrame>,
    reading: JoinHandle<()>,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// What is to happen later.
#[derive(Default)]
struct Timers {
    /// Nobody came back.
    alone: Timer,
    /// A hang-up was not heeded.
    kill: Timer,
    /// The true size is set again.
    redraw: Timer,
}

type Timer = Option<Pin<Box<Sleep>>>;

struct Keeper {
    pty: Pty,
    group: Option<Pid>,
    size: PtySize,
    backlog: Backlog,
    /// From somebody who looks, while there is one.
    heard: Option<Heard>,
    /// To the same.
    writer: Option<OwnedWriteHalf>,
    /// Encoded frames on their way to whoever looks.
    outgoing: Vec<u8>,
    /// Typed bytes on their way to the program.
    typed: Bytes,
    patience: Duration,
    timers: Timers,
    /// Whether the program was told to end.
    is_ending: bool,
}

impl Keeper {
    async fn run(
        mut self,
        stream: UnixStream,
        mut child: Child,
        mut visitors: mpsc::Receiver<Visitor>,
    ) {
        self.look(stream, (!self.patience.is_zero()).then_some(0));
        let mut buffer = vec![0; READ];
        let (mut code, mut is_shown) = (None, false);
        while code.is_none() || !is_shown {
            let may_read = self.outgoing.is_empty() && !is_shown;
            tokio::select! {
                Some(visitor) = visitors.recv() => self.come_back(visitor),
                frame = next(&mut self.heard), if self.typed.is_empty() => self.take(frame),
                read = self.pty.read(&mut buffer), if may_read => match read {
                    Ok(length @ 1..) => self.show(buffer.get(..length).unwrap_or_default()),
                    Ok(0) | Err(_) => is_shown = true,
                },
                sent = send(&mut self.writer, &self.outgoing), if !self.outgoing.is_empty() => {
                    self.note_sent(sent);
                }
                typed = self.pty.write(&self.typed), if !self.typed.is_empty() => {
                    // A terminal that takes no more belongs to a program that is gone.
                    let typed = typed.unwrap_or(self.typed.len());
                    drop(self.typed.split_to(typed));
                }
                status = child.wait(), if code.is_none() => code = Some(status.map_or(-1, code_of)),
                () = sleep(LEFT_BEHIND), if code.is_some() && may_read => is_shown = true,
                () = due(&mut self.timers.alone) => self.hang_up(),
                () = due(&mut self.timers.kill) => self.signal(Signal::SIGKILL),
                () = due(&mut self.timers.redraw) => self.pty.resize(self.size),
            }
        }
        self.part(code.unwrap_or(-1), visitors).await;
    }

    /// Lets somebody look, from what follows the bytes they have `seen` where that counts.
    fn look(&mut self, stream: UnixStream, seen: Option<u64>) {
        let (reader, writer) = stream.into_split();
        let (sender, frames) = mpsc::channel(TYPED);
        self.heard = Some(Heard { frames, reading: tokio::spawn(hear(reader, sender)) });
        self.writer = Some(writer);
        self.timers.alone = None;
        self.outgoing = encoded(&StreamReply::Open);
        if let Some(seen) = seen {
            let (offset, missed) = self.backlog.after(seen);
            self.outgoing.extend(encoded(&ExecFrame::Position { offset }));
            for piece in missed.chunks(CHUNK) {
                self.say(piece);
            }
        }
    }

    /// Lets somebody take the place of whoever looked before, and the program redraw itself.
    fn come_back(&mut self, visitor: Visitor) {
        self.look(visitor.stream, Some(visitor.seen));
        self.size = visitor.size;
        let rows = if self.size.rows > 1 { self.size.rows - 1 } else { self.size.rows + 1 };
        self.pty.resize(PtySize { rows, ..self.size });
        self.timers.redraw = timer(REDRAW);
    }

    /// Takes a frame of whoever looks; nothing when they went.
    fn take(&mut self, frame: Option<ExecFrame>) {
        match frame {
            Some(ExecFrame::Stdin(bytes)) => self.typed = bytes,
            Some(ExecFrame::Resize(size)) => {
                self.size = size;
                self.pty.resize(size);
            }
            Some(ExecFrame::Signal(name)) => {
                if let Ok(signal) = format!("SIG{name}").parse() {
                    self.pty.signal(signal);
                }
            }
            Some(ExecFrame::Hangup) => self.hang_up(),
            Some(
                ExecFrame::StdinEnd
                | ExecFrame::Stdout(_)
                | ExecFrame::Stderr(_)
                | ExecFrame::Exit { .. }
                | ExecFrame::Failed { .. }
                | ExecFrame::Position { .. },
            ) => {}
            None => self.leave(),
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        self.backlog.push(bytes);
        if self.writer.is_some() {
            self.say(bytes);
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.outgoing.extend(encoded(&ExecFrame::Stdout(Bytes::copy_from_slice(bytes))));
    }

    fn note_sent(&mut self, sent: std::io::Result<usize>) {
        match sent {
            Ok(length @ 1..) => drop(self.outgoing.drain(..length)),
            Ok(0) | Err(_) => self.leave(),
        }
    }

    /// Whoever looked is gone.
    fn leave(&mut self) {
        self.heard = None;
        self.writer = None;
        self.outgoing.clear();
        if self.patience.is_zero() {
            self.hang_up();
        } else {
            self.timers.alone = timer(self.patience);
        }
    }

    fn hang_up(&mut self) {
        self.timers.alone = None;
        if !std::mem::replace(&mut self.is_ending, true) {
            self.signal(Signal::SIGHUP);
            self.signal(Signal::SIGCONT);
            self.timers.kill = timer(HANGUP_GRACE);
        }
    }

    fn signal(&mut self, signal: Signal) {
        self.timers.kill = None;
        self.pty.signal(signal);
        if let Some(group) = self.group {
            let _ = killpg(group, signal);
        }
    }

    /// Says how the program ended, to somebody who comes back for it too.
    async fn part(mut self, code: i32, mut visitors: mpsc::Receiver<Visitor>) {
        let may_come_back = self.writer.is_none() && !self.is_ending;
        if may_come_back
            && let Ok(Some(visitor)) = tokio::time::timeout(self.patience, visitors.recv()).await
        {
            self.look(visitor.stream, Some(visitor.seen));
        }
        self.outgoing.extend(encoded(&ExecFrame::Exit { code }));
        if let Some(mut writer) = self.writer.take() {
            let said = writer.write_all(&self.outgoing);
            // Somebody who does not read their last words goes without them.
            let _ = tokio::time::timeout(HANGUP_GRACE, said).await;
        }
    }
}

/// Reads what somebody sends, until they go.
async fn hear(mut reader: OwnedReadHalf, frames: mpsc::Sender<ExecFrame>) {
    while let Ok(Some(frame)) = frame::read(&mut reader, Limit::STREAM).await {
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

/// Returns the next frame of whoever looks, nothing when they went; waits while nobody does.
async fn next(heard: &mut Option<Heard>) -> Option<ExecFrame> {
    match heard {
        Some(heard) => heard.frames.recv().await,
        None => pending().await,
    }
}

async fn send(writer: &mut Option<OwnedWriteHalf>, bytes: &[u8]) -> std::io::Result<usize> {
    match writer {
        Some(writer) => writer.write(bytes).await,
        None => pending().await,
    }
}

fn timer(after: Duration) -> Timer {
    Some(Box::pin(sleep(after)))
}

/// Waits for a timer and takes it away.
async fn due(timer: &mut Timer) {
    match timer {
        Some(sleep) => sleep.as_mut().await,
        None => pending().await,
    }
    *timer = None;
}

/// A frame of this size is never over its limit.
fn encoded<T: serde::Serialize>(frame: &T) -> Vec<u8> {
    frame::encode(frame, Limit::STREAM).unwrap_or_default()
}

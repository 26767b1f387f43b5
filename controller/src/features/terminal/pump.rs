//! Carries bytes between a browser and an instance. No parsing, no lock, no SQL per keystroke.
//!
//! Three things go on side by side in one task: what is typed goes to the agent, what the program
//! writes goes into a queue, and one writer empties the queue into the WebSocket. Input that a
//! program does not read therefore never holds up its output. When the queue is full the agent
//! waits, and the program with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::Message;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use tianqi_common::wire::stream::ExecFrame;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::frame::{self, Heard, Shown, ToBrowser};
use super::goodbye::say_goodbye;
use crate::authz::watch::InUse;
use crate::core::error::Problem;
use crate::link::{WorkReader, WorkStream, WorkWriter};

/// How often the browser is pinged.
pub(super) const PING: Duration = Duration::from_secs(20);
/// A browser that says nothing for so long, not even to a ping, is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long a kept program may take to hear that it is hung up, and its agent to say that it is.
const HANGUP: Duration = Duration::from_secs(2);
/// Pieces of output that wait for the browser; when full, the agent waits.
const QUEUE: usize = 16;

/// How a terminal came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The program ended or broke; this was said of it.
    Program(ToBrowser),
    /// The way to the program ended; a kept one runs on.
    Lost(ToBrowser),
    /// The browser went away.
    BrowserLeft,
    /// The browser was silent for too long.
    BrowserSilent,
    /// The browser said that it is enough, of a program that is not kept.
    HungUp,
    /// The browser said what is not understood.
    Refused(ToBrowser),
    /// The right to it ended, for this reason.
    RightEnded(ToBrowser),
}

/// A program that is open, and what is said of it first.
#[derive(Debug)]
pub(super) struct Line {
    /// Both directions.
    pub work: WorkStream,
    /// The first word.
    pub opened: ToBrowser,
    /// Whether it outlives its stream.
    pub is_kept: bool,
}

/// What was carried.
#[derive(Debug)]
pub(super) struct Carried {
    /// Bytes from the browser.
    pub bytes_in: u64,
    /// Bytes to the browser.
    pub bytes_out: u64,
    /// Whether the program was told to end.
    pub is_hung_up: bool,
    /// How it ended.
    pub end: End,
}

#[derive(Default)]
struct Counts {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    is_hung_up: AtomicBool,
    /// Whether a frame to the agent was begun and not ended.
    is_in_frame: AtomicBool,
}

/// Carries bytes until one side ends or `right` says why the right to it has. Why the way to a kept
/// program ended is asked of `lost`.
pub(super) async fn carry<S, K, E, L>(
    mut source: S,
    mut sink: K,
    line: Line,
    in_use: InUse,
    right: impl Future<Output = Problem>,
    lost: impl FnOnce(ToBrowser) -> L,
) -> Carried
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
    L: Future<Output = ToBrowser>,
{
    let Line { work: WorkStream { mut writer, mut reader }, opened, is_kept } = line;
    let (queue, queued) = mpsc::channel(QUEUE);
    let counts = Counts::default();
    // A new queue has room.
    let _ = queue.try_send(Shown::Word(opened));
    let typing = Typing { queue: queue.clone(), counts: &counts, in_use: &in_use, is_kept };
    let mut end = tokio::select! {
        end = typing.input(&mut source, &mut writer) => end,
        never = output(&mut reader, queue) => match never {},
        end = write(&mut sink, queued, &counts) => end,
        problem = right => right_ended(problem),
    };
    if let (true, End::Lost(word)) = (is_kept, &end) {
        end = End::Lost(lost(word.clone()).await);
    }
    let parting = async {
        if is_kept && matches!(end, End::RightEnded(_)) {
            hang_up(&mut writer, &mut reader, &counts).await;
        }
        // Without them a program that is not kept ends.
        drop((writer, reader));
    };
    tokio::join!(parting, say_goodbye(&mut source, &mut sink, &end));
    Carried {
        bytes_in: counts.bytes_in.load(Ordering::Relaxed),
        bytes_out: counts.bytes_out.load(Ordering::Relaxed),
        is_hung_up: counts.is_hung_up.load(Ordering::Relaxed),
        end,
    }
}

/// A controller that ends takes no right away.
fn right_ended(problem: Problem) -> End {
    match problem.code {
        "ending" => End::Lost(problem.into()),
        _ => End::RightEnded(problem.into()),
    }
}

/// Tells a kept program to end. One that does not read its input may have left a frame half sent;
/// then nothing more can be said on this stream.
async fn hang_up(writer: &mut WorkWriter, reader: &mut WorkReader, counts: &Counts) {
    if counts.is_in_frame.load(Ordering::Relaxed) {
        return;
    }
    let told = async {
        if writer.send(&ExecFrame::Hangup).await.is_err() {
            return;
        }
        counts.is_hung_up.store(true, Ordering::Relaxed);
        // An agent that cannot write may not read to the end either, so its output is taken until
        // it is over.
        let mut scrap = [0; 4_096];
        while reader.read(&mut scrap).await.is_ok_and(|length| length > 0) {}
    };
    let _ = tokio::time::timeout(HANGUP, told).await;
}

/// What goes from the browser to the program.
struct Typing<'a> {
    queue: mpsc::Sender<Shown>,
    counts: &'a Counts,
    in_use: &'a InUse,
    is_kept: bool,
}

impl Typing<'_> {
    async fn input<S, E>(&self, source: &mut S, writer: &mut WorkWriter) -> End
    where
        S: Stream<Item = Result<Message, E>> + Unpin,
    {
        let mut takes_input = true;
        loop {
            let message = match tokio::time::timeout(SILENCE, source.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(_)) | None) => return End::BrowserLeft,
                Err(_) => return End::BrowserSilent,
            };
            match frame::from_browser(message) {
                // A program that has ended takes no more; how it ended comes with its output.
                Heard::Pass(frame) if takes_input => takes_input = self.pass(writer, frame).await,
                Heard::Pass(_) | Heard::Nothing => {}
                Heard::Answer(answer) => {
                    // Left out when the queue is full: then output shows that somebody is there.
                    let _ = self.queue.try_send(Shown::Word(answer));
                }
                Heard::Leaves => return End::BrowserLeft,
                Heard::Hangup if self.is_kept => {
                    takes_input = self.pass(writer, ExecFrame::Hangup).await;
                    self.counts.is_hung_up.store(takes_input, Ordering::Relaxed);
                }
                Heard::Hangup => return End::HungUp,
                Heard::Attach(_) => {
                    let problem = "only the first frame after ?attach=1 comes back to a terminal";
                    return End::Refused(ToBrowser::error("bad_frame", problem));
                }
                Heard::Refuse(error) => return End::Refused(error),
            }
        }
    }

    /// Sends one frame; returns whether the agent takes more.
    async fn pass(&self, writer: &mut WorkWriter, frame: ExecFrame) -> bool {
        if let ExecFrame::Stdin(bytes) = &frame {
            self.counts.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.in_use.mark();
        }
        self.counts.is_in_frame.store(true, Ordering::Relaxed);
        let is_sent = writer.send(&frame).await.is_ok();
        self.counts.is_in_frame.store(!is_sent, Ordering::Relaxed);
        is_sent
    }
}

/// From the program into the queue. Ends with the task: the writer says the last word.
async fn output(reader: &mut WorkReader, queue: mpsc::Sender<Shown>) -> std::convert::Infallible {
    loop {
        let shown = match reader.next::<ExecFrame>().await {
            Ok(Some(frame)) => frame::from_agent(frame),
            Ok(None) => {
                let message = "the connection to the program ended without an exit code";
                Shown::Lost(ToBrowser::error("node_lost", message))
            }
            Err(error) => Shown::Lost(Problem::from(error).into()),
        };
        let is_last = matches!(shown, Shown::Last(_) | Shown::Lost(_));
        if queue.send(shown).await.is_err() || is_last {
            return std::future::pending().await;
        }
    }
}

/// From the queue to the browser, with a ping now and then.
async fn write<K>(sink: &mut K, mut queue: mpsc::Receiver<Shown>, counts: &Counts) -> End
where
    K: Sink<Message> + Unpin,
{
    let mut pings = tokio::time::interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let shown = tokio::select! {
            shown = queue.recv() => shown,
            _ = pings.tick() => {
                if sink.send(Message::Ping(Vec::new().into())).await.is_err() {
                    return End::BrowserLeft;
                }
                continue;
            }
        };
        let message = match shown {
            Some(Shown::Bytes(bytes)) => {
                counts.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Message::Binary(bytes)
            }
            Some(Shown::Word(word)) => Message::Text(word.text().into()),
            Some(Shown::Last(last)) => {
                let is_sent = sink.flush().await.is_ok();
                return if is_sent { End::Program(last) } else { End::BrowserLeft };
            }
            Some(Shown::Lost(word)) => {
                let is_sent = sink.flush().await.is_ok();
                return if is_sent { End::Lost(word) } else { End::BrowserLeft };
            }
            // Those who fill the queue end no sooner than this.
            None => return std::future::pending().await,
        };
        // Pieces that wait already are sent together.
        let is_sent =
            if queue.is_empty() { sink.send(message).await } else { sink.feed(message).await };
        if is_sent.is_err() {
            return End::BrowserLeft;
        }
    }
}

//! Carries bytes between a browser and an instance. No parsing, no lock, no SQL per keystroke.
//!
//! Three things go on side by side in one task: what is typed goes to the agent, what the program
//! writes goes into a queue, and one writer empties the queue into the WebSocket. Input that a
//! program does not read therefore never holds up its output. When the queue is full the agent
//! waits, and the program with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, close_code};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use tianqi_common::wire::stream::ExecFrame;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::frame::{self, Heard, Shown, ToBrowser};
use crate::authz::watch::InUse;
use crate::core::error::Problem;
use crate::link::{WorkReader, WorkStream, WorkWriter};

/// How often the browser is pinged.
pub(super) const PING: Duration = Duration::from_secs(20);
/// A browser that says nothing for so long, not even to a ping, is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long the last word and the end of the connection may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Pieces of output that wait for the browser; when full, the agent waits.
const QUEUE: usize = 16;

/// How a terminal came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The program ended or broke; this was said of it.
    Program(ToBrowser),
    /// The browser went away.
    BrowserLeft,
    /// The browser was silent for too long.
    BrowserSilent,
    /// The controller ends it, for this reason.
    Refused(ToBrowser),
}

/// What was carried.
#[derive(Debug)]
pub(super) struct Carried {
    /// Bytes from the browser.
    pub bytes_in: u64,
    /// Bytes to the browser.
    pub bytes_out: u64,
    /// How it ended.
    pub end: End,
}

#[derive(Default)]
struct Counts {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Carries bytes until one side ends or `right` says why the right to it has.
pub(super) async fn carry<S, K, E>(
    mut source: S,
    mut sink: K,
    work: WorkStream,
    in_use: InUse,
    right: impl Future<Output = Problem>,
) -> Carried
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    let (queue, queued) = mpsc::channel(QUEUE);
    let counts = Counts::default();
    // A new queue has room.
    let _ = queue.try_send(Shown::Word(ToBrowser::Opened));
    let end = tokio::select! {
        end = input(&mut source, work.writer, queue.clone(), &counts, &in_use) => end,
        never = output(work.reader, queue) => match never {},
        end = write(&mut sink, queued, &counts) => end,
        problem = right => End::Refused(problem.into()),
    };
    // Both halves of the stream are dropped here, which ends the program.
    say_goodbye(&mut source, &mut sink, &end).await;
    Carried {
        bytes_in: counts.bytes_in.load(Ordering::Relaxed),
        bytes_out: counts.bytes_out.load(Ordering::Relaxed),
        end,
    }
}

/// Tells a browser why its terminal was not opened.
pub(super) async fn refuse<S, K, E>(mut source: S, mut sink: K, error: ToBrowser)
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    say_goodbye(&mut source, &mut sink, &End::Program(error)).await;
}

/// From the browser to the program.
async fn input<S, E>(
    source: &mut S,
    mut writer: WorkWriter,
    queue: mpsc::Sender<Shown>,
    counts: &Counts,
    in_use: &InUse,
) -> End
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
            Heard::Pass(frame) if takes_input => {
                if let ExecFrame::Stdin(bytes) = &frame {
                    counts.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    in_use.mark();
                }
                // A program that has ended takes no more; how it ended comes with its output.
                takes_input = writer.send(&frame).await.is_ok();
            }
            Heard::Pass(_) | Heard::Nothing => {}
            Heard::Answer(answer) => {
                // Left out when the queue is full: then output shows that somebody is there.
                let _ = queue.try_send(Shown::Word(answer));
            }
            Heard::Leaves => return End::BrowserLeft,
            Heard::Refuse(error) => return End::Refused(error),
        }
    }
}

/// From the program into the queue. Ends with the task: the writer says the last word.
async fn output(mut reader: WorkReader, queue: mpsc::Sender<Shown>) -> std::convert::Infallible {
    loop {
        let shown = match reader.next::<ExecFrame>().await {
            Ok(Some(frame)) => frame::from_agent(frame),
            Ok(None) => {
                let message = "the connection to the program ended without an exit code";
                Shown::Last(ToBrowser::error("node_lost", message))
            }
            Err(error) => Shown::Last(Problem::from(error).into()),
        };
        let is_last = matches!(shown, Shown::Last(_));
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

/// Says why it ended, and waits for the browser's goodbye: a connection that is cut with unread
/// input loses what was said last. A browser that is slow is cut off.
async fn say_goodbye<S, K, E>(source: &mut S, sink: &mut K, end: &End)
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    let _ = tokio::time::timeout(GOODBYE, part(source, sink, end)).await;
}

async fn part<S, K, E>(source: &mut S, sink: &mut K, end: &End)
where
    S: Stream<Item = Result<Message, E>> + Unpin,
    K: Sink<Message> + Unpin,
{
    let (last, code) = match end {
        End::Program(last @ ToBrowser::Exit { .. }) => (Some(last), close_code::NORMAL),
        End::Program(last) => (Some(last), close_code::ERROR),
        End::Refused(last) => (Some(last), close_code::POLICY),
        End::BrowserLeft | End::BrowserSilent => (None, close_code::NORMAL),
    };
    if let Some(last) = last
        && sink.send(Message::Text(last.text().into())).await.is_err()
    {
        return;
    }
    let close = CloseFrame { code, reason: "".into() };
    if sink.send(Message::Close(Some(close))).await.is_err() || *end == End::BrowserLeft {
        return;
    }
    while let Some(Ok(_)) = source.next().await {}
}

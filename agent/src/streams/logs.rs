//! An instance's output: the end of it, a time of it, what holds a text, and what comes.
//!
//! Everything is read in pieces and waits for the controller, and Docker's reader waits with it: the
//! output itself is on the node's disk. A search keeps one unfinished line of each kind, and the last
//! matching lines where only those are wanted.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tianqi_common::clock::UnixMillis;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::stream::{LogFrame, LogQuery, Logs, StreamRefusal};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::batch::Batch;
use super::search::{Line, Lines, Needle};
use super::tail::Tail;
use super::{Sink, Source, StreamError, Streams, accept, container_of};
use crate::docker::{LogRequest, Output, Pieces};

/// Most lines from the end, for controllers that know nothing newer.
const OLD_TAIL: u32 = 10_000;
/// Most lines from the end.
pub(super) const MAX_TAIL: u32 = 100_000;
/// Longest text to look for, in characters.
const MAX_SEARCH: usize = 200;
/// Bytes that are looked through before others get their turn, and before it is asked whether
/// anybody still listens: a search that finds nothing writes nothing.
const TURN: usize = 256 << 10;
/// Output that is silent for so long has been read to its end.
const CAUGHT_UP: Duration = Duration::from_millis(200);

/// The old question in the words of the new one.
pub(super) fn asked(logs: &Logs) -> LogQuery {
    LogQuery {
        instance: logs.instance,
        tail: Some(logs.tail.min(OLD_TAIL)),
        since: None,
        until: None,
        follow: logs.follow,
        timestamps: logs.timestamps,
        search: String::new(),
    }
}

pub(super) async fn serve(
    streams: &Streams,
    wanted: LogQuery,
    reader: &mut impl Source,
    writer: &mut impl Sink,
) -> Result<(), StreamError> {
    check(&wanted)?;
    let docker = streams.docker();
    let container = container_of(&*docker, wanted.instance).await?;
    let needle = Needle::new(&wanted.search);
    // Docker counts lines before they are looked through.
    let wants_last = wanted.tail.filter(|tail| needle.is_some() && *tail > 0);
    let request = LogRequest {
        tail: if wants_last.is_some() { None } else { wanted.tail },
        since: wanted.since,
        until: wanted.until,
        follow: wanted.follow,
        // In output that goes on, times tell what was there before from what is new.
        timestamps: wanted.timestamps || (wants_last.is_some() && wanted.follow),
    };
    let has_times = request.timestamps;
    let pieces = docker.logs(&container.id, request).await?;
    accept(writer).await?;
    // Each keeps some megabytes; one more waits.
    let permit = match wants_last {
        Some(_) => streams.tails.acquire().await.ok(),
        None => None,
    };
    let finder = needle.map(|needle| Finder {
        needle,
        lines: Lines::new(has_times),
        tail: wants_last.map(Tail::new),
        began: streams.clock.now(),
        shows_times: wanted.timestamps,
    });
    let batch = Batch::new(writer);
    let reading = Reading { pieces, reader, batch, finder, permit, since_turn: 0 };
    match reading.run().await? {
        Some(last) => Ok(frame::write(writer, &last, Limit::STREAM).await?),
        None => Ok(()),
    }
}

fn check(wanted: &LogQuery) -> Result<(), StreamError> {
    let refuse = |message: String| Err(StreamError::Refused(StreamRefusal::BadRequest, message));
    if wanted.tail.is_some_and(|tail| tail > MAX_TAIL) {
        return refuse(format!("tail is at most {MAX_TAIL}"));
    }
    if wanted.search.chars().count() > MAX_SEARCH || wanted.search.contains(['\n', '\0']) {
        return refuse(format!("a search is one line of at most {MAX_SEARCH} characters"));
    }
    Ok(())
}

/// Looks for a text.
struct Finder {
    needle: Needle,
    lines: Lines,
    /// The last matching lines, until everything was seen that was there at first.
    tail: Option<Tail>,
    began: UnixMillis,
    shows_times: bool,
}

/// One reading of an output.
struct Reading<'a, R, W> {
    pieces: Pieces<Output>,
    reader: &'a mut R,
    batch: Batch<'a, W>,
    finder: Option<Finder>,
    permit: Option<tokio::sync::SemaphorePermit<'a>>,
    since_turn: usize,
}

impl<R, W> Reading<'_, R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    /// Reads to the end and returns the last frame; nothing when nobody listens any more.
    async fn run(mut self) -> Result<Option<LogFrame>, FrameError> {
        // The controller sends nothing here; the end of its side means that nobody reads any more.
        let mut nothing = [0; 1];
        loop {
            if self.since_turn >= TURN {
                self.since_turn = 0;
                tokio::task::yield_now().await;
                if self.reader.read(&mut nothing).now_or_never().is_some() {
                    return Ok(None);
                }
            }
            let piece = match self.pieces.next().now_or_never() {
                Some(piece) => piece,
                None => {
                    self.batch.flush().await?;
                    let is_catching_up = self.finder.as_ref().is_some_and(|it| it.tail.is_some());
                    tokio::select! {
                        piece = self.pieces.next() => piece,
                        _ = self.reader.read(&mut nothing) => return Ok(None),
                        () = tokio::time::sleep(CAUGHT_UP), if is_catching_up => {
                            self.caught_up().await?;
                            continue;
                        }
                    }
                }
            };
            match piece {
                Some(Ok(output)) => self.take(output).await?,
                Some(Err(error)) => {
                    self.finish().await?;
                    return Ok(Some(LogFrame::Failed { message: error.to_string() }));
                }
                None => {
                    self.finish().await?;
                    return Ok(Some(LogFrame::End));
                }
            }
        }
    }

    async fn take(&mut self, output: Output) -> Result<(), FrameError> {
        self.since_turn += output.bytes.len();
        let Some(finder) = &mut self.finder else {
            return self.batch.add(output.kind, &output.bytes).await;
        };
        let mut found: Vec<Line> = Vec::new();
        let Finder { needle, lines, .. } = finder;
        lines.take(output, |line| found.extend(needle.is_in(&line.bytes).then_some(line)));
        for line in found {
            self.show(line).await?;
        }
        Ok(())
    }

    /// Shows a line that matches, or keeps it until it is known to be one of the last.
    async fn show(&mut self, line: Line) -> Result<(), FrameError> {
        let Some(finder) = &mut self.finder else { return Ok(()) };
        if let Some(tail) = &mut finder.tail {
            if !is_from(&line.at, finder.began) {
                tail.add(line, finder.shows_times);
                return Ok(());
            }
            self.caught_up().await?;
        }
        let shows_times = self.finder.as_ref().is_some_and(|it| it.shows_times);
        if shows_times {
            self.batch.add(line.kind, &line.at).await?;
        }
        self.batch.add(line.kind, &line.bytes).await?;
        if line.bytes.ends_with(b"\n") {
            return Ok(());
        }
        self.batch.add(line.kind, b"\n").await
    }

    /// Shows the last lines of what was there at first; what comes is shown as it comes.
    async fn caught_up(&mut self) -> Result<(), FrameError> {
        let Some(tail) = self.finder.as_mut().and_then(|finder| finder.tail.take()) else {
            return Ok(());
        };
        for (kind, line) in tail.into_lines() {
            self.batch.add(kind, &line).await?;
        }
        self.permit = None;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), FrameError> {
        let mut rest: Vec<Line> = Vec::new();
        if let Some(finder) = &mut self.finder {
            let lines = std::mem::take(&mut finder.lines);
            let needle = &finder.needle;
            lines.finish(|line| rest.extend(needle.is_in(&line.bytes).then_some(line)));
        }
        for line in rest {
            self.show(line).await?;
        }
        self.caught_up().await?;
        self.batch.flush().await
    }
}

/// Whether a line was written at `began` or later, as far as its time tells.
fn is_from(at: &Bytes, began: UnixMillis) -> bool {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let text = std::str::from_utf8(at).unwrap_or_default().trim_end();
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.is_ok_and(|time| time.unix_timestamp_nanos() / 1_000_000 >= i128::from(began.0))
}

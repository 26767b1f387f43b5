//! Carries bytes between one channel and an instance. No parsing, no lock that anybody waits for, no
//! SQL.
//!
//! Input and output go on side by side in one task, so that input which a program does not read never
//! holds up its output. When the client takes no more, the agent waits, and the program with it.
//!
//! Recording a session belongs here: everything that is shown passes through [`program`].

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use tianqi_common::wire::stream::ExecFrame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::channel::Ends;
use super::flow::STUCK;
use super::intake::Piece;
use crate::core::error::Problem;
use crate::link::{WorkReader, WorkStream, WorkWriter};

/// Bytes that are read at once from a raw stream. Large pieces cost few wake-ups.
const READ: usize = 256 << 10;

/// How a stream came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// The program ended with this code.
    Exit(i32),
    /// The stream of bytes ended.
    Ended,
    /// The program could not go on, in the agent's words.
    Failed(String),
    /// The agent is gone.
    NodeLost,
    /// The client is gone, or closed the channel.
    ClientLeft,
    /// The right to it has ended.
    Refused(Problem),
    /// Nothing took what the client sent, and other channels were slowed by it.
    Stuck,
}

impl End {
    /// The word for the audit.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::Ended => "ended",
            Self::Failed(_) => "failed",
            Self::NodeLost => "node_lost",
            Self::ClientLeft => "client_left",
            Self::Refused(problem) => problem.code,
            Self::Stuck => "stuck",
        }
    }

    /// The program's code, when it ended by itself.
    pub(super) fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exit(code) => Some(*code),
            Self::Ended
            | Self::Failed(_)
            | Self::NodeLost
            | Self::ClientLeft
            | Self::Refused(_)
            | Self::Stuck => None,
        }
    }
}

/// What was carried; bytes to the client are counted by its `Out`.
#[derive(Debug)]
pub(super) struct Carried {
    /// How it ended.
    pub end: End,
    /// Bytes from the client.
    pub bytes_in: u64,
}

/// Carries a program's frames until one side ends or `right` says why the right to it has.
pub(super) async fn program(
    work: WorkStream,
    ends: &Ends,
    has_terminal: bool,
    right: impl Future<Output = Problem>,
) -> Carried {
    let bytes_in = AtomicU64::new(0);
    let end = tokio::select! {
        end = typed(work.writer, ends, has_terminal, &bytes_in) => end,
        end = shown(work.reader, ends) => end,
        end = ended_otherwise(ends, right) => end,
    };
    Carried { end, bytes_in: bytes_in.into_inner() }
}

/// Carries a connection until both directions have ended, each by itself.
pub(super) async fn connection(
    work: WorkStream,
    ends: &Ends,
    right: impl Future<Output = Problem>,
) -> Carried {
    let bytes_in = AtomicU64::new(0);
    let both = async {
        let up = async { upload(work.writer, ends, &bytes_in).await.map_or(Ok(()), Err) };
        let down = async {
            let ended = download(work.reader, ends).await;
            ends.out.end().await;
            ended.map_or(Ok(()), Err)
        };
        tokio::try_join!(up, down).map_or_else(|end| end, |_| End::Ended)
    };
    let end = tokio::select! {
        end = both => end,
        end = ended_otherwise(ends, right) => end,
    };
    Carried { end, bytes_in: bytes_in.into_inner() }
}

/// Carries the bytes of a server in an instance until it has ended, as it does when its input has.
pub(super) async fn server(
    work: WorkStream,
    ends: &Ends,
    right: impl Future<Output = Problem>,
) -> Carried {
    let bytes_in = AtomicU64::new(0);
    let up = async {
        match upload(work.writer, ends, &bytes_in).await {
            Some(end) => end,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = up => end,
        ended = download(work.reader, ends) => ended.unwrap_or(End::Ended),
        end = ended_otherwise(ends, right) => end,
    };
    Carried { end, bytes_in: bytes_in.into_inner() }
}

/// What ends a stream from outside.
async fn ended_otherwise(ends: &Ends, right: impl Future<Output = Problem>) -> End {
    let connection = &ends.connection;
    let has_others = || connection.has_several_channels();
    tokio::select! {
        problem = right => End::Refused(problem),
        () = ends.taker.stuck(STUCK, has_others) => End::Stuck,
        () = connection.cut.cancelled() => End::ClientLeft,
    }
}

/// From the client to the program.
async fn typed(
    mut writer: WorkWriter,
    ends: &Ends,
    has_terminal: bool,
    bytes_in: &AtomicU64,
) -> End {
    let mut takes_input = true;
    loop {
        let frame = match ends.taker.next().await {
            Piece::Data(bytes) => {
                bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                ends.connection.mark_use(true);
                ExecFrame::Stdin(bytes)
            }
            Piece::Resize(size) if has_terminal => ExecFrame::Resize(size),
            Piece::Signal(name) => ExecFrame::Signal(name),
            // The end of input is typed in a terminal; a client that has no more keys still looks.
            Piece::End if !has_terminal => ExecFrame::StdinEnd,
            Piece::Resize(_) | Piece::End => continue,
            Piece::Closed => return End::ClientLeft,
        };
        // A program that has ended takes no more; how it ended comes with its output.
        takes_input = takes_input && writer.send(&frame).await.is_ok();
    }
}

/// From the program to the client.
async fn shown(mut reader: WorkReader, ends: &Ends) -> End {
    loop {
        let written = match reader.next::<ExecFrame>().await {
            Ok(Some(ExecFrame::Stdout(bytes))) => ends.out.stdout(bytes).await,
            Ok(Some(ExecFrame::Stderr(bytes))) => ends.out.stderr(bytes).await,
            Ok(Some(ExecFrame::Exit { code })) => return End::Exit(code),
            Ok(Some(ExecFrame::Failed { message })) => return End::Failed(message),
            // What only a controller says means nothing from an agent.
            Ok(Some(
                ExecFrame::Stdin(_)
                | ExecFrame::StdinEnd
                | ExecFrame::Resize(_)
                | ExecFrame::Signal(_)
                | ExecFrame::Hangup
                | ExecFrame::Position { .. },
            )) => continue,
            Ok(None) | Err(_) => return End::NodeLost,
        };
        ends.connection.mark_use(false);
        if written.is_err() {
            return End::ClientLeft;
        }
    }
}

/// From the client into a stream of bytes. Returns why the whole of it is over, or nothing when only
/// this direction has ended.
async fn upload(mut writer: WorkWriter, ends: &Ends, bytes_in: &AtomicU64) -> Option<End> {
    let mut takes_input = true;
    loop {
        match ends.taker.next().await {
            Piece::Data(bytes) => {
                bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                ends.connection.mark_use(true);
                takes_input = takes_input && writer.write_all(&bytes).await.is_ok();
            }
            Piece::End => {
                // A stream whose other side is gone cannot be told, and need not be.
                let _ = writer.finish().await;
                return None;
            }
            Piece::Resize(_) | Piece::Signal(_) => {}
            Piece::Closed => return Some(End::ClientLeft),
        }
    }
}

/// From a stream of bytes to the client, until it ends.
async fn download(mut reader: WorkReader, ends: &Ends) -> Option<End> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return None,
            Ok(_) => {
                ends.connection.mark_use(false);
                if ends.out.stdout(buffer.split().freeze()).await.is_err() {
                    return Some(End::ClientLeft);
                }
            }
            Err(_) => return Some(End::NodeLost),
        }
    }
}

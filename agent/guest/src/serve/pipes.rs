//! A program whose input and output are pipes: output and error come apart, and bulk goes through
//! here.

use std::process::Stdio;
use std::time::Duration;

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tianqi_common::wire::frame::{self, CHUNK, FrameError, Limit};
use tianqi_common::wire::stream::{Exec, ExecFrame, StreamRefusal, StreamReply};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStdin};

use super::command::{self, Front};
use super::stream::refuse;

/// Bytes that a pipe holds; more of them are read at once, and fewer times.
const PIPE: i32 = 1 << 20;
/// A child that the program left behind may hold its output open; it is not waited for longer than
/// this without output.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
/// What a program gets after a hang-up before it is killed.
pub(super) const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Runs a program to its end, or until nobody listens any more.
pub(super) async fn serve(mut stream: UnixStream, wanted: &Exec) -> Result<(), FrameError> {
    let started = command::program(wanted).and_then(|mut program| {
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command::set_apart(&mut program, Front::Pipes);
        let message = format!("{}", program.get_program().display());
        let child = tokio::process::Command::from(program).spawn();
        child.map_err(|error| format!("{message}: {error}"))
    });
    let mut child = match started {
        Ok(child) => child,
        Err(message) => return refuse(&mut stream, StreamRefusal::BadRequest, message).await,
    };
    let group = group(&child);
    frame::write(&mut stream, &StreamReply::Open, Limit::OPEN).await?;
    let (reader, mut writer) = stream.into_split();
    let input = input(reader, child.stdin.take(), group);
    let ended = tokio::select! {
        code = output(&mut child, &mut writer) => Some(code),
        () = input => None,
    };
    match ended {
        Some(Ok(code)) => frame::write(&mut writer, &ExecFrame::Exit { code }, Limit::STREAM).await,
        Some(Err(error)) => {
            end(&mut child, group).await;
            Err(error)
        }
        None => {
            end(&mut child, group).await;
            Ok(())
        }
    }
}

/// Returns the group that a child leads, being the first of its session.
pub(super) fn group(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
}

/// Returns the exit code as shells have it.
pub(super) fn code_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Hangs a program up, and kills it when it does not go.
async fn end(child: &mut Child, group: Option<Pid>) {
    for signal in [Signal::SIGHUP, Signal::SIGKILL] {
        if let Some(group) = group {
            let _ = killpg(group, signal);
        }
        if tokio::time::timeout(HANGUP_GRACE, child.wait()).await.is_ok() {
            return;
        }
    }
}

/// Carries input until the agent goes away. Input that merely ends is not that.
async fn input(mut reader: OwnedReadHalf, stdin: Option<ChildStdin>, group: Option<Pid>) {
    let mut stdin = stdin;
    while let Ok(Some(frame)) = frame::read::<ExecFrame, _>(&mut reader, Limit::STREAM).await {
        match frame {
            ExecFrame::Stdin(bytes) => {
                let taken = match &mut stdin {
                    Some(pipe) => pipe.write_all(&bytes).await,
                    None => Ok(()),
                };
                if taken.is_err() {
                    // A program that ended or closed its input takes no more.
                    stdin = None;
                }
            }
            ExecFrame::StdinEnd => stdin = None,
            ExecFrame::Signal(name) => {
                if let (Some(group), Ok(signal)) = (group, format!("SIG{name}").parse::<Signal>()) {
                    let _ = killpg(group, signal);
                }
            }
            ExecFrame::Hangup => return,
            ExecFrame::Resize(_)
            | ExecFrame::Stdout(_)
            | ExecFrame::Stderr(_)
            | ExecFrame::Exit { .. }
            | ExecFrame::Failed { .. }
            | ExecFrame::Position { .. } => {}
        }
    }
}

/// Carries output until the program has ended and closed it; returns its exit code.
async fn output(child: &mut Child, writer: &mut OwnedWriteHalf) -> Result<i32, FrameError> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    if let Some(pipe) = &out {
        // More than the container's user may have is refused; the usual size works too.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
    }
    let (mut out_bytes, mut err_bytes) = (BytesMut::new(), BytesMut::new());
    let mut code = None;
    while out.is_some() || err.is_some() {
        tokio::select! {
            more = read(&mut out, &mut out_bytes) => {
                if !more {
                    out = None;
                } else {
                    let piece = ExecFrame::Stdout(out_bytes.split().freeze());
                    frame::write(writer, &piece, Limit::STREAM).await?;
                }
            }
            more = read(&mut err, &mut err_bytes) => {
                if !more {
                    err = None;
                } else {
                    let piece = ExecFrame::Stderr(err_bytes.split().freeze());
                    frame::write(writer, &piece, Limit::STREAM).await?;
                }
            }
            status = child.wait(), if code.is_none() => {
                code = Some(code_of(status.map_err(FrameError::Io)?));
            }
            () = tokio::time::sleep(LEFT_BEHIND), if code.is_some() => break,
        }
    }
    match code {
        Some(code) => Ok(code),
        None => Ok(code_of(child.wait().await.map_err(FrameError::Io)?)),
    }
}

/// Reads more of a pipe; waits for ever on one that has ended, and says so once.
async fn read<R: AsyncRead + Unpin>(pipe: &mut Option<R>, bytes: &mut BytesMut) -> bool {
    let Some(pipe) = pipe else { return std::future::pending().await };
    bytes.reserve(2 * CHUNK);
    // A pipe that fails has nothing more to say.
    matches!(pipe.read_buf(bytes).await, Ok(1..))
}

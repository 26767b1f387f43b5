//! One stream: dials the agent, hears what it is for, and serves it to its end.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::guest::{GuestHello, StreamToken};
use tianqi_common::wire::stream::{StreamOpen, StreamRefusal, StreamReply};
use tokio::net::UnixStream;

use super::command::{Front, set_apart};
use super::terminals::Terminals;
use super::{dial, keeper, pipes};

/// How long the agent may take to say what a stream is for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the stream that `token` asked for. A failure concerns this stream alone.
pub(super) async fn serve(socket: PathBuf, token: StreamToken, terminals: Terminals) {
    let opened = tokio::time::timeout(PATIENCE, open(&socket, token)).await;
    // An agent that goes away in between has nobody left to tell.
    let Ok(Ok(Some((stream, open)))) = opened else { return };
    // The agent sees the end of the stream, which says as much as an error would.
    let _ = carry(stream, open, &terminals).await;
}

async fn open(
    socket: &PathBuf,
    token: StreamToken,
) -> Result<Option<(UnixStream, StreamOpen)>, FrameError> {
    let mut stream = UnixStream::connect(socket).await.map_err(FrameError::Io)?;
    frame::write(&mut stream, &GuestHello::Stream { token }, Limit::GUEST).await?;
    let open = frame::read(&mut stream, Limit::OPEN).await?;
    Ok(open.map(|open| (stream, open)))
}

async fn carry(
    mut stream: UnixStream,
    open: StreamOpen,
    terminals: &Terminals,
) -> Result<(), FrameError> {
    match open {
        StreamOpen::Exec(exec) => match exec.pty {
            Some(size) => keeper::serve(stream, &exec, size).await,
            None => pipes::serve(stream, &exec).await,
        },
        StreamOpen::Terminal(terminal) => terminals.serve(stream, terminal).await,
        StreamOpen::Tcp(dial) => dial::tcp(stream, &dial).await,
        StreamOpen::Udp(dial) => dial::udp(stream, &dial).await,
        StreamOpen::Sftp(_) => sftp(stream).await,
        StreamOpen::Logs(_)
        | StreamOpen::LogQuery(_)
        | StreamOpen::Pull(_)
        | StreamOpen::Check(_) => {
            let message = "this stream is not the guest's to serve".to_owned();
            refuse(&mut stream, StreamRefusal::Unsupported, message).await
        }
    }
}

/// Hands the stream to a server of its own: what a client makes it do holds up nobody else.
async fn sftp(mut stream: UnixStream) -> Result<(), FrameError> {
    frame::write(&mut stream, &StreamReply::Open, Limit::OPEN).await?;
    let socket = stream.into_std().map_err(FrameError::Io)?;
    socket.set_nonblocking(false).map_err(FrameError::Io)?;
    let output = socket.try_clone().map_err(FrameError::Io)?;
    let mut server = Command::new("/proc/self/exe");
    server.arg("sftp").stdin(std::os::fd::OwnedFd::from(socket));
    server.stdout(std::os::fd::OwnedFd::from(output));
    set_apart(&mut server, Front::Pipes);
    let mut child = tokio::process::Command::from(server).spawn().map_err(FrameError::Io)?;
    child.wait().await.map_err(FrameError::Io).map(|_| ())
}

/// Tells the agent that a stream does not open.
pub(super) async fn refuse(
    stream: &mut UnixStream,
    code: StreamRefusal,
    message: String,
) -> Result<(), FrameError> {
    frame::write(stream, &StreamReply::Refused { code, message }, Limit::OPEN).await
}

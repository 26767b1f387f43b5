//! `serve`: dials the agent and serves the streams that it asks for, without Docker in between.
//!
//! One of these runs in a container at most, started by the agent's first stream into it. It lives on
//! when the agent or the engine restarts, and with it the terminals that it keeps. Everything runs on
//! one thread; each stream is a connection of its own, so that the kernel does the flow control and a
//! stream that is stuck holds up no other.

mod backlog;
mod command;
mod daemon;
mod dial;
mod keeper;
mod pipes;
mod pty;
mod stream;
mod terminals;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::guest::{CONNECTED, GUEST_VERSION, GuestHello, RUN, SOCKET, ToGuest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::{complain, home};
use terminals::Terminals;

/// How long the agent is waited for between two attempts, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// Serves until the container ends. Returns at once, with 0 when a guest serves from here on: the
/// work goes on in a process of its own.
pub(crate) fn run() -> u8 {
    let socket = PathBuf::from(RUN).join(SOCKET);
    let lock = match daemon::lock(&PathBuf::from(RUN)) {
        Ok(Some(lock)) => lock,
        Ok(None) => return 0,
        Err(error) => return fail("this container's lock", &error),
    };
    // Tried before the process goes its own way, so that the agent hears why it cannot work.
    if let Err(error) = std::os::unix::net::UnixStream::connect(&socket) {
        return fail(&socket.display().to_string(), &error);
    }
    match daemon::detach() {
        Ok(daemon::Side::Caller) => return 0,
        Ok(daemon::Side::Daemon) => {}
        Err(error) => return fail("a process of its own", &error),
    }
    home::begin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(socket)),
        Err(_) => return 1,
    }
    drop(lock);
    0
}

fn fail(what: &str, error: &io::Error) -> u8 {
    complain(&format!("{what}: {error}"));
    1
}

/// Dials the agent again and again; it may restart at any time.
async fn serve(socket: PathBuf) {
    let terminals = Terminals::default();
    let mut wait = RETRY_FIRST;
    loop {
        if control(&socket, &terminals).await.is_ok() {
            wait = RETRY_FIRST;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MOST);
    }
}

/// Dials once and serves what is asked until the agent goes.
async fn control(socket: &PathBuf, terminals: &Terminals) -> Result<(), frame::FrameError> {
    let mut control = UnixStream::connect(socket).await.map_err(frame::FrameError::Io)?;
    let hello = GuestHello::Control { version: GUEST_VERSION };
    frame::write(&mut control, &hello, Limit::GUEST).await?;
    while let Some(asked) = frame::read(&mut control, Limit::GUEST).await? {
        let ToGuest::Stream { token } = asked;
        tokio::spawn(stream::serve(socket.clone(), token, terminals.clone()));
    }
    Ok(())
}

/// Connects to a server and carries bytes between it and standard input and output: for streams
/// that come through the engine's exec.
pub(crate) fn tcp_on_stdio(host: &str, port: u16) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail("a runtime", &error),
    };
    let carried = runtime.block_on(async {
        let mut server = dial::connect(host, port).await?;
        let mut own = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
        own.write_all(&[CONNECTED]).await?;
        own.flush().await?;
        tokio::io::copy_bidirectional(&mut own, &mut server).await
    });
    // A read of standard input that still waits is nobody's concern any more.
    runtime.shutdown_background();
    match carried {
        Ok(_) => 0,
        Err(error) => fail(&format!("{host}, port {port}"), &error),
    }
}

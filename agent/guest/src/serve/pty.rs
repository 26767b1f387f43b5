//! The near side of a pseudo-terminal, and starting a program on the far side.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, killpg};
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::tcgetpgrp;
use rustix::termios::{Winsize, tcsetwinsize};
use tianqi_common::wire::stream::PtySize;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

use super::command::{self, Front};

/// The side that a person's keys go into.
pub(super) struct Pty {
    near: AsyncFd<std::fs::File>,
}

impl Pty {
    /// Starts `program` as the leader of a session with a new terminal.
    ///
    /// # Errors
    ///
    /// The kernel gives no terminal, or the program cannot be started.
    pub(super) fn spawn(program: &mut Command, size: PtySize) -> io::Result<(Self, Child)> {
        let pair = openpty(None, None)?;
        tcsetwinsize(&pair.slave, winsize(size))?;
        let mut modes = tcgetattr(&pair.slave)?;
        // Erasing takes whole characters of UTF-8.
        modes.input_flags.insert(InputFlags::IUTF8);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
        program
            .stdin(Stdio::from(pair.slave.try_clone()?))
            .stdout(Stdio::from(pair.slave.try_clone()?))
            .stderr(Stdio::from(pair.slave));
        command::set_apart(program, Front::Terminal);
        let near = nonblocking(pair.master)?;
        let child =
            tokio::process::Command::from(std::mem::replace(program, Command::new(""))).spawn()?;
        Ok((Self { near }, child))
    }

    /// Reads what was shown; 0 when nobody holds the far side any more. Cancelling loses nothing.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.near.async_io(tokio::io::Interest::READABLE, |mut near| near.read(buffer));
        match read.await {
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(0),
            read => read,
        }
    }

    /// Types some of `bytes` and returns how many. Cancelling loses nothing.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.near.async_io(tokio::io::Interest::WRITABLE, |mut near| near.write(bytes)).await
    }

    /// Changes the size; the program in front is told when it differs.
    pub(super) fn resize(&self, size: PtySize) {
        // Fails only on a terminal that is gone.
        let _ = tcsetwinsize(self.near.get_ref(), winsize(size));
    }

    /// Signals whatever is in front.
    pub(super) fn signal(&self, signal: Signal) {
        if let Ok(front) = tcgetpgrp(self.near.get_ref()) {
            let _ = killpg(front, signal);
        }
    }
}

fn winsize(size: PtySize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

#[allow(unsafe_code, reason = "the runtime must be told that the file keeps its descriptor")]
fn nonblocking(fd: OwnedFd) -> io::Result<AsyncFd<std::fs::File>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: a file returns the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register(std::fs::File::from(fd)) }?)
}

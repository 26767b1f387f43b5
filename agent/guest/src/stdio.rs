//! Standard input and output as they were handed over: pipes, or one socket as both.
//!
//! The other side may share the socket's flags and have made it non-blocking, so a call that
//! would block waits here. The library's own handles are not used: they copy through a small
//! buffer and flush at every line break.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Reads what is there, at most `buffer`; zero is the end.
pub(crate) fn read(buffer: &mut [u8]) -> io::Result<usize> {
    let input = io::stdin();
    loop {
        match nix::unistd::read(input.as_fd(), buffer) {
            Ok(length) => return Ok(length),
            Err(error) => wait_or(error, input.as_fd(), PollFlags::POLLIN)?,
        }
    }
}

/// Writes all of `bytes`.
pub(crate) fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let output = io::stdout();
    while !bytes.is_empty() {
        match nix::unistd::write(output.as_fd(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(error) => wait_or(error, output.as_fd(), PollFlags::POLLOUT)?,
        }
    }
    Ok(())
}

/// Whether nobody can read what is written any more; half a socket that is closed does not count.
pub(crate) fn is_reader_gone() -> bool {
    let output = io::stdout();
    let mut polled = [PollFd::new(output.as_fd(), PollFlags::empty())];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(told) => told > 0,
        Err(_) => false,
    }
}

fn wait_or(error: Errno, fd: BorrowedFd<'_>, ready: PollFlags) -> io::Result<()> {
    let waited = if error == Errno::EAGAIN {
        poll(&mut [PollFd::new(fd, ready)], PollTimeout::NONE).map(|_| ())
    } else {
        Err(error)
    };
    match waited {
        Ok(()) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

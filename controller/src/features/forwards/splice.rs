//! Carries a TCP connection from socket to socket inside the kernel.
//!
//! Bytes go from one socket into a pipe and from the pipe into the other socket by `splice`, as
//! references to the kernel's own pages: this process never sees them. A pipe costs two descriptors, so
//! a direction gets one only when it turns out to carry much; short exchanges are copied.
//!
//! A direction holds at most one pipe of what the other side has not taken yet, and reads no further
//! until it is empty: a slow reader slows its sender down and costs no memory.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::pipe::{PipeFlags, SpliceFlags};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::live::{Meter, Tally, Way};

/// Bytes that a direction copies before it gets a pipe.
const COPIED_FIRST: u64 = 128 << 10;
/// Bytes of one copy.
const COPY: usize = 16 << 10;
/// Bytes that a pipe is asked to hold. The kernel counts in pages, and gives less to an account that
/// has many pipes.
const PIPE: usize = 256 << 10;
/// Bytes asked for by one splice; the pipe's own size bounds what comes.
const SPLICE: usize = 1 << 20;
/// Empty pipes that are kept for the next connection; more are closed.
const SPARE: usize = 64;

/// Pipes that are empty and free.
#[derive(Debug, Default)]
pub(super) struct Pipes(Mutex<Vec<Pipe>>);

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// One connection between two sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carriage<'a> {
    /// Spare pipes.
    pub pipes: &'a Pipes,
    /// The forward's numbers.
    pub meter: &'a Meter,
    /// The connection's own.
    pub tally: &'a Tally,
}

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(pipe);
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A pipe that stays small is slower and works all the same.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
        Ok(Pipe { read, write })
    }

    /// Takes back a pipe that is empty.
    fn give(&self, pipe: Pipe) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push(pipe);
        }
    }
}

impl Carriage<'_> {
    /// Carries both ways until both have ended. An end of one direction is passed on and leaves the
    /// other open.
    ///
    /// # Errors
    ///
    /// Whatever ended a direction before its time; the connection is over then.
    pub(super) async fn carry(self, client: &TcpStream, target: &TcpStream) -> io::Result<()> {
        let inwards = self.one_way(client, target, Way::In);
        let outwards = self.one_way(target, client, Way::Out);
        tokio::try_join!(inwards, outwards).map(|_| ())
    }

    async fn one_way(self, from: &TcpStream, to: &TcpStream, way: Way) -> io::Result<()> {
        if !self.copy(from, to, way, COPIED_FIRST).await? && !self.splice(from, to, way).await? {
            self.copy(from, to, way, u64::MAX).await?;
        }
        match SockRef::from(to).shutdown(Shutdown::Write) {
            // Who has gone already needs no goodbye.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            ended => ended,
        }
    }

    /// Copies about `most` bytes. Returns whether the sender has ended.
    async fn copy(self, from: &TcpStream, to: &TcpStream, way: Way, most: u64) -> io::Result<bool> {
        let mut moved = 0_u64;
        while moved < most {
            from.readable().await?;
            let (came, rest) = match hop(from, to) {
                Ok(hop) => hop,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            if came == 0 {
                return Ok(true);
            }
            write_all(to, &rest).await?;
            self.tally.count(self.meter, way, came);
            moved = moved.saturating_add(u64::try_from(came).unwrap_or(u64::MAX));
        }
        Ok(false)
    }

    /// Splices until the sender has ended. Returns false, with nothing lost, when these sockets cannot
    /// be spliced or no pipe is to be had.
    async fn splice(self, from: &TcpStream, to: &TcpStream, way: Way) -> io::Result<bool> {
        let Ok(pipe) = self.pipes.take() else { return Ok(false) };
        loop {
            let filled = from.async_io(Interest::READABLE, || fill(from, &pipe)).await;
            let mut held = match filled {
                Ok(0) => break,
                Ok(held) => held,
                Err(error) if cannot_splice(&error) => return Ok(false),
                Err(error) => return Err(error),
            };
            self.tally.count(self.meter, way, held);
            while held > 0 {
                let sent = to.async_io(Interest::WRITABLE, || drain(&pipe, to, held)).await?;
                if sent == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                held = held.saturating_sub(sent);
            }
        }
        self.pipes.give(pipe);
        Ok(true)
    }
}

/// Reads some and writes what the other side takes at once. Returns how much came, and what of it is
/// still to be written. The buffer is on the stack, so that a connection that rests holds none.
fn hop(from: &TcpStream, to: &TcpStream) -> io::Result<(usize, Vec<u8>)> {
    let mut buffer = [0; COPY];
    let came = read(from, &mut buffer)?;
    let bytes = buffer.get(..came).unwrap_or_default();
    let sent = match to.try_write(bytes) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    Ok((came, bytes.get(sent..).unwrap_or_default().to_vec()))
}

/// Reads what is there. A read that leaves room in the buffer has emptied the socket, so the runtime is
/// told to wait for more: that saves the read that would find nothing. An end is not lost by it, the
/// runtime keeps that apart.
fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (room, mut came) = (buffer.len(), None);
    let tried = from.try_io(Interest::READABLE, || {
        let length = rustix::io::read(from, &mut *buffer)?;
        came = Some(length);
        let has_emptied = (1..room).contains(&length);
        if has_emptied { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(length) }
    });
    came.map_or(tried, Ok)
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the kernel, or what confines the process, has no splice for these sockets.
fn cannot_splice(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
    )
}

/// Fills an empty pipe; `WouldBlock` means that the socket has nothing.
fn fill(from: &TcpStream, pipe: &Pipe) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(rustix::pipe::splice(from, None, &pipe.write, None, SPLICE, flags)?)
}

/// Empties a pipe; `WouldBlock` means that the socket takes nothing.
fn drain(pipe: &Pipe, to: &TcpStream, held: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(rustix::pipe::splice(&pipe.read, None, to, None, held, flags)?)
}

//! A client that speaks SFTP by hand.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

const GUEST: &str = env!("CARGO_BIN_EXE_tianqi-guest");

/// A client at the other end of one socket, which the guest has as both its input and output.
pub struct Client {
    pub socket: UnixStream,
    guest: Child,
    pub home: TempDir,
    next: u32,
}

#[derive(Debug)]
pub struct Reply {
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Reply {
    /// The code of a status; 1000 and the kind for another reply.
    pub fn code(&self) -> u32 {
        if self.kind == 101 { word(&self.body) } else { 1000 + u32::from(self.kind) }
    }

    pub fn handle(&self) -> &[u8] {
        assert_eq!(self.kind, 102, "{self:?}");
        &self.body[4..]
    }

    /// The name in a reply with one.
    pub fn name(&self) -> PathBuf {
        assert_eq!(self.kind, 104, "{self:?}");
        let length = word(&self.body[4..]) as usize;
        PathBuf::from(String::from_utf8(self.body[8..8 + length].to_vec()).unwrap())
    }
}

/// Returns the number at the beginning.
pub fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// Puts fields together: numbers by themselves, bytes after their length.
#[macro_export]
macro_rules! fields {
    ($($field:expr),* $(,)?) => {{
        let mut bytes = Vec::<u8>::new();
        $($crate::client::Field::put(&$field, &mut bytes);)*
        bytes
    }};
}

/// Something that a request is made of.
pub trait Field {
    fn put(&self, bytes: &mut Vec<u8>);
}

impl Field for u32 {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_be_bytes());
    }
}

impl Field for u64 {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_be_bytes());
    }
}

impl Field for &[u8] {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&u32::try_from(self.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(self);
    }
}

impl Field for &str {
    fn put(&self, bytes: &mut Vec<u8>) {
        self.as_bytes().put(bytes);
    }
}

impl Client {
    pub fn new() -> Self {
        Self::with(GUEST.as_ref(), TempDir::new().unwrap(), None)
    }

    pub fn with(program: &Path, home: TempDir, user: Option<u32>) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        // As a caller leaves it that waits for many sockets at once.
        far.set_nonblocking(true).unwrap();
        let mut command = Command::new(program);
        command.arg("sftp").current_dir("/").env("HOME", home.path());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let guest = command
            .stdin(Stdio::from(OwnedFd::from(far.try_clone().unwrap())))
            .stdout(Stdio::from(OwnedFd::from(far)))
            .spawn()
            .unwrap();
        let mut client = Self { socket, guest, home, next: 0 };
        client.send(1, &3_u32.to_be_bytes());
        assert_eq!(client.receive().0, 2);
        client
    }

    pub fn home(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = u32::try_from(body.len() + 1).unwrap().to_be_bytes().to_vec();
        packet.push(kind);
        packet.extend_from_slice(body);
        self.socket.write_all(&packet).unwrap();
    }

    pub fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        self.socket.read_exact(&mut packet).unwrap();
        (packet[0], packet[1..].to_vec())
    }

    pub fn ask(&mut self, kind: u8, body: &[u8]) -> Reply {
        self.next += 1;
        let numbered = [self.next.to_be_bytes().as_slice(), body].concat();
        self.send(kind, &numbered);
        let (kind, body) = self.receive();
        assert_eq!(word(&body), self.next);
        Reply { kind, body: body[4..].to_vec() }
    }

    pub fn open(&mut self, path: &str, flags: u32) -> Reply {
        self.ask(3, &fields!(path, flags, 0_u32))
    }

    pub fn extended(&mut self, name: &str, body: &[u8]) -> Reply {
        self.ask(200, &[fields!(name).as_slice(), body].concat())
    }

    pub fn leave(mut self) {
        self.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(self.guest.wait().unwrap().code(), Some(0));
    }
}

/// How long a guest may take that has nobody to work for.
const PATIENCE: Duration = Duration::from_secs(20);

impl Client {
    /// Goes away without a word; returns how the guest ended, or nothing when it had to be killed.
    pub fn vanish(mut self) -> Option<i32> {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.guest.id()).unwrap());
        let (ended, waiting) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        });
        let status = self.guest.wait().unwrap();
        drop(ended);
        watch.join().unwrap();
        status.code()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.guest.kill();
        let _ = self.guest.wait();
    }
}

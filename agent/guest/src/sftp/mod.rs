//! `sftp`: an SFTP server (version 3) on standard input and output.
//!
//! It speaks as OpenSSH's server does, with its extensions. One client, one request at a time,
//! answered in order; replies to requests that came together leave together. It does what its
//! user may do: the kernel draws the borders, nothing here does.
//!
//! The protocol is spoken by this folder and not by `russh-sftp`, whose names are `String`s:
//! files with names in other encodings could not be reached through it.

mod accounts;
mod attributes;
mod extended;
mod files;
mod handles;
mod listing;
mod packet;
mod tree;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use tianqi_common::clock::{Clock, SystemClock};

use self::accounts::Accounts;
use self::handles::Handles;
use self::packet::{Fields, MAX_PACKET, Refused, Replies, VERSION, reply, request};
use crate::{complain, home, stdio};

/// Replies are written at the latest when this many bytes wait.
const FLUSH_AT: usize = 256 * 1024;

/// Two packets fit, so that the beginning of the next one can be kept while one is read.
const INPUT_BYTES: usize = 2 * (MAX_PACKET + LENGTH_BYTES);

const LENGTH_BYTES: usize = 4;

/// Serves one client until it leaves. Returns 0 then, and 1 when it does not speak SFTP.
pub(crate) fn run() -> u8 {
    let mut server = Server::new(home::begin(), &SystemClock::new());
    match serve(&mut server) {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("sftp: {error}"));
            1
        }
    }
}

fn serve(server: &mut Server) -> io::Result<()> {
    let mut input = Input::new();
    loop {
        while let Some(packet) = input.next_packet()? {
            server.answer(packet)?;
            if server.replies.waiting().len() >= FLUSH_AT {
                server.flush()?;
            }
        }
        server.flush()?;
        if !input.fill()? {
            return Ok(());
        }
    }
}

/// Bytes that were read and not yet looked at.
#[derive(Debug)]
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { bytes: vec![0; INPUT_BYTES], start: 0, end: 0 }
    }

    /// Returns the next packet without its length, or nothing where it has not come whole.
    fn next_packet(&mut self) -> io::Result<Option<&[u8]>> {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_PACKET {
            // Where the next packet begins is not known: the client cannot be answered.
            return Err(io::Error::other(format!("a packet of {length} bytes is too long")));
        }
        let Some(packet) = rest.get(..length) else {
            return Ok(None);
        };
        self.start += LENGTH_BYTES + length;
        Ok(Some(packet))
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < MAX_PACKET {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let length = stdio::read(self.bytes.get_mut(self.end..).unwrap_or_default())?;
        self.end += length;
        Ok(length > 0)
    }
}

/// What is kept for the client.
#[derive(Debug)]
struct Server {
    handles: Handles,
    replies: Replies,
    /// Read when a name is first asked for: many sessions never ask.
    accounts: Option<Accounts>,
    home: PathBuf,
    /// When the session began, in seconds since 1970: what "recent" is measured from.
    now: i64,
    has_greeted: bool,
}

impl Server {
    fn new(home: PathBuf, clock: &dyn Clock) -> Self {
        Self {
            handles: Handles::default(),
            replies: Replies::default(),
            accounts: None,
            home,
            now: clock.now().0 / 1000,
            has_greeted: false,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        stdio::write_all(self.replies.waiting())?;
        self.replies.clear();
        Ok(())
    }

    fn accounts(&mut self) -> &Accounts {
        self.accounts.get_or_insert_with(Accounts::read)
    }

    /// Answers one packet.
    ///
    /// # Errors
    ///
    /// Where it cannot be answered, because it has no number or comes before the greeting.
    fn answer(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut fields = Fields(packet);
        let Ok(kind) = fields.u8() else {
            return Err(io::Error::other("an empty packet"));
        };
        if kind == request::INIT {
            self.has_greeted = true;
            self.greet();
            return Ok(());
        }
        let Some(id) = fields.u32().ok().filter(|_| self.has_greeted) else {
            return Err(io::Error::other("the client does not speak SFTP"));
        };
        let mark = self.replies.mark();
        if let Err(refused) = self.dispatch(kind, id, fields) {
            self.replies.refuse(mark, id, refused);
        }
        Ok(())
    }

    /// Version 3 is what everybody speaks; a client that asks for more gets it too.
    fn greet(&mut self) {
        self.replies.begin(reply::VERSION);
        self.replies.u32(VERSION);
        for (name, version) in extended::OFFERED {
            self.replies.string(name.as_bytes());
            self.replies.string(version.as_bytes());
        }
        self.replies.end();
    }

    fn dispatch(&mut self, kind: u8, id: u32, fields: Fields<'_>) -> Result<(), Refused> {
        match kind {
            request::OPEN => self.open(id, fields),
            request::CLOSE => self.close(id, fields),
            request::READ => self.read(id, fields),
            request::WRITE => self.write(id, fields),
            request::LSTAT => self.lstat(id, fields),
            request::FSTAT => self.fstat(id, fields),
            request::SETSTAT => self.setstat(id, fields),
            request::FSETSTAT => self.fsetstat(id, fields),
            request::OPENDIR => self.opendir(id, fields),
            request::READDIR => self.readdir(id, fields),
            request::REMOVE => self.remove(id, fields),
            request::MKDIR => self.mkdir(id, fields),
            request::RMDIR => self.rmdir(id, fields),
            request::REALPATH => self.realpath(id, fields),
            request::STAT => self.stat(id, fields),
            request::RENAME => self.rename(id, fields),
            request::READLINK => self.readlink(id, fields),
            request::SYMLINK => self.symlink(id, fields),
            request::EXTENDED => self.extended(id, fields),
            _ => Err(Refused::UNSUPPORTED),
        }
    }

    /// Says that a request is done.
    fn done(&mut self, id: u32) -> Result<(), Refused> {
        self.replies.status(id, packet::Code::Ok, "Success");
        Ok(())
    }

    /// Answers with one name, of which nothing else is said.
    fn one_name(&mut self, id: u32, path: &Path) -> Result<(), Refused> {
        let name = OsString::from(path).into_encoded_bytes();
        self.replies.begin_for(reply::NAME, id);
        self.replies.u32(1);
        self.replies.string(&name);
        self.replies.string(&name);
        attributes::write_none(&mut self.replies);
        self.replies.end();
        Ok(())
    }
}

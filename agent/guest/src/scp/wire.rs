//! Lines, answers and file contents between the two sides.

use std::io;
use std::path::Path;

use crate::stdio;

/// The longest line that is taken or sent, as in OpenSSH.
pub(super) const MAX_LINE: usize = 16 * 1024;

const BUFFER_BYTES: usize = 256 * 1024;

const GOOD: u8 = 0;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Why copying ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The other side is gone.
    Lost,
    /// The other side said that it ends, or was told so.
    Told,
    /// What came makes no sense.
    Protocol(&'static str),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Lost
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    has_failed: bool,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, has_failed: false }
    }

    /// Whether something was not copied.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Returns bytes that came, at most `most`, or an empty slice at the end.
    pub(super) fn chunk(&mut self, most: u64) -> Result<&[u8], Stop> {
        if self.start == self.end {
            self.start = 0;
            self.end = stdio::read(&mut self.buffer)?;
        }
        let waiting = self.end - self.start;
        let length = usize::try_from(most).unwrap_or(waiting).min(waiting);
        let from = self.start;
        self.start += length;
        Ok(self.buffer.get(from..from + length).unwrap_or_default())
    }

    /// Returns the next byte, or nothing at the end.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, Stop> {
        Ok(self.chunk(1)?.first().copied())
    }

    /// Returns the rest of a line, without its end.
    pub(super) fn line(&mut self) -> Result<Vec<u8>, Stop> {
        let mut line = Vec::new();
        loop {
            match self.byte()?.ok_or(Stop::Lost)? {
                b'\n' => return Ok(line),
                _ if line.len() >= MAX_LINE => return Err(Stop::Protocol("line too long")),
                byte => line.push(byte),
            }
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        Ok(stdio::write_all(bytes)?)
    }

    /// Says that it may go on.
    pub(super) fn accept(&mut self) -> Result<(), Stop> {
        self.write(&[GOOD])
    }

    /// Says that something was not copied, and remembers it.
    pub(super) fn refuse(&mut self, message: &str) -> Result<(), Stop> {
        self.has_failed = true;
        // A line break in a file's name would end the message before its end.
        let message: String =
            message.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        let mut line = vec![WARNING];
        line.extend_from_slice(format!("scp: {message}\n").as_bytes());
        self.write(&line)
    }

    pub(super) fn refuse_path(&mut self, path: &Path, error: &io::Error) -> Result<(), Stop> {
        let why = match error.raw_os_error() {
            Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
            None => error.to_string(),
        };
        self.refuse(&format!("{}: {why}", path.display()))
    }

    /// Waits for the other side's answer; false when it refused and goes on with the next.
    pub(super) fn is_accepted(&mut self) -> Result<bool, Stop> {
        match self.byte()?.ok_or(Stop::Lost)? {
            GOOD => Ok(true),
            FATAL => {
                self.line()?;
                Err(Stop::Told)
            }
            // Another byte is the first one of a message, from a program that is not scp.
            _ => {
                self.line()?;
                self.has_failed = true;
                Ok(false)
            }
        }
    }

    /// Takes a message of the side that sends; its mark was read already.
    pub(super) fn take_message(&mut self, mark: u8) -> Result<(), Stop> {
        self.line()?;
        self.has_failed = true;
        if mark == FATAL { Err(Stop::Told) } else { Ok(()) }
    }

    pub(super) fn is_message(byte: u8) -> bool {
        matches!(byte, WARNING | FATAL)
    }
}

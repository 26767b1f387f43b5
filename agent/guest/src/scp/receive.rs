//! `scp -t`: files come from the client.

use std::ffi::OsStr;
use std::fs;
use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::stat::{fchmod, fchmodat, futimens, umask, utimensat};
use nix::sys::time::TimeSpec;

use super::Options;
use super::wire::{Stop, Wire};

/// What the owner may do with a directory while it is filled, and with a file while it is written.
const FILLING: u32 = 0o700;
const WRITING: u32 = 0o200;

pub(super) fn receive(wire: &mut Wire, options: Options, target: &Path) -> Result<(), Stop> {
    // Modes are kept as they are with `-p`, and lose what the mask takes without it.
    let mask = umask(Mode::empty());
    let mask = if options.keeps_times {
        0
    } else {
        umask(mask);
        mask.bits()
    };
    if options.wants_directory && !target.is_dir() {
        return wire.refuse_path(target, &Errno::ENOTDIR.into());
    }
    wire.accept()?;
    let root =
        Level { path: target.to_owned(), is_directory: target.is_dir(), mode: None, times: None };
    Receiver { wire, options, mask, levels: vec![root], times: None }.run()
}

/// Where what comes is put. The first level is the path that the client named.
#[derive(Debug)]
struct Level {
    path: PathBuf,
    is_directory: bool,
    /// Set when the directory is complete: before, it may forbid writing in it.
    mode: Option<u32>,
    times: Option<Times>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    modified: TimeSpec,
    accessed: TimeSpec,
}

struct Receiver<'a> {
    wire: &'a mut Wire,
    options: Options,
    mask: u32,
    /// At least one; as many as a path has parts, since a longer one is refused by the kernel.
    levels: Vec<Level>,
    /// Times for what comes next.
    times: Option<Times>,
}

impl Receiver<'_> {
    fn run(mut self) -> Result<(), Stop> {
        while let Some(first) = self.wire.byte()? {
            if Wire::is_message(first) {
                self.wire.take_message(first)?;
                continue;
            }
            let line = match first {
                b'C' | b'D' | b'E' | b'T' => self.wire.line()?,
                _ => return Err(Stop::Protocol("expected control record")),
            };
            match first {
                b'T' => {
                    let times = parse_times(&line).ok_or(Stop::Protocol("bad times"))?;
                    self.times = Some(times);
                    self.wire.accept()?;
                }
                b'E' => self.leave()?,
                b'D' => self.enter(&Record::parse(&line)?)?,
                _ => self.receive_file(&Record::parse(&line)?)?,
            }
        }
        if self.levels.len() > 1 { Err(Stop::Lost) } else { Ok(()) }
    }

    fn path_of(&self, name: &[u8]) -> PathBuf {
        match self.levels.last() {
            Some(level) if level.is_directory => level.path.join(OsStr::from_bytes(name)),
            Some(level) => level.path.clone(),
            None => PathBuf::from(OsStr::from_bytes(name)),
        }
    }

    fn enter(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        if !self.options.is_recursive {
            return Err(Stop::Protocol("received directory without -r"));
        }
        let times = self.times.take();
        let path = self.path_of(record.name);
        let mode = match fs::metadata(&path) {
            Ok(there) if there.is_dir() => self.options.keeps_times.then_some(record.mode),
            Ok(_) => return self.wire.refuse_path(&path, &Errno::ENOTDIR.into()),
            Err(_) => {
                let filling = Mode::from_bits_truncate(record.mode | FILLING);
                if let Err(error) = nix::unistd::mkdir(&path, filling) {
                    return self.wire.refuse_path(&path, &error.into());
                }
                Some(record.mode & !self.mask)
            }
        };
        self.levels.push(Level { path, is_directory: true, mode, times });
        self.wire.accept()
    }

    fn leave(&mut self) -> Result<(), Stop> {
        if self.levels.len() < 2 {
            return Err(Stop::Protocol("unexpected end of directory"));
        }
        let Some(level) = self.levels.pop() else {
            return Err(Stop::Protocol("unexpected end of directory"));
        };
        match level.finish() {
            Ok(()) => self.wire.accept(),
            Err(error) => self.wire.refuse_path(&level.path, &error.into()),
        }
    }

    fn receive_file(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        let times = self.times.take();
        let path = self.path_of(record.name);
        let existed = path.exists();
        let mut file = match open(&path, record.mode | WRITING) {
            Ok(file) => file,
            Err(error) => return self.wire.refuse_path(&path, &error),
        };
        self.wire.accept()?;
        let written = self.receive_content(&mut file, record.size)?;
        let done = written.and_then(|()| self.finish(&file, record, existed, times));
        // What the sending side says about its reading comes before our own answer.
        self.wire.is_accepted()?;
        match done {
            Ok(()) => self.wire.accept(),
            Err(error) => self.wire.refuse_path(&path, &error),
        }
    }

    /// Takes `size` bytes from the wire whatever happens to the file, so that the next line is found.
    fn receive_content(&mut self, file: &mut File, size: u64) -> Result<io::Result<()>, Stop> {
        let mut result = Ok(());
        let mut left = size;
        while left > 0 {
            let chunk = self.wire.chunk(left)?;
            if chunk.is_empty() {
                return Err(Stop::Lost);
            }
            if result.is_ok() {
                result = file.write_all(chunk);
            }
            left -= chunk.len() as u64;
        }
        Ok(result)
    }

    fn finish(
        &self,
        file: &File,
        record: &Record<'_>,
        existed: bool,
        times: Option<Times>,
    ) -> io::Result<()> {
        if !file.metadata()?.is_file() {
            return Ok(());
        }
        // An older, longer file keeps its end until here.
        file.set_len(record.size)?;
        // Without `-p` a file that was there keeps its mode.
        let sets_mode = existed == self.options.keeps_times;
        if sets_mode || record.mode & WRITING == 0 {
            fchmod(file, Mode::from_bits_truncate(record.mode & !self.mask))?;
        }
        if let Some(times) = times {
            futimens(file, &times.accessed, &times.modified)?;
        }
        Ok(())
    }
}

impl Level {
    fn finish(&self) -> Result<(), Errno> {
        if let Some(times) = self.times {
            let follow = UtimensatFlags::FollowSymlink;
            utimensat(AT_FDCWD, &self.path, &times.accessed, &times.modified, follow)?;
        }
        if let Some(mode) = self.mode {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(AT_FDCWD, &self.path, mode, FchmodatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

/// Opens for writing, without waiting for somebody to read from a named pipe.
fn open(path: &Path, mode: u32) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    // The end is cut after writing, as scp does: equal content leaves the file readable all along.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .custom_flags(flags)
        .open(path)
}

/// A line that announces a file or a directory: `0644 123 name`.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    mode: u32,
    size: u64,
    name: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Stop> {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let mode = parts
            .next()
            .filter(|digits| digits.len() == 4)
            .and_then(|digits| u32::from_str_radix(unsigned(digits)?, 8).ok())
            .ok_or(Stop::Protocol("bad mode"))?;
        let size = parts
            .next()
            .and_then(|digits| unsigned(digits)?.parse().ok())
            .ok_or(Stop::Protocol("size not delimited"))?;
        let name = parts.next().unwrap_or_default();
        let leads_elsewhere = matches!(name, b"" | b"." | b"..");
        if leads_elsewhere || name.contains(&b'/') || name.contains(&0) {
            return Err(Stop::Protocol("unexpected filename"));
        }
        Ok(Self { mode, size, name })
    }
}

/// Returns digits as text: what a number could begin with otherwise, a sign, is no digit.
fn unsigned(digits: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)
}

/// Takes `MODIFIED MICROSECONDS ACCESSED MICROSECONDS`.
fn parse_times(line: &[u8]) -> Option<Times> {
    let mut numbers =
        line.split(|byte| *byte == b' ').map(|digits| unsigned(digits)?.parse::<i64>().ok());
    let mut next = || numbers.next().flatten();
    let mut time = || {
        let (seconds, micros) = (next()?, next()?);
        (micros < 1_000_000).then(|| TimeSpec::new(seconds, micros * 1000))
    };
    let (modified, accessed) = (time()?, time()?);
    numbers.next().is_none().then_some(Times { modified, accessed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_takes_names_with_spaces_and_no_names_that_lead_elsewhere() {
        let record = Record::parse(b"0644 18446744073709551615 a b").unwrap();
        assert_eq!(record, Record { mode: 0o644, size: u64::MAX, name: b"a b" });

        for line in [
            "0644 1 ..",
            "0644 1 .",
            "0644 1 ",
            "0644 1",
            "0644 1 a/b",
            "0644 1 /etc",
            "0644 1 a\0b",
            "644 1 a",
            "0888 1 a",
            "+644 1 a",
            "0644 -1 a",
            "0644 +1 a",
            "0644  a",
            "0644 18446744073709551616 a",
            "",
        ] {
            assert!(Record::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn parse_times_takes_four_numbers() {
        let times = parse_times(b"1700000000 5 1600000000 0").unwrap();

        assert_eq!(times.modified, TimeSpec::new(1_700_000_000, 5000));
        assert_eq!(times.accessed, TimeSpec::new(1_600_000_000, 0));
        for line in
            ["", "1 0 1", "1 0 1 0 1", "1 1000000 1 0", "-1 0 1 0", "99999999999999999999 0 1 0"]
        {
            assert_eq!(parse_times(line.as_bytes()), None, "{line}");
        }
    }
}

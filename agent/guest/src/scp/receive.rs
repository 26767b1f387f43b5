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

use super::Options;
use super::record::{Record, Times};
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
                    let times = Times::parse(&line).ok_or(Stop::Protocol("bad times"))?;
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

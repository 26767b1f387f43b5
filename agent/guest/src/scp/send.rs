//! `scp -f`: files go to the client.

use std::fs::{File, Metadata, OpenOptions, read_dir};
use std::io;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Options;
use super::wire::{Stop, Wire};

const CHUNK_BYTES: usize = 256 * 1024;

/// Directories within directories; a path of the longest length cannot hold more.
const MAX_DEPTH: usize = 2048;

pub(super) fn send(wire: &mut Wire, options: Options, paths: &[PathBuf]) -> Result<(), Stop> {
    wire.is_accepted()?;
    let mut sender = Sender { wire, options, above: Vec::new(), buffer: vec![0; CHUNK_BYTES] };
    for path in paths {
        sender.send_any(path)?;
    }
    Ok(())
}

struct Sender<'a> {
    wire: &'a mut Wire,
    options: Options,
    /// Device and number of the directories that are being sent, to notice a link that leads back.
    above: Vec<(u64, u64)>,
    buffer: Vec<u8>,
}

impl Sender<'_> {
    fn send_any(&mut self, path: &Path) -> Result<(), Stop> {
        let (file, metadata) = match open(path) {
            Ok(opened) => opened,
            Err(error) => return self.wire.refuse_path(path, &error),
        };
        let Some(name) = last_part(path) else {
            return self.wire.refuse(&format!("{}: a name with a line break", path.display()));
        };
        if metadata.is_dir() && self.options.is_recursive {
            drop(file);
            self.send_directory(path, name, &metadata)
        } else if metadata.is_file() {
            self.send_file(path, name, file, &metadata)
        } else {
            self.wire.refuse(&format!("{}: not a regular file", path.display()))
        }
    }

    fn send_directory(&mut self, path: &Path, name: &[u8], of: &Metadata) -> Result<(), Stop> {
        let own = (of.dev(), of.ino());
        if self.above.contains(&own) || self.above.len() >= MAX_DEPTH {
            return self.wire.refuse_path(path, &Errno::ELOOP.into());
        }
        let entries = match read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.wire.refuse_path(path, &error),
        };
        if !self.announce(b'D', name, of, 0)? {
            return Ok(());
        }
        self.above.push(own);
        for entry in entries {
            match entry {
                Ok(entry) => self.send_any(&entry.path())?,
                Err(error) => self.wire.refuse_path(path, &error)?,
            }
        }
        self.above.pop();
        self.wire.write(b"E\n")?;
        self.wire.is_accepted().map(|_| ())
    }

    fn send_file(
        &mut self,
        path: &Path,
        name: &[u8],
        file: File,
        of: &Metadata,
    ) -> Result<(), Stop> {
        if !self.announce(b'C', name, of, of.len())? {
            return Ok(());
        }
        let problem = self.send_content(file, of.len())?;
        match problem {
            None => self.wire.accept()?,
            Some(error) => self.wire.refuse_path(path, &error)?,
        }
        self.wire.is_accepted().map(|_| ())
    }

    /// Sends exactly `length` bytes: zeros where the file has become shorter, and then says so.
    fn send_content(&mut self, mut file: File, length: u64) -> Result<Option<io::Error>, Stop> {
        let mut problem = None;
        let mut left = length;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let space = self.buffer.get_mut(..wanted).unwrap_or_default();
            let mut count = wanted;
            if problem.is_none() {
                match read_some(&mut file, space) {
                    Ok(0) => problem = Some(io::Error::other("the file became shorter")),
                    Ok(read) => count = read,
                    Err(error) => problem = Some(error),
                }
            }
            if problem.is_some() {
                space.fill(0);
            }
            self.wire.write(space.get(..count).unwrap_or_default())?;
            left -= count as u64;
        }
        Ok(problem)
    }

    /// Says what comes; false when the other side does not want it.
    fn announce(&mut self, kind: u8, name: &[u8], of: &Metadata, size: u64) -> Result<bool, Stop> {
        if self.options.keeps_times {
            let line = format!("T{} 0 {} 0\n", of.mtime().max(0), of.atime().max(0));
            self.wire.write(line.as_bytes())?;
            if !self.wire.is_accepted()? {
                return Ok(false);
            }
        }
        let mut line = vec![kind];
        line.extend_from_slice(format!("{:04o} {size} ", of.mode() & 0o7777).as_bytes());
        line.extend_from_slice(name);
        line.push(b'\n');
        self.wire.write(&line)?;
        self.wire.is_accepted()
    }
}

fn read_some(file: &mut File, space: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(space) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Opens without waiting: a named pipe has no end to be copied.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

/// Returns the last part of a path, as it is sent; nothing where a line cannot carry it.
fn last_part(path: &Path) -> Option<&[u8]> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let name = bytes.get(..end)?.rsplit(|byte| *byte == b'/').next()?;
    (!name.contains(&b'\n')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_part_is_what_comes_after_the_last_slash() {
        assert_eq!(last_part(Path::new("a/b/")), Some(b"b".as_slice()));
        assert_eq!(last_part(Path::new("b")), Some(b"b".as_slice()));
        assert_eq!(last_part(Path::new("/")), Some(b"".as_slice()));
        assert_eq!(last_part(Path::new("a/..")), Some(b"..".as_slice()));
        assert_eq!(last_part(Path::new("a\nb")), None);
    }
}

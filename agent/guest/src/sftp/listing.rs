//! The content of a directory, name by name and as `ls -l` shows it.

use std::fs::{Metadata, ReadDir, read_dir, symlink_metadata};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Local};

use super::accounts::Accounts;
use super::attributes::seconds;
use super::packet::Refused;

/// Names in one reply, as OpenSSH sends them.
const BATCH: usize = 100;

/// Older files are shown with their year instead of the time of day, as `ls` does: half a year.
const RECENT_SECONDS: i64 = 365 * 24 * 3600 / 2;

/// A directory that is being read.
#[derive(Debug)]
pub(super) struct Listing {
    path: PathBuf,
    entries: ReadDir,
    has_told_dots: bool,
}

impl Listing {
    pub(super) fn open(path: &Path) -> Result<Self, Refused> {
        Ok(Self { path: path.to_owned(), entries: read_dir(path)?, has_told_dots: false })
    }

    /// Returns the next names.
    ///
    /// # Errors
    ///
    /// [`Refused::EOF`] after the last one.
    pub(super) fn next_names(&mut self) -> Result<Vec<(Vec<u8>, Metadata)>, Refused> {
        let mut names = Vec::with_capacity(BATCH);
        if !self.has_told_dots {
            self.has_told_dots = true;
            for dots in [".", ".."] {
                if let Ok(metadata) = symlink_metadata(self.path.join(dots)) {
                    names.push((dots.as_bytes().to_vec(), metadata));
                }
            }
        }
        while names.len() < BATCH {
            match self.entries.next() {
                // A file that went away since is left out.
                Some(Ok(entry)) => {
                    if let Ok(metadata) = entry.metadata() {
                        names.push((entry.file_name().into_vec(), metadata));
                    }
                }
                Some(Err(error)) if names.is_empty() => return Err(error.into()),
                Some(Err(_)) | None => break,
            }
        }
        if names.is_empty() { Err(Refused::EOF) } else { Ok(names) }
    }
}

/// Returns the line of `ls -l` for a file. `now` is in seconds since 1970.
pub(super) fn long_name(
    name: &[u8],
    metadata: &Metadata,
    accounts: &Accounts,
    now: i64,
) -> Vec<u8> {
    let user = name_or_number(accounts.user(metadata.uid()), metadata.uid());
    let group = name_or_number(accounts.group(metadata.gid()), metadata.gid());
    let mut line = format!(
        "{} {:3} {user:<8} {group:<8} {:8} {} ",
        mode_letters(metadata.mode()),
        metadata.nlink(),
        metadata.size(),
        time_of(metadata.mtime(), now),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

fn name_or_number(name: Option<&[u8]>, number: u32) -> String {
    name.map_or_else(|| number.to_string(), |name| String::from_utf8_lossy(name).into_owned())
}

fn time_of(modified: i64, now: i64) -> String {
    let modified = i64::from(seconds(modified));
    let is_recent = (now - RECENT_SECONDS..=now).contains(&modified);
    let format = if is_recent { "%b %e %H:%M" } else { "%b %e  %Y" };
    DateTime::from_timestamp(modified, 0)
        .map(|time| time.with_timezone(&Local).format(format).to_string())
        .unwrap_or_default()
}

/// Returns a mode in the letters of `ls -l`.
fn mode_letters(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let bit = |mask: u32, letter: char| if mode & mask != 0 { letter } else { '-' };
    let last = |execute: u32, special: u32, both: char, only: char| {
        if mode & special == 0 {
            bit(execute, 'x')
        } else if mode & execute == 0 {
            only
        } else {
            both
        }
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        last(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        last(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        last(0o001, 0o1000, 't', 'T'),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_letters_are_those_of_ls() {
        assert_eq!(mode_letters(0o100_644), "-rw-r--r--");
        assert_eq!(mode_letters(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_letters(0o104_755), "-rwsr-xr-x");
        assert_eq!(mode_letters(0o102_644), "-rw-r-Sr--");
        assert_eq!(mode_letters(0o120_777), "lrwxrwxrwx");
        assert_eq!(mode_letters(0o010_600), "prw-------");
    }

    #[test]
    fn time_of_tells_the_year_when_it_is_not_recent() {
        let now = 1_790_000_000;

        assert!(time_of(now - 60, now).contains(':'));
        assert!(time_of(now - 2 * RECENT_SECONDS, now).ends_with("2025"));
        assert!(time_of(now + 86_400, now).ends_with("2026"));
        assert!(time_of(i64::MAX, now).ends_with("2106"));
        assert!(time_of(i64::MIN, now).ends_with(['0', '9']));
    }
}

//! Names of users and groups, from the container's own files.
//!
//! A static program has no name service; `/etc/passwd` and `/etc/group` are read directly.
//! They belong to the image, so nothing about them is taken for granted.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The most that is read of one file.
const MAX_BYTES: u64 = 1024 * 1024;

/// Longer names are left out; `useradd` stops at 32.
const MAX_NAME: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: HashMap<u32, Vec<u8>>,
    groups: HashMap<u32, Vec<u8>>,
    homes: HashMap<Vec<u8>, PathBuf>,
}

impl Accounts {
    pub(super) fn read() -> Self {
        Self::parse(&content(Path::new("/etc/passwd")), &content(Path::new("/etc/group")))
    }

    /// Takes lines as passwd(5) and group(5) have them, and skips all others.
    fn parse(passwd: &[u8], group: &[u8]) -> Self {
        let mut accounts = Self::default();
        for (name, id, rest) in passwd.split(|byte| *byte == b'\n').filter_map(entry) {
            // What follows the number: group, description, home, shell.
            if let Some(home) = rest.split(|byte| *byte == b':').nth(2) {
                let home = PathBuf::from(OsStr::from_bytes(home));
                accounts.homes.entry(name.to_vec()).or_insert(home);
            }
            accounts.users.entry(id).or_insert_with(|| name.to_vec());
        }
        for (name, id, _) in group.split(|byte| *byte == b'\n').filter_map(entry) {
            accounts.groups.entry(id).or_insert_with(|| name.to_vec());
        }
        accounts
    }

    pub(super) fn user(&self, id: u32) -> Option<&[u8]> {
        self.users.get(&id).map(Vec::as_slice)
    }

    pub(super) fn group(&self, id: u32) -> Option<&[u8]> {
        self.groups.get(&id).map(Vec::as_slice)
    }

    pub(super) fn home(&self, name: &[u8]) -> Option<&Path> {
        self.homes.get(name).map(PathBuf::as_path)
    }
}

/// Splits `name:password:number:rest`.
fn entry(line: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b':');
    let name = parts.next().filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
    let id = std::str::from_utf8(parts.nth(1)?).ok()?.parse().ok()?;
    Some((name, id, parts.next().unwrap_or_default()))
}

/// Returns the beginning of a regular file, or nothing.
fn content(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    // Opening a named pipe would wait for somebody to write to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        // What could be read up to an error is as good as a shorter file.
        let _ = file.take(MAX_BYTES).read_to_end(&mut content);
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_the_first_name_of_a_number_and_skips_what_it_cannot_read() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/r:\n# none\n:x:5:5::/:\n\
            bad:x:-1:0::/:\nann:x:1000:1000:A,B:/home/ann:/bin/sh\nshort:x:7";

        let accounts = Accounts::parse(passwd, b"root:x:0:\nusers:x:100:ann,bob\n::\n");

        assert_eq!(accounts.user(0), Some(b"root".as_slice()));
        assert_eq!(accounts.user(1000), Some(b"ann".as_slice()));
        assert_eq!(accounts.user(5), None);
        assert_eq!(accounts.user(7), Some(b"short".as_slice()));
        assert_eq!(accounts.group(100), Some(b"users".as_slice()));
        assert_eq!(accounts.home(b"ann"), Some(Path::new("/home/ann")));
        assert_eq!(accounts.home(b"short"), None);
    }
}

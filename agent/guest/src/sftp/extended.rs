//! Requests that OpenSSH added.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, Statvfs, fstatvfs, statvfs};

use super::Server;
use super::handles::MAX_HANDLES;
use super::packet::{Code, Fields, MAX_DATA, MAX_PACKET, Refused, reply};
use super::tree::real_path;

/// What is offered, with the versions that OpenSSH's `PROTOCOL` file gives them.
pub(super) const OFFERED: [(&str, &str); 11] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

/// More numbers than a listing has are not looked up in one request.
const MAX_IDS: usize = 4096 * 4;

const STATVFS_READ_ONLY: u64 = 1;
const STATVFS_NO_SETUID: u64 = 2;

const NO_SUCH_USER: Refused = Refused::new(Code::NoSuchFile, "No such user");

impl Server {
    pub(super) fn extended(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        match fields.bytes()? {
            b"posix-rename@openssh.com" => self.posix_rename(id, fields),
            b"statvfs@openssh.com" => {
                let found = statvfs(fields.path()?)?;
                self.give_file_system(id, &found)
            }
            b"fstatvfs@openssh.com" => {
                let found = fstatvfs(self.handles.file(fields.bytes()?)?)?;
                self.give_file_system(id, &found)
            }
            b"hardlink@openssh.com" => self.hardlink(id, fields),
            b"fsync@openssh.com" => self.fsync(id, fields),
            b"lsetstat@openssh.com" => self.lsetstat(id, fields),
            b"limits@openssh.com" => self.limits(id),
            b"expand-path@openssh.com" => self.expand_path(id, fields),
            b"copy-data" => self.copy_data(id, fields),
            b"home-directory" => self.home_directory(id, fields),
            b"users-groups-by-id@openssh.com" => self.users_groups(id, fields),
            _ => Err(Refused::UNSUPPORTED),
        }
    }

    #[allow(
        clippy::useless_conversion,
        reason = "the kernel's words are narrower on other machines"
    )]
    fn give_file_system(&mut self, id: u32, of: &Statvfs) -> Result<(), Refused> {
        let mut flags = 0;
        if of.flags().contains(FsFlags::ST_RDONLY) {
            flags |= STATVFS_READ_ONLY;
        }
        if of.flags().contains(FsFlags::ST_NOSUID) {
            flags |= STATVFS_NO_SETUID;
        }
        self.replies.begin_for(reply::EXTENDED, id);
        for word in [
            of.block_size().into(),
            of.fragment_size().into(),
            of.blocks().into(),
            of.blocks_free().into(),
            of.blocks_available().into(),
            of.files().into(),
            of.files_free().into(),
            of.files_available().into(),
            of.filesystem_id().into(),
            flags,
            of.name_max().into(),
        ] {
            self.replies.u64(word);
        }
        self.replies.end();
        Ok(())
    }

    fn limits(&mut self, id: u32) -> Result<(), Refused> {
        self.replies.begin_for(reply::EXTENDED, id);
        self.replies.u64(MAX_PACKET as u64);
        self.replies.u64(u64::from(MAX_DATA));
        self.replies.u64(u64::from(MAX_DATA));
        self.replies.u64(MAX_HANDLES as u64);
        self.replies.end();
        Ok(())
    }

    /// Replaces `~` and `~NAME` at the beginning, as a shell does.
    fn expand_path(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = fields.bytes()?;
        let expanded = match path.strip_prefix(b"~") {
            Some(rest) => {
                let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
                let (name, below) = rest.split_at(end);
                let below = below.strip_prefix(b"/").unwrap_or(below);
                self.home_of(name)?.join(OsStr::from_bytes(below))
            }
            None => PathBuf::from(OsStr::from_bytes(path)),
        };
        let path = real_path(&expanded)?;
        self.one_name(id, &path)
    }

    fn home_directory(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let home = self.home_of(fields.bytes()?)?;
        self.one_name(id, &home)
    }

    /// Returns the home of a user; nobody's is that of this session.
    fn home_of(&mut self, name: &[u8]) -> Result<PathBuf, Refused> {
        if name.is_empty() {
            return Ok(self.home.clone());
        }
        self.accounts().home(name).map(Path::to_owned).ok_or(NO_SUCH_USER)
    }

    fn users_groups(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let (users, groups) = (fields.bytes()?, fields.bytes()?);
        if users.len() > MAX_IDS || groups.len() > MAX_IDS {
            return Err(Refused::new(Code::Failure, "Too many numbers"));
        }
        let accounts = self.accounts.get_or_insert_with(super::Accounts::read);
        let replies = &mut self.replies;
        replies.begin_for(reply::EXTENDED, id);
        // A number without a name gets an empty one.
        replies.nested(|inner| {
            for user in numbers(users) {
                inner.string(accounts.user(user).unwrap_or_default());
            }
        });
        replies.nested(|inner| {
            for group in numbers(groups) {
                inner.string(accounts.group(group).unwrap_or_default());
            }
        });
        replies.end();
        Ok(())
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_be_bytes(*word))
}

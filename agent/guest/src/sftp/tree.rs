//! Requests about paths.

use std::ffi::OsStr;
use std::fs;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::Server;
use super::attributes::{Attributes, Target, write};
use super::handles::Handle;
use super::listing::{Listing, long_name};
use super::packet::{Code, Fields, Refused, reply};

/// Mode of a new directory whose client names none; the process's mask is taken from it.
const NEW_DIRECTORY_MODE: u32 = 0o777;

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

const EXISTS: Refused = Refused::new(Code::Failure, "File exists");

impl Server {
    pub(super) fn stat(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let metadata = fs::metadata(fields.path()?)?;
        self.give_attributes(id, &metadata)
    }

    pub(super) fn lstat(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let metadata = fs::symlink_metadata(fields.path()?)?;
        self.give_attributes(id, &metadata)
    }

    pub(super) fn give_attributes(&mut self, id: u32, metadata: &Metadata) -> Result<(), Refused> {
        self.replies.begin_for(reply::ATTRS, id);
        write(&mut self.replies, metadata);
        self.replies.end();
        Ok(())
    }

    pub(super) fn setstat(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = fields.path()?;
        Target::Path(path).set(&Attributes::read(&mut fields)?)?;
        self.done(id)
    }

    pub(super) fn lsetstat(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = fields.path()?;
        Target::Link(path).set(&Attributes::read(&mut fields)?)?;
        self.done(id)
    }

    pub(super) fn opendir(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = fields.path()?;
        self.handles.check_room()?;
        let listing = Handle::Directory(Box::new(Listing::open(path)?));
        let name = self.handles.add(listing);
        self.give_handle(id, name)
    }

    pub(super) fn readdir(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let names = self.handles.directory(fields.bytes()?)?.next_names()?;
        let now = self.now;
        let lines: Vec<Vec<u8>> = {
            let accounts = self.accounts();
            names.iter().map(|(name, of)| long_name(name, of, accounts, now)).collect()
        };
        self.replies.begin_for(reply::NAME, id);
        // At most a hundred, which fits.
        self.replies.u32(u32::try_from(names.len()).unwrap_or(0));
        for ((name, metadata), line) in names.iter().zip(&lines) {
            self.replies.string(name);
            self.replies.string(line);
            write(&mut self.replies, metadata);
        }
        self.replies.end();
        Ok(())
    }

    pub(super) fn remove(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        fs::remove_file(fields.path()?)?;
        self.done(id)
    }

    pub(super) fn mkdir(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = fields.path()?;
        let attributes = Attributes::read(&mut fields)?;
        nix::unistd::mkdir(path, attributes.mode_or(NEW_DIRECTORY_MODE))?;
        self.done(id)
    }

    pub(super) fn rmdir(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        fs::remove_dir(fields.path()?)?;
        self.done(id)
    }

    pub(super) fn realpath(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = real_path(fields.path()?)?;
        self.one_name(id, &path)
    }

    /// Renames as version 3 has it: what is already there stays.
    pub(super) fn rename(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let (from, to) = (fields.path()?, fields.path()?);
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // The file system cannot do both in one step.
            Err(Errno::EINVAL | Errno::ENOSYS) if fs::symlink_metadata(to).is_ok() => {
                return Err(EXISTS);
            }
            Err(Errno::EINVAL | Errno::ENOSYS) => fs::rename(from, to)?,
            other => other?,
        }
        self.done(id)
    }

    pub(super) fn posix_rename(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let (from, to) = (fields.path()?, fields.path()?);
        fs::rename(from, to)?;
        self.done(id)
    }

    pub(super) fn readlink(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let target = fs::read_link(fields.path()?)?;
        self.one_name(id, &target)
    }

    /// Makes a symbolic link. The target comes first, against the draft: OpenSSH's clients and
    /// servers have it so, and everybody follows them.
    pub(super) fn symlink(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let (target, link) = (fields.path()?, fields.path()?);
        std::os::unix::fs::symlink(target, link)?;
        self.done(id)
    }

    pub(super) fn hardlink(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let (existing, link) = (fields.path()?, fields.path()?);
        fs::hard_link(existing, link)?;
        self.done(id)
    }
}

/// Returns the path without links and dots. Its last part need not exist.
pub(super) fn real_path(path: &Path) -> io::Result<PathBuf> {
    let mut path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    for _ in 0..MAX_LINKS {
        let missing = match fs::canonicalize(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            other => return other,
        };
        let (parent, Some(name)) = parent_and_name(&path) else {
            return Err(missing);
        };
        let whole = fs::canonicalize(parent)?.join(name);
        match fs::read_link(&whole) {
            // A link to something that does not exist: that is what is meant.
            Ok(target) => path = whole.parent().unwrap_or(&whole).join(target),
            Err(_) => return Ok(whole),
        }
    }
    Err(Errno::ELOOP.into())
}

fn parent_and_name(path: &Path) -> (&Path, Option<&OsStr>) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // A path ending in `..` has no name of its own.
    let name = path.file_name().filter(|name| !name.as_bytes().is_empty());
    (parent.unwrap_or(Path::new(".")), name)
}

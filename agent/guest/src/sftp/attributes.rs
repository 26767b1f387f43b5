//! What SFTP says about a file, and what it asks to change.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, ftruncate, truncate};

use super::packet::{Fields, Refused, Replies};

const SIZE: u32 = 0x1;
const OWNER: u32 = 0x2;
const MODE: u32 = 0x4;
const TIMES: u32 = 0x8;
const EXTENDED: u32 = 0x8000_0000;

/// The part of a mode that may be set; the rest is the kind of file.
const SETTABLE_MODE: u32 = 0o7777;

/// Attributes that a client sent; what it left out is not touched.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    size: Option<u64>,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    /// Accessed and modified, in seconds since 1970.
    times: Option<(u32, u32)>,
}

impl Attributes {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let flags = fields.u32()?;
        let mut attributes = Self::default();
        if flags & SIZE != 0 {
            attributes.size = Some(fields.u64()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((fields.u32()?, fields.u32()?));
        }
        if flags & MODE != 0 {
            attributes.mode = Some(fields.u32()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((fields.u32()?, fields.u32()?));
        }
        if flags & EXTENDED != 0 {
            // Every pair takes bytes of the packet, so that a large count ends with the packet.
            for _ in 0..fields.u32()? {
                fields.bytes()?;
                fields.bytes()?;
            }
        }
        Ok(attributes)
    }

    pub(super) fn mode_or(&self, otherwise: u32) -> Mode {
        Mode::from_bits_truncate(self.mode.unwrap_or(otherwise) & SETTABLE_MODE)
    }
}

/// What attributes are set on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    Path(&'a Path),
    /// The path itself, also where it is a symbolic link.
    Link(&'a Path),
    File(&'a File),
}

impl Target<'_> {
    /// Sets everything that was sent, and returns the first error after trying all of it.
    pub(super) fn set(self, attributes: &Attributes) -> Result<(), Refused> {
        let results = [
            attributes.size.map(|size| self.set_size(size)),
            attributes.mode.map(|_| self.set_mode(attributes.mode_or(0))),
            attributes.times.map(|(accessed, modified)| self.set_times(accessed, modified)),
            attributes.owner.map(|(user, group)| self.set_owner(user, group)),
        ];
        results.into_iter().flatten().collect::<Result<(), Errno>>().map_err(Refused::from)
    }

    fn set_size(self, size: u64) -> Result<(), Errno> {
        let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
        match self {
            Self::Path(path) => truncate(path, size),
            Self::Link(_) => Err(Errno::EINVAL),
            Self::File(file) => ftruncate(file, size),
        }
    }

    fn set_mode(self, mode: Mode) -> Result<(), Errno> {
        match self {
            Self::Path(path) => fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink),
            Self::Link(path) => fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink),
            Self::File(file) => fchmod(file, mode),
        }
    }

    fn set_times(self, accessed: u32, modified: u32) -> Result<(), Errno> {
        let accessed = TimeSpec::new(i64::from(accessed), 0);
        let modified = TimeSpec::new(i64::from(modified), 0);
        let at = |path, follow| utimensat(AT_FDCWD, path, &accessed, &modified, follow);
        match self {
            Self::Path(path) => at(path, UtimensatFlags::FollowSymlink),
            Self::Link(path) => at(path, UtimensatFlags::NoFollowSymlink),
            Self::File(file) => futimens(file, &accessed, &modified),
        }
    }

    fn set_owner(self, user: u32, group: u32) -> Result<(), Errno> {
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        match self {
            Self::Path(path) => fchownat(AT_FDCWD, path, user, group, AtFlags::empty()),
            Self::Link(path) => fchownat(AT_FDCWD, path, user, group, AtFlags::AT_SYMLINK_NOFOLLOW),
            Self::File(file) => fchown(file, user, group),
        }
    }
}

/// Writes what is known of a file.
pub(super) fn write(replies: &mut Replies, metadata: &Metadata) {
    replies.u32(SIZE | OWNER | MODE | TIMES);
    replies.u64(metadata.size());
    replies.u32(metadata.uid());
    replies.u32(metadata.gid());
    replies.u32(metadata.mode());
    replies.u32(seconds(metadata.atime()));
    replies.u32(seconds(metadata.mtime()));
}

/// Writes that nothing is said.
pub(super) fn write_none(replies: &mut Replies) {
    replies.u32(0);
}

/// Returns a time as SFTP has it: times before 1970 or after 2106 do not fit.
pub(super) fn seconds(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

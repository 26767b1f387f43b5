//! Requests about open files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::Server;
use super::attributes::{Attributes, Target, write};
use super::handles::Handle;
use super::packet::{Fields, MAX_DATA, Refused, reply};
use crate::stdio;

const READ: u32 = 0x1;
const WRITE: u32 = 0x2;
const APPEND: u32 = 0x4;
const CREATE: u32 = 0x8;
const TRUNCATE: u32 = 0x10;
const EXCLUSIVE: u32 = 0x20;

/// Mode of a new file whose client names none; the process's mask is taken from it.
const NEW_FILE_MODE: u32 = 0o666;

const COPY_BYTES: usize = 256 * 1024;

impl Server {
    pub(super) fn open(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let path = fields.path()?;
        let flags = fields.u32()?;
        let attributes = Attributes::read(&mut fields)?;
        self.handles.check_room()?;
        let mode = attributes.mode_or(NEW_FILE_MODE);
        let file = File::from(nix::fcntl::open(path, open_flags(flags), mode)?);
        let name = self.handles.add(Handle::File(file));
        self.give_handle(id, name)
    }

    pub(super) fn give_handle(&mut self, id: u32, name: [u8; 4]) -> Result<(), Refused> {
        self.replies.begin_for(reply::HANDLE, id);
        self.replies.string(&name);
        self.replies.end();
        Ok(())
    }

    pub(super) fn close(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        match self.handles.remove(fields.bytes()?)? {
            // Some file systems tell only here that what was written does not fit.
            Handle::File(file) => nix::unistd::close(file)?,
            Handle::Directory(listing) => drop(listing),
        }
        self.done(id)
    }

    pub(super) fn read(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let file = self.handles.file(fields.bytes()?)?;
        let offset = fields.u64()?;
        let length = fields.u32()?.min(MAX_DATA) as usize;
        self.replies.data(id, length, |space| file.read_at(space, offset))
    }

    pub(super) fn write(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let file = self.handles.file(fields.bytes()?)?;
        let offset = fields.u64()?;
        let data = fields.bytes()?;
        // A file opened for appending takes bytes at its end, whatever the offset: so does Linux.
        file.write_all_at(data, offset)?;
        self.done(id)
    }

    pub(super) fn fstat(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let metadata = self.handles.file(fields.bytes()?)?.metadata()?;
        self.replies.begin_for(reply::ATTRS, id);
        write(&mut self.replies, &metadata);
        self.replies.end();
        Ok(())
    }

    pub(super) fn fsetstat(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let file = self.handles.file(fields.bytes()?)?;
        Target::File(file).set(&Attributes::read(&mut fields)?)?;
        self.done(id)
    }

    pub(super) fn fsync(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        self.handles.file(fields.bytes()?)?.sync_all()?;
        self.done(id)
    }

    /// `copy-data`: copies between open files here, so that the bytes need not travel.
    pub(super) fn copy_data(&mut self, id: u32, mut fields: Fields<'_>) -> Result<(), Refused> {
        let (from_name, from_offset, length) = (fields.bytes()?, fields.u64()?, fields.u64()?);
        let (to_name, to_offset) = (fields.bytes()?, fields.u64()?);
        if from_name == to_name {
            // One file may be copied within itself through two handles; the draft refuses one.
            return Err(Errno::EINVAL.into());
        }
        let (from, to) = (self.handles.file(from_name)?, self.handles.file(to_name)?);
        // Zero is everything up to the end.
        let length = if length == 0 { u64::MAX } else { length };
        copy(from, from_offset, length, to, to_offset)?;
        self.done(id)
    }
}

fn copy(
    from: &File,
    from_offset: u64,
    length: u64,
    to: &File,
    to_offset: u64,
) -> Result<(), Refused> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut copied = 0_u64;
    while copied < length {
        // A source without an end is copied for as long as somebody waits for it.
        if stdio::is_reader_gone() {
            return Err(Errno::EPIPE.into());
        }
        let wanted = usize::try_from(length - copied).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let space = buffer.get_mut(..wanted).unwrap_or_default();
        let count = from.read_at(space, from_offset.saturating_add(copied))?;
        if count == 0 {
            break;
        }
        let data = space.get(..count).unwrap_or_default();
        to.write_all_at(data, to_offset.saturating_add(copied))?;
        copied += count as u64;
    }
    Ok(())
}

fn open_flags(flags: u32) -> OFlag {
    let has = |flag: u32| flags & flag != 0;
    let access = match (has(READ), has(WRITE)) {
        (true, true) => OFlag::O_RDWR,
        (false, true) => OFlag::O_WRONLY,
        (_, false) => OFlag::O_RDONLY,
    };
    let mut opened = access | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    // A named pipe without another end would hold the whole session; files do not mind the flag.
    opened |= OFlag::O_NONBLOCK;
    opened.set(OFlag::O_APPEND, has(APPEND) && has(WRITE));
    opened.set(OFlag::O_CREAT, has(CREATE));
    opened.set(OFlag::O_TRUNC, has(TRUNCATE) && has(WRITE));
    opened.set(OFlag::O_EXCL, has(EXCLUSIVE));
    opened
}

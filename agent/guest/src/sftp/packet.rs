//! The words of SFTP version 3 (draft-ietf-secsh-filexfer-02), read and written.
//!
//! Names are bytes: a file may be named in any encoding, and a client must get back the very
//! name that it was told.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;

/// The longest packet that is taken, without its length word; OpenSSH's `SFTP_MAX_MSG_LENGTH`.
pub(super) const MAX_PACKET: usize = 256 * 1024;

/// The most bytes that one read or write carries; OpenSSH's `SFTP_MAX_READ_LENGTH`.
pub(super) const MAX_DATA: u32 = 255 * 1024;

pub(super) const VERSION: u32 = 3;

/// Numbers of requests.
pub(super) mod request {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const REALPATH: u8 = 16;
    pub(crate) const STAT: u8 = 17;
    pub(crate) const RENAME: u8 = 18;
    pub(crate) const READLINK: u8 = 19;
    pub(crate) const SYMLINK: u8 = 20;
    pub(crate) const EXTENDED: u8 = 200;
}

/// Numbers of replies.
pub(super) mod reply {
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const NAME: u8 = 104;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED: u8 = 201;
}

/// What a status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// Why a request is answered with a status instead of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) why: &'static str,
}

impl Refused {
    pub(super) const EOF: Self = Self::new(Code::Eof, "End of file");
    pub(super) const MALFORMED: Self = Self::new(Code::BadMessage, "Malformed request");
    pub(super) const UNSUPPORTED: Self = Self::new(Code::Unsupported, "Operation unsupported");

    pub(super) const fn new(code: Code, why: &'static str) -> Self {
        Self { code, why }
    }
}

impl From<Errno> for Refused {
    /// Translates as OpenSSH's server does, which is what clients are used to.
    #[allow(clippy::wildcard_enum_match_arm, reason = "every other number is a plain failure")]
    fn from(errno: Errno) -> Self {
        let code = match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::EBADF | Errno::ELOOP => Code::NoSuchFile,
            Errno::EPERM | Errno::EACCES | Errno::EFAULT => Code::PermissionDenied,
            Errno::ENAMETOOLONG | Errno::EINVAL => Code::BadMessage,
            Errno::ENOSYS => Code::Unsupported,
            _ => Code::Failure,
        };
        Self::new(code, errno.desc())
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            // The library's own errors: a name with a zero byte, or a disk that takes nothing more.
            None if error.kind() == io::ErrorKind::InvalidInput => Errno::EINVAL.into(),
            None => Self::new(Code::Failure, "Failure"),
        }
    }
}

/// What is left to read of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refused::MALFORMED)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refused> {
        self.take(1)?.first().copied().ok_or(Refused::MALFORMED)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refused> {
        let bytes = self.take(4)?.try_into().map_err(|_| Refused::MALFORMED)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refused> {
        let bytes = self.take(8)?.try_into().map_err(|_| Refused::MALFORMED)?;
        Ok(u64::from_be_bytes(bytes))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Refused> {
        let length = usize::try_from(self.u32()?).map_err(|_| Refused::MALFORMED)?;
        self.take(length)
    }

    pub(super) fn path(&mut self) -> Result<&'a Path, Refused> {
        Ok(Path::new(OsStr::from_bytes(self.bytes()?)))
    }
}

/// Replies that wait to be written, in one buffer that keeps its memory.
#[derive(Debug, Default)]
pub(super) struct Replies {
    bytes: Vec<u8>,
    used: usize,
    /// Where the reply that is being written begins.
    start: usize,
}

impl Replies {
    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    pub(super) fn begin(&mut self, kind: u8) {
        self.start = self.used;
        self.u32(0);
        self.put(&[kind]);
    }

    pub(super) fn begin_for(&mut self, kind: u8, id: u32) {
        self.begin(kind);
        self.u32(id);
    }

    pub(super) fn end(&mut self) {
        self.set_length(self.start);
    }

    pub(super) fn status(&mut self, id: u32, code: Code, why: &str) {
        self.begin_for(reply::STATUS, id);
        self.u32(code as u32);
        self.string(why.as_bytes());
        self.string(b"en");
        self.end();
    }

    /// Drops what was written of a reply, and says why it is not given.
    pub(super) fn refuse(&mut self, mark: usize, id: u32, refused: Refused) {
        self.used = mark;
        self.status(id, refused.code, refused.why);
    }

    /// Returns where the next reply begins, for [`Replies::refuse`].
    pub(super) fn mark(&self) -> usize {
        self.used
    }

    /// Answers with what `fill` puts into a space of `length` bytes; nothing is the end of the file.
    pub(super) fn data(
        &mut self,
        id: u32,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<(), Refused> {
        self.begin_for(reply::DATA, id);
        let counted = self.used;
        self.u32(0);
        let filled = fill(self.room(length))?;
        if filled == 0 {
            return Err(Refused::EOF);
        }
        self.used = self.used.saturating_add(filled.min(length));
        self.set_length(counted);
        self.end();
        Ok(())
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn string(&mut self, bytes: &[u8]) {
        let counted = self.used;
        self.u32(0);
        self.put(bytes);
        self.set_length(counted);
    }

    /// Writes a string made of what `content` writes.
    pub(super) fn nested(&mut self, content: impl FnOnce(&mut Self)) {
        let counted = self.used;
        self.u32(0);
        content(self);
        self.set_length(counted);
    }

    /// Writes at `position` how many bytes follow that word.
    fn set_length(&mut self, position: usize) {
        let after = position.saturating_add(4);
        // A reply is a few hundred KiB at most, which fits.
        let length = u32::try_from(self.used.saturating_sub(after)).unwrap_or(u32::MAX);
        if let Some(word) = self.bytes.get_mut(position..after) {
            word.copy_from_slice(&length.to_be_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.used = self.used.saturating_add(bytes.len());
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.used.saturating_add(length);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.used..end).unwrap_or_default()
    }
}

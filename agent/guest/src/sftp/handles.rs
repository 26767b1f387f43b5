//! The files and directories that a client has open.

use std::collections::HashMap;
use std::fs::File;

use super::listing::Listing;
use super::packet::{Code, Refused};

/// The most that are open at once; more are refused, and `limits@openssh.com` says so.
pub(super) const MAX_HANDLES: usize = 512;

const UNKNOWN: Refused = Refused::new(Code::Failure, "Unknown handle");

#[derive(Debug)]
pub(super) enum Handle {
    File(File),
    Directory(Box<Listing>),
}

/// Open handles by number; a number is not used again.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u32, Handle>,
    next: u32,
}

impl Handles {
    /// # Errors
    ///
    /// When too many are open. Asked before something is opened, so that nothing is created.
    pub(super) fn check_room(&self) -> Result<(), Refused> {
        if self.open.len() < MAX_HANDLES {
            Ok(())
        } else {
            Err(Refused::new(Code::Failure, "Too many open handles"))
        }
    }

    pub(super) fn add(&mut self, handle: Handle) -> [u8; 4] {
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(number, handle);
        number.to_be_bytes()
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Result<Handle, Refused> {
        self.open.remove(&number(name)?).ok_or(UNKNOWN)
    }

    pub(super) fn file(&self, name: &[u8]) -> Result<&File, Refused> {
        match self.open.get(&number(name)?) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Directory(_)) | None => Err(UNKNOWN),
        }
    }

    pub(super) fn directory(&mut self, name: &[u8]) -> Result<&mut Listing, Refused> {
        match self.open.get_mut(&number(name)?) {
            Some(Handle::Directory(listing)) => Ok(listing),
            Some(Handle::File(_)) | None => Err(UNKNOWN),
        }
    }
}

fn number(name: &[u8]) -> Result<u32, Refused> {
    name.try_into().map(u32::from_be_bytes).map_err(|_| UNKNOWN)
}

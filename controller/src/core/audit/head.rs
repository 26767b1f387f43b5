//! The end of the chain, kept outside the database, so that rows cut from its end are noticed.
//!
//! The file `<data_dir>/audit-head.json` says up to where the sealer got, in which epoch of the
//! database, and what was found wrong so far. Every write replaces it whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const NAME: &str = "audit-head.json";
/// Most incidents that are kept; when there are more, the oldest that were accepted go first.
const INCIDENTS_MAX: usize = 200;

/// What is known of the chain outside the database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The epoch of the database that the chain is in.
    pub epoch: u64,
    /// The last link.
    pub seq: i64,
    /// Its code, in hexadecimal digits.
    pub mac: String,
    /// Whether every row that was there when the chain began has its link.
    pub is_whole: bool,
    /// Whether a copy of the database is about to be put in its place.
    pub is_restoring: bool,
    /// What happened to the chain besides growing.
    pub incidents: Vec<Incident>,
}

/// Something that happened to the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Incident {
    /// When it was noticed, in milliseconds.
    pub at: i64,
    /// What.
    pub what: String,
    /// Whether an admin must look at it.
    pub is_fault: bool,
}

impl Head {
    /// Notes something.
    pub(super) fn note(&mut self, at: i64, what: String, is_fault: bool) {
        self.incidents.push(Incident { at, what, is_fault });
        while self.incidents.len() > INCIDENTS_MAX {
            let oldest = self.incidents.iter().position(|it| !it.is_fault).unwrap_or_default();
            self.incidents.remove(oldest);
        }
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// There is none.
    Absent,
    /// It is there and says nothing that can be understood.
    Unreadable,
    /// This.
    Head(Head),
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct HeadFile(PathBuf);

impl HeadFile {
    pub(super) fn inside(data_dir: &Path) -> Self {
        Self(data_dir.join(NAME))
    }

    /// # Errors
    ///
    /// When the system does not let it be read.
    pub(super) fn read(&self) -> io::Result<Read> {
        match fs::read(&self.0) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).map_or(Read::Unreadable, Read::Head)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Read::Absent),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file; after a power cut it is the old one or the new one.
    ///
    /// # Errors
    ///
    /// When the system does not let it be written.
    pub(super) fn write(&self, head: &Head) -> io::Result<()> {
        let fresh = self.0.with_extension("new");
        let text = serde_json::to_vec_pretty(head)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.0)?;
        match self.0.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Says that a copy of the database is about to be put in its place: the chain then ends where the
/// copy ends, and the sealer notes which rows went with the database that was replaced. Only this,
/// and no value in the database itself, lets a chain become shorter.
///
/// # Errors
///
/// When the file cannot be read or written.
pub fn begin_restore(data_dir: &Path) -> io::Result<()> {
    let file = HeadFile::inside(data_dir);
    match file.read()? {
        Read::Head(head) => file.write(&Head { is_restoring: true, ..head }),
        Read::Absent | Read::Unreadable => {
            file.write(&Head { is_restoring: true, ..Head::default() })
        }
    }
}

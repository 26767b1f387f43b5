//! The last desired state and what was done about it, on disk: a reboot needs no controller.
//!
//! One file, replaced whole: eight bytes of mark, the layout's version, the content in postcard,
//! and the SHA-256 of all before it. A file that is not one of ours is set aside and reported; the
//! agent then starts without knowledge and adopts the containers it finds.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::NodeDesired;

const MARK: &[u8; 8] = b"TQLEDGER";
const LAYOUT: u32 = 1;
const DIGEST: usize = 32;
/// A desired state fits a 16 MiB frame; records add less than that.
const SIZE_MAX: u64 = 64 << 20;

/// What is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// The desired state that was taken in last; nothing before the first.
    pub desired: Option<NodeDesired>,
    /// What was done, by instance.
    pub records: BTreeMap<InstanceId, Record>,
}

impl Book {
    /// Returns the generation that was carried out last, by instance.
    #[must_use]
    pub fn acted(&self) -> BTreeMap<InstanceId, u64> {
        self.records.iter().map(|(id, record)| (*id, record.acted)).collect()
    }
}

/// What was done about one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The generation that was carried out last; 0 before the first.
    pub acted: u64,
    /// The generation that is being carried out, and since when.
    pub begun: Option<Begun>,
    /// Times the restart policy started it since the last start that a person asked for.
    pub restarts: u32,
    /// Restarts one after another without ten good minutes between; sets the pause.
    pub streak: u32,
    /// Failed attempts one after another; sets the pause.
    pub failures: u32,
    /// Not before this time is anything tried again.
    pub retry_at: Option<UnixMillis>,
    /// Why the last attempt failed, in Docker's words; empty when it did not.
    pub failure: String,
    /// How it ended by itself, for good.
    pub ended: Option<Ended>,
    /// The boot of the machine in which it was last started.
    pub boot: String,
    /// Why its slice cannot act in its image; empty when it can.
    pub slice_idle: String,
}

/// A generation that is being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Which.
    pub generation: u64,
    /// Since when; a container started later was started for it.
    pub at: UnixMillis,
}

/// How an instance ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: i64,
    /// Whether the kernel ended it for lack of memory.
    pub out_of_memory: bool,
}

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The system refused.
    #[error("could not {what} the ledger {path}; free space or mend permissions there")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The content could not be encoded.
    #[error("could not encode the ledger")]
    Encode(#[source] postcard::Error),
}

/// The ledger's file.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
}

/// What opening a ledger gave.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub ledger: Ledger,
    /// What it holds.
    pub book: Book,
    /// Where a file that could not be read was set aside, and why.
    pub set_aside: Option<(PathBuf, String)>,
}

impl Ledger {
    /// Opens `<data_dir>/ledger`, which need not exist. A file that is damaged or of another layout
    /// is renamed to `ledger.corrupt-<unix seconds>`.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Io`] when the folder cannot be used.
    pub fn open(data_dir: &Path, now: UnixMillis) -> Result<Opened, LedgerError> {
        let path = data_dir.join("ledger");
        let failed = |what| {
            let path = path.clone();
            move |source| LedgerError::Io { what, path, source }
        };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let book = Book::default();
                return Ok(Opened { ledger: Self { path }, book, set_aside: None });
            }
            Err(error) => return Err(failed("open")(error)),
        }
        match decode(&bytes) {
            Ok(book) => Ok(Opened { ledger: Self { path }, book, set_aside: None }),
            Err(reason) => {
                let aside = data_dir.join(format!("ledger.corrupt-{}", now.0 / 1_000));
                fs::rename(&path, &aside).map_err(failed("set aside"))?;
                tracing::error!(
                    error = reason,
                    "the ledger could not be read and was set aside as {}; containers that run are \
                     adopted",
                    aside.display()
                );
                let set_aside = Some((aside, reason.to_owned()));
                Ok(Opened { ledger: Self { path }, book: Book::default(), set_aside })
            }
        }
    }

    /// Writes `book`: whole, synced and renamed into place, so that a power cut leaves the old or
    /// the new one.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; the old file stands then.
    pub fn write(&self, book: &Book) -> Result<(), LedgerError> {
        let bytes = encode(book)?;
        let fresh = self.path.with_extension("new");
        self.replace(&fresh, &bytes).inspect_err(|_| {
            // What could not be written whole only takes space.
            let _ = fs::remove_file(&fresh);
        })
    }

    fn replace(&self, fresh: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
        let failed = |what: &'static str| {
            move |source| LedgerError::Io { what, path: self.path.clone(), source }
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(fresh)
            .map_err(failed("create"))?;
        file.write_all(bytes).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(fresh, &self.path).map_err(failed("replace"))?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync the folder of"))
    }
}

fn encode(book: &Book) -> Result<Vec<u8>, LedgerError> {
    let mut bytes = MARK.to_vec();
    bytes.extend_from_slice(&LAYOUT.to_le_bytes());
    let mut bytes = postcard::to_extend(book, bytes).map_err(LedgerError::Encode)?;
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Book, &'static str> {
    let (body, digest) = bytes.split_last_chunk::<DIGEST>().ok_or("it is cut short")?;
    let (mark, rest) = body.split_first_chunk::<8>().ok_or("it is cut short")?;
    let (layout, content) = rest.split_first_chunk::<4>().ok_or("it is cut short")?;
    if mark != MARK {
        return Err("it is not a ledger");
    }
    if Sha256::digest(body).as_slice() != digest {
        return Err("its checksum is wrong");
    }
    if u32::from_le_bytes(*layout) != LAYOUT {
        return Err("its layout is of another version");
    }
    postcard::from_bytes(content).map_err(|_| "its content does not decode")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn book() -> Book {
        let record = Record { acted: 7, failure: "no space".to_owned(), ..Record::default() };
        Book {
            desired: Some(NodeDesired::default()),
            records: BTreeMap::from([(InstanceId::new(), record)]),
        }
    }

    #[test]
    fn ledger_gives_back_what_was_written_and_only_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Ledger::open(folder.path(), UnixMillis(0)).unwrap();
        assert_eq!(opened.book, Book::default());

        opened.ledger.write(&book()).unwrap();
        let last = book();
        opened.ledger.write(&last).unwrap();

        assert_eq!(Ledger::open(folder.path(), UnixMillis(0)).unwrap().book, last);
        let mode = fs::metadata(folder.path().join("ledger")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn damaged_ledgers_are_set_aside_whatever_bit_is_wrong() {
        let whole = encode(&book()).unwrap();
        let mut later = whole.clone();
        later.truncate(later.len() - DIGEST);
        later[8] = 99;
        let digest = Sha256::digest(&later);
        later.extend_from_slice(&digest);
        let mut cases =
            vec![Vec::new(), b"short".to_vec(), whole[..whole.len() - 1].to_vec(), later];
        for position in (0..whole.len()).step_by(7) {
            let mut flipped = whole.clone();
            flipped[position] ^= 1;
            cases.push(flipped);
        }
        for bytes in cases {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("ledger"), &bytes).unwrap();

            let opened = Ledger::open(folder.path(), UnixMillis(1_700_000_000_123)).unwrap();

            assert_eq!(opened.book, Book::default());
            let (aside, reason) = opened.set_aside.unwrap();
            assert!(aside.ends_with("ledger.corrupt-1700000000") && !reason.is_empty());
            assert_eq!(fs::read(aside).unwrap(), bytes);
        }
    }

    #[test]
    fn ledger_that_cannot_be_written_says_where_and_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Ledger::open(folder.path(), UnixMillis(0)).unwrap();
        let old = book();
        opened.ledger.write(&old).unwrap();
        // A folder in the way of the new file fails for root too.
        fs::create_dir(folder.path().join("ledger.new")).unwrap();

        let error = opened.ledger.write(&book()).unwrap_err();

        assert!(error.to_string().contains("free space"), "{error}");
        assert_eq!(Ledger::open(folder.path(), UnixMillis(0)).unwrap().book, old);
    }
}

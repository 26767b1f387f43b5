//! The master key on disk: `master.key`, and beside it `master.key.new` while it is exchanged.
//!
//! A key file holds 32 bytes, the master key, or 64: after them the key of marks. A master key that
//! was never exchanged has none of its own; it is derived.
//!
//! Files are written whole and made durable before they get their name, so a cut at any moment
//! leaves one of three states: the old key alone, both, or the new key alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::Rng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::SealError;

/// Length of each of the two keys.
const KEY: usize = 32;

/// What a key file holds.
pub(super) struct KeyBytes {
    master: Zeroizing<[u8; KEY]>,
    mark: Option<Zeroizing<[u8; KEY]>>,
}

impl KeyBytes {
    fn read(bytes: &[u8]) -> Option<Self> {
        let array = |bytes: &[u8]| <[u8; KEY]>::try_from(bytes).ok().map(Zeroizing::new);
        let (master, mark) = bytes.split_at_checked(KEY)?;
        let mark = if mark.is_empty() { None } else { Some(array(mark)?) };
        Some(Self { master: array(master)?, mark })
    }

    fn random(mark: Option<Zeroizing<[u8; KEY]>>) -> Self {
        let mut master = Zeroizing::new([0; KEY]);
        rand::rng().fill_bytes(master.as_mut());
        Self { master, mark }
    }

    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let mark = self.mark.iter().flat_map(|mark| mark.iter());
        Zeroizing::new(self.master.iter().chain(mark).copied().collect())
    }

    pub(super) fn master(&self) -> &[u8; KEY] {
        &self.master
    }

    pub(super) fn mark_key(&self) -> Zeroizing<[u8; KEY]> {
        self.mark.clone().unwrap_or_else(|| {
            let derived = Sha256::new().chain_update(b"tianqi mark").chain_update(*self.master);
            Zeroizing::new(derived.finalize().into())
        })
    }
}

/// Where the key is, and where the next one is while both are in use.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    next: PathBuf,
}

impl KeyFile {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), next: with_suffix(path, ".new") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the key is being exchanged.
    pub(super) fn has_next(&self) -> bool {
        self.next.exists()
    }

    /// Returns the key to seal with and, while it is exchanged, the one before it.
    pub(super) fn open_or_create(&self) -> Result<(KeyBytes, Option<KeyBytes>), SealError> {
        if !self.path.exists() && self.has_next() {
            self.finish()?;
        }
        if !self.path.exists() {
            create(&self.path, &KeyBytes::random(None).bytes())
                .map_err(|source| failed(&self.path, source))?;
        }
        let key = read(&self.path)?;
        if !self.has_next() {
            return Ok((key, None));
        }
        Ok((read(&self.next)?, Some(key)))
    }

    /// Makes the next key, or reads the one that was made; the marks' key goes over to it.
    pub(super) fn begin(&self) -> Result<KeyBytes, SealError> {
        let current = read(&self.path)?;
        if !self.has_next() {
            let next = KeyBytes::random(Some(current.mark_key()));
            create(&self.next, &next.bytes()).map_err(|source| failed(&self.next, source))?;
        }
        read(&self.next)
    }

    /// Puts the next key in the place of the one before it, which is gone then.
    pub(super) fn finish(&self) -> Result<(), SealError> {
        let renamed = fs::rename(&self.next, &self.path).and_then(|()| sync_folder(&self.path));
        renamed.map_err(|source| failed(&self.path, source))
    }
}

fn failed(path: &Path, source: io::Error) -> SealError {
    SealError::KeyFile { path: path.display().to_string(), source }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

fn read(path: &Path) -> Result<KeyBytes, SealError> {
    let bytes = Zeroizing::new(fs::read(path).map_err(|source| failed(path, source))?);
    let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
    let key = KeyBytes::read(&bytes).filter(|_| metadata.permissions().mode() & 0o077 == 0);
    key.ok_or_else(|| SealError::BadKey(path.display().to_string()))
}

/// Writes a file that is whole when it has its name. A name that is taken is left to its owner.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = with_suffix(path, ".part");
    // What a cut left behind was never in use.
    remove(&part)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match fs::hard_link(&part, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    remove(&part)?;
    sync_folder(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

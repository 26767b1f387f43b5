//! Secrets at rest: AES-256-GCM under a master key that is never in the database.
//!
//! A sealed value is one version byte, the key's id (8 bytes of its SHA-256), a random nonce of 12
//! bytes, and the ciphertext with its tag. The row that holds it is bound in as associated data, so
//! a value copied to another row does not open.
//!
//! The master key can be exchanged while running ([`rotate`]): then there are two, everything is
//! sealed with the new one, and a value opens with the one that its id names. Marks have a key of
//! their own that stays, because what was marked must be recognised later.

mod key_file;
pub mod rotate;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use rand::Rng;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

use key_file::{KeyBytes, KeyFile};

const VERSION: u8 = 1;
const KEY_ID: usize = 8;
const NONCE: usize = 12;
const HEADER: usize = 1 + KEY_ID + NONCE;

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be read or made.
    #[error("master key file {path} cannot be used")]
    KeyFile {
        /// Where it should be.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The key file does not hold a key.
    #[error(
        "master key file {0} must hold exactly 32 or 64 bytes and be readable by its owner alone (mode 0600)"
    )]
    BadKey(String),
    /// The value was sealed under another key.
    #[error("this secret was sealed under another master key; put that key file back")]
    OtherKey,
    /// The value was changed, cut, or copied from another row.
    #[error("this secret does not open; it was changed or moved")]
    Broken,
}

/// The master key in use, and while it is exchanged the one before it.
#[derive(Debug)]
pub struct Seal {
    keys: watch::Sender<Arc<Keys>>,
    file: KeyFile,
    /// Who exchanges the key.
    turn: Semaphore,
}

/// Held by whoever may seal with the key of a moment; a rotation waits until it is dropped.
pub struct Held(#[expect(dead_code, reason = "it is counted, not read")] Arc<MasterKey>);

struct Keys {
    current: Arc<MasterKey>,
    before: Option<Arc<MasterKey>>,
    mark: Zeroizing<[u8; 32]>,
}

struct MasterKey {
    cipher: Aes256Gcm,
    id: [u8; KEY_ID],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl MasterKey {
    fn new(key: &[u8; 32]) -> Self {
        let mut id = [0; KEY_ID];
        for (to, from) in id.iter_mut().zip(Sha256::digest(key)) {
            *to = from;
        }
        Self { cipher: Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key)), id }
    }
}

impl Keys {
    fn new(current: &KeyBytes, before: Option<&KeyBytes>) -> Self {
        let mark = before.unwrap_or(current).mark_key();
        let key = |bytes: &KeyBytes| Arc::new(MasterKey::new(bytes.master()));
        Self { current: key(current), before: before.map(key), mark }
    }
}

impl Seal {
    /// Reads the key file, or makes it (mode 0600) when there is none. When a rotation was cut off,
    /// both of its keys are read.
    ///
    /// # Errors
    ///
    /// [`SealError::KeyFile`] and [`SealError::BadKey`].
    pub fn open_or_create(path: &Path) -> Result<Self, SealError> {
        let file = KeyFile::at(path);
        let (current, before) = file.open_or_create()?;
        let (keys, _) = watch::channel(Arc::new(Keys::new(&current, before.as_ref())));
        Ok(Self { keys, file, turn: Semaphore::new(1) })
    }

    /// Returns where the key is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.borrow().clone()
    }

    /// Holds the keys of now, from before something is sealed until it is stored.
    #[must_use]
    pub fn hold(&self) -> Held {
        Held(self.keys.borrow().current.clone())
    }

    /// Returns a mark by which equal texts are recognised, and from which nobody without the key
    /// file can try out what the text was. It is the same after the master key was exchanged.
    #[must_use]
    pub fn mark(&self, text: &[u8]) -> Vec<u8> {
        // The inner digest has a fixed length, so nothing can be appended to what is marked.
        let inner = Sha256::digest(text);
        Sha256::new().chain_update(*self.keys().mark).chain_update(inner).finalize().to_vec()
    }

    /// Seals `plain` for the row that `row` names, such as `images/<id>/registry_password`.
    ///
    /// # Errors
    ///
    /// [`SealError::Broken`] when the value is too long for the cipher.
    pub fn seal(&self, row: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.keys();
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: plain, aad: row.as_bytes() };
        let sealed = keys.current.cipher.encrypt(&Nonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| SealError::Broken)?;
        let mut out = Vec::with_capacity(HEADER + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&keys.current.id);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens what [`Seal::seal`] made for the same row.
    ///
    /// # Errors
    ///
    /// [`SealError::OtherKey`] and [`SealError::Broken`].
    pub fn open(&self, row: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (header, body) = sealed.split_at_checked(HEADER).ok_or(SealError::Broken)?;
        let [VERSION, rest @ ..] = header else { return Err(SealError::Broken) };
        let (id, nonce) = rest.split_at_checked(KEY_ID).ok_or(SealError::Broken)?;
        let keys = self.keys();
        let mut known = std::iter::once(&keys.current).chain(&keys.before);
        let key = known.find(|key| key.id == id).ok_or(SealError::OtherKey)?;
        let nonce = <[u8; NONCE]>::try_from(nonce).map_err(|_| SealError::Broken)?;
        let payload = Payload { msg: body, aad: row.as_bytes() };
        let plain = key.cipher.decrypt(&Nonce::from(nonce), payload);
        plain.map(Zeroizing::new).map_err(|_| SealError::Broken)
    }

    /// Whether a value is sealed with the key in use.
    fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.get(1..=KEY_ID).is_some_and(|id| id == self.keys().current.id)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn seal_with(byte: u8) -> Seal {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        fs::write(&path, [byte; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Seal::open_or_create(&path).unwrap()
    }

    fn seal() -> Seal {
        seal_with(7)
    }

    #[test]
    fn a_sealed_value_opens_for_its_own_row_alone() {
        let sealed = seal().seal("images/1/password", b"secret").unwrap();

        assert_eq!(seal().open("images/1/password", &sealed).unwrap().as_slice(), b"secret");
        assert!(matches!(seal().open("images/2/password", &sealed), Err(SealError::Broken)));
    }

    #[test]
    fn a_changed_or_cut_value_does_not_open() {
        let seal = seal();
        let sealed = seal.seal("row", b"secret").unwrap();

        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(seal.open("row", &changed).is_err(), "byte {i}");
            assert!(seal.open("row", &sealed[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_mark_is_equal_for_equal_texts_and_another_under_another_key() {
        assert_eq!(seal().mark(b"a"), seal().mark(b"a"));
        assert_ne!(seal().mark(b"a"), seal().mark(b"b"));
        assert_ne!(seal().mark(b"a"), seal_with(8).mark(b"a"));
    }

    #[test]
    fn another_key_is_told_apart_from_a_broken_value() {
        let sealed = seal_with(8).seal("row", b"secret").unwrap();

        assert!(matches!(seal().open("row", &sealed), Err(SealError::OtherKey)));
    }

    #[test]
    fn the_key_file_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let sealed = Seal::open_or_create(&path).unwrap().seal("row", b"x").unwrap();

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Seal::open_or_create(&path).unwrap().open("row", &sealed).is_ok());

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Seal::open_or_create(&path), Err(SealError::BadKey(_))));
    }
}

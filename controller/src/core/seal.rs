//! Secrets at rest: AES-256-GCM under a master key that is never in the database.
//!
//! A sealed value is one version byte, the key's id (8 bytes of its SHA-256), a random nonce of 12
//! bytes, and the ciphertext with its tag. The row that holds it is bound in as associated data, so
//! a value copied to another row does not open.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use rand::Rng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

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
        "master key file {0} must hold exactly 32 bytes and be readable by its owner alone (mode 0600)"
    )]
    BadKey(String),
    /// The value was sealed under another key.
    #[error("this secret was sealed under another master key; put that key file back")]
    OtherKey,
    /// The value was changed, cut, or copied from another row.
    #[error("this secret does not open; it was changed or moved")]
    Broken,
}

/// The master key.
pub struct Seal {
    cipher: Aes256Gcm,
    id: [u8; KEY_ID],
    mark_key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(…)")
    }
}

impl Seal {
    /// Reads the key file, or makes it (mode 0600) when there is none.
    ///
    /// # Errors
    ///
    /// [`SealError::KeyFile`] and [`SealError::BadKey`].
    pub fn open_or_create(path: &Path) -> Result<Self, SealError> {
        let failed = |source| SealError::KeyFile { path: path.display().to_string(), source };
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(key.as_mut());
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match created {
            Ok(mut file) => {
                file.write_all(key.as_ref()).and_then(|()| file.sync_all()).map_err(failed)?;
                Ok(Self::new(&key))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let bytes = Zeroizing::new(fs::read(path).map_err(failed)?);
                let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
                let stored = <[u8; 32]>::try_from(bytes.as_slice());
                match stored {
                    Ok(stored) if mode & 0o077 == 0 => Ok(Self::new(&Zeroizing::new(stored))),
                    _ => Err(SealError::BadKey(path.display().to_string())),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn new(key: &[u8; 32]) -> Self {
        let mut id = [0; KEY_ID];
        for (to, from) in id.iter_mut().zip(Sha256::digest(key)) {
            *to = from;
        }
        let mark_key = Sha256::new().chain_update(b"tianqi mark").chain_update(key).finalize();
        Self {
            cipher: Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key)),
            id,
            mark_key: Zeroizing::new(mark_key.into()),
        }
    }

    /// Returns a mark by which equal texts are recognised, and from which nobody without the master
    /// key can try out what the text was.
    #[must_use]
    pub fn mark(&self, text: &[u8]) -> Vec<u8> {
        // The inner digest has a fixed length, so nothing can be appended to what is marked.
        let inner = Sha256::digest(text);
        Sha256::new().chain_update(*self.mark_key).chain_update(inner).finalize().to_vec()
    }

    /// Seals `plain` for the row that `row` names, such as `images/<id>/registry_password`.
    ///
    /// # Errors
    ///
    /// [`SealError::Broken`] when the value is too long for the cipher.
    pub fn seal(&self, row: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: plain, aad: row.as_bytes() };
        let sealed =
            self.cipher.encrypt(&Nonce::from(nonce), payload).map_err(|_| SealError::Broken)?;
        let mut out = Vec::with_capacity(HEADER + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&self.id);
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
        if id != self.id {
            return Err(SealError::OtherKey);
        }
        let nonce = <[u8; NONCE]>::try_from(nonce).map_err(|_| SealError::Broken)?;
        let payload = Payload { msg: body, aad: row.as_bytes() };
        let plain = self.cipher.decrypt(&Nonce::from(nonce), payload);
        plain.map(Zeroizing::new).map_err(|_| SealError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        Seal::new(&[7; 32])
    }

    #[test]
    fn a_sealed_value_opens_for_its_own_row_alone() {
        let sealed = seal().seal("images/1/password", b"secret").unwrap();

        assert_eq!(seal().open("images/1/password", &sealed).unwrap().as_slice(), b"secret");
        assert!(matches!(seal().open("images/2/password", &sealed), Err(SealError::Broken)));
    }

    #[test]
    fn a_changed_or_cut_value_does_not_open() {
        let sealed = seal().seal("row", b"secret").unwrap();

        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(seal().open("row", &changed).is_err(), "byte {i}");
            assert!(seal().open("row", &sealed[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_mark_is_equal_for_equal_texts_and_another_under_another_key() {
        assert_eq!(seal().mark(b"a"), seal().mark(b"a"));
        assert_ne!(seal().mark(b"a"), seal().mark(b"b"));
        assert_ne!(seal().mark(b"a"), Seal::new(&[8; 32]).mark(b"a"));
    }

    #[test]
    fn another_key_is_told_apart_from_a_broken_value() {
        let sealed = Seal::new(&[8; 32]).seal("row", b"secret").unwrap();

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

//! The host key: made once, kept, and never used when others can read it. Each instance has a host key
//! of its own, derived from it, so that `ssh -J` knows the instance again wherever it runs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Algorithm, PrivateKey};
use sha2::Sha256;
use tianqi_common::id::InstanceId;
use zeroize::Zeroizing;

/// Why the host key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file cannot be read or made.
    #[error("it cannot be read or made")]
    Io(#[source] io::Error),
    /// Others than its owner may read the file.
    #[error(
        "others may read it (mode {mode:o}); run chmod 600 on it, or make a new key if somebody did"
    )]
    Readable {
        /// The permission bits.
        mode: u32,
    },
    /// It is no key.
    #[error(
        "it is damaged, or no OpenSSH private key; put the right one back, or remove it for a new one"
    )]
    Damaged,
    /// It is a key of another kind, or has a passphrase.
    #[error("it is no ed25519 key without a passphrase")]
    Kind,
}

/// The jumpbox's host key.
#[derive(Clone)]
pub(super) struct HostKey {
    key: PrivateKey,
    secret: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").finish_non_exhaustive()
    }
}

impl HostKey {
    /// Reads the key, or makes it when there is none.
    ///
    /// # Errors
    ///
    /// [`HostKeyError`].
    pub(super) fn open_or_create(path: &Path) -> Result<Self, HostKeyError> {
        if !path.try_exists().map_err(HostKeyError::Io)? {
            create(path)?;
        }
        let mode = fs::metadata(path).map_err(HostKeyError::Io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(HostKeyError::Readable { mode });
        }
        let text = Zeroizing::new(fs::read(path).map_err(HostKeyError::Io)?);
        let key = PrivateKey::from_openssh(text.as_slice()).map_err(|_| HostKeyError::Damaged)?;
        let pair = key.key_data().ed25519().ok_or(HostKeyError::Kind)?;
        let secret = Zeroizing::new(pair.private.to_bytes());
        Ok(Self { key, secret })
    }

    /// The key itself.
    pub(super) fn key(&self) -> PrivateKey {
        self.key.clone()
    }

    /// Returns the host key of an instance: always the same, and nothing of this key can be found
    /// out from it.
    #[allow(clippy::expect_used, reason = "HMAC takes keys of any length")]
    pub(super) fn of_instance(&self, instance: InstanceId) -> PrivateKey {
        let mac = Hmac::<Sha256>::new_from_slice(self.secret.as_slice());
        let mac = mac.expect("HMAC takes keys of any length");
        let mac = mac.chain_update("tianqi host key of an instance\n").chain_update(instance.0);
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
        PrivateKey::from(Ed25519Keypair::from_seed(&seed))
    }
}

/// Makes a key under another name first: a power cut must not leave half a key.
fn create(path: &Path) -> Result<(), HostKeyError> {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519);
    let key = key.map_err(|_| HostKeyError::Damaged)?;
    let text = key.to_openssh(LineEnding::LF).map_err(|_| HostKeyError::Damaged)?;
    let next = path.with_extension("next");
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    write().map_err(HostKeyError::Io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");

        let first = HostKey::open_or_create(&path).unwrap();
        let again = HostKey::open_or_create(&path).unwrap();

        assert_eq!(first.key().public_key(), again.key().public_key());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn each_instance_has_a_key_that_stays_and_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| HostKey::open_or_create(&folder.path().join(name)).unwrap();
        let (host, other) = (open("one"), open("two"));
        let (a, b) = (InstanceId::new(), InstanceId::new());
        let public = |host: &HostKey, id| host.of_instance(id).public_key().clone();

        assert_eq!(public(&host, a), public(&open("one"), a));
        assert_ne!(public(&host, a), public(&host, b));
        assert_ne!(public(&host, a), public(&other, a));
        assert_ne!(&public(&host, a), host.key().public_key());
    }

    #[test]
    fn a_readable_a_damaged_and_a_foreign_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        HostKey::open_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = HostKey::open_or_create(&path);
        assert!(matches!(refused, Err(HostKeyError::Readable { mode: 0o640 })), "{refused:?}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for damaged in ["", "-----BEGIN", &text[..text.len() / 2]] {
            fs::write(&path, damaged).unwrap();
            let refused = HostKey::open_or_create(&path);
            assert!(matches!(refused, Err(HostKeyError::Damaged)), "{refused:?}");
        }
        let missing = HostKey::open_or_create(&folder.path().join("no/such/folder"));
        assert!(matches!(missing, Err(HostKeyError::Io(_))), "{missing:?}");
    }
}

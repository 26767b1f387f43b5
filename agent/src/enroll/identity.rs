//! Who this node is: one file, written whole or not at all, readable by its owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Name of the file in the data directory.
const FILE: &str = "identity.json";
/// Name of the key of a join that is under way.
const PENDING_KEY: &str = "join-key.pem";

/// Why an identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// This machine has not joined.
    #[error(
        "this machine has not joined a controller; run tianqi-agent join --controller HOST:PORT --token TOKEN"
    )]
    Missing,
    /// This machine has joined already.
    #[error("this machine is node {node} of {controller} already; add --force to join anew")]
    Exists {
        /// The node.
        node: NodeId,
        /// Its controller.
        controller: String,
    },
    /// The file does not hold an identity.
    #[error("{path} is damaged ({problem}); restore it, or join anew with --force")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The file cannot be used.
    #[error("{path} cannot be used; is the disk full, or does another account own it?")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key could not be made.
    #[error("a key could not be made")]
    Key(#[source] rcgen::Error),
}

/// Who this node is, to whom it belongs and how it proves it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// `HOST:PORT` of the controller.
    pub controller: String,
    /// The node's id.
    pub node: NodeId,
    /// The key, PEM. Never leaves this machine.
    pub key_pem: String,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The authorities that the controller's certificate may come from, PEM.
    pub ca_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("controller", &self.controller)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// When a certificate begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When it begins.
    pub not_before: UnixMillis,
    /// When it ends.
    pub not_after: UnixMillis,
}

impl Validity {
    /// Returns when the next certificate is due: at 2/3 of the life of this one.
    #[must_use]
    pub fn renew_at(self) -> UnixMillis {
        UnixMillis(self.not_before.0 + self.life_ms() / 3 * 2)
    }

    /// Returns how long it lives, in milliseconds.
    #[must_use]
    pub fn life_ms(self) -> i64 {
        self.not_after.0.saturating_sub(self.not_before.0)
    }
}

impl Identity {
    /// Returns when the certificate begins and ends; nothing when it is not one.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        let der = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).ok()?;
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let ms =
            |time: x509_parser::time::ASN1Time| UnixMillis(time.timestamp().saturating_mul(1_000));
        let (from, to) = (parsed.validity().not_before, parsed.validity().not_after);
        Some(Validity { not_before: ms(from), not_after: ms(to) })
    }

    fn check(self, path: &Path) -> Result<Self, IdentityError> {
        let problem = if self.validity().is_none() {
            "its certificate cannot be read"
        } else if KeyPair::from_pem(&self.key_pem).is_err() {
            "its key cannot be read"
        } else {
            return Ok(self);
        };
        Err(IdentityError::Damaged {
            path: path.display().to_string(),
            problem: problem.to_owned(),
        })
    }
}

/// The identity in use and the file that keeps it.
#[derive(Clone, Debug)]
pub struct IdentityStore {
    path: PathBuf,
    current: Arc<RwLock<Arc<Identity>>>,
}

impl IdentityStore {
    /// Reads the identity of `data_dir`.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn open(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE);
        let identity = read(&path)?.ok_or(IdentityError::Missing)?;
        Ok(Self { path, current: Arc::new(RwLock::new(Arc::new(identity))) })
    }

    /// Returns the identity in use.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses `identity` from here on and keeps it.
    ///
    /// # Errors
    ///
    /// [`IdentityError::File`] when it cannot be written; it is in use all the same, and the file
    /// still holds the one before, which stays valid until it ends.
    pub fn replace(&self, identity: Identity) -> Result<(), IdentityError> {
        let identity = Arc::new(identity);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = identity.clone();
        write(&self.path, &identity)
    }
}

/// Returns the identity of `data_dir`, if it has one.
///
/// # Errors
///
/// [`IdentityError::Damaged`] and [`IdentityError::File`].
pub fn existing(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    read(&data_dir.join(FILE))
}

/// Keeps the identity of a join that went well, and forgets the pending key.
pub(super) fn keep(data_dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    write(&data_dir.join(FILE), identity)?;
    // A key that stays is only reused by the next join.
    let _ = fs::remove_file(data_dir.join(PENDING_KEY));
    Ok(())
}

/// Returns the key of a join that was begun before and whose answer may have been lost, or makes
/// one. By the same key the controller recognises the same machine.
pub(super) fn pending_key(data_dir: &Path) -> Result<KeyPair, IdentityError> {
    make_dir(data_dir)?;
    let path = data_dir.join(PENDING_KEY);
    if let Ok(pem) = fs::read_to_string(&path).map(Zeroizing::new)
        && let Ok(key) = KeyPair::from_pem(&pem)
    {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(IdentityError::Key)?;
    write_bytes(&path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

/// Returns a request for a certificate for `key`. The controller takes nothing but the key of it.
pub(crate) fn request(key: &KeyPair) -> Result<String, IdentityError> {
    let request =
        CertificateParams::default().serialize_request(key).map_err(IdentityError::Key)?;
    request.pem().map_err(IdentityError::Key)
}

fn make_dir(data_dir: &Path) -> Result<(), IdentityError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| failed(data_dir, source))
}

fn read(path: &Path) -> Result<Option<Identity>, IdentityError> {
    let text = match fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(path, source)),
    };
    let identity: Identity = serde_json::from_slice(&text).map_err(|error| {
        IdentityError::Damaged { path: path.display().to_string(), problem: error.to_string() }
    })?;
    identity.check(path).map(Some)
}

fn write(path: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let text = serde_json::to_vec_pretty(identity)
        .map_err(|error| failed(path, io::Error::other(error)))?;
    write_bytes(path, &Zeroizing::new(text))
}

/// Writes a file (0600) whole: beside it first, then in its place, both made durable.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let beside = path.with_extension("new");
    let written = (|| {
        // A leftover of an earlier attempt may have other rights.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    })();
    written.map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File { path: path.display().to_string(), source }
}

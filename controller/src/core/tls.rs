//! TLS on the API's port, when the configuration names a certificate; new files are taken up while
//! running.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::Chain;

/// How often the files are read again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why the port cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be read as PEM.
    #[error("{path} holds no PEM that can be read")]
    Pem {
        /// Which file.
        path: String,
        /// What is wrong.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not work together.
    #[error("http.tls_cert and http.tls_key do not belong together or cannot be used")]
    Pair(#[source] rustls::Error),
}

/// What new connections speak with; it changes when the files do.
#[derive(Clone, Debug)]
pub struct Current(watch::Receiver<Arc<ServerConfig>>);

impl Current {
    /// Returns certificate and key of now.
    #[must_use]
    pub fn get(&self) -> Arc<ServerConfig> {
        self.0.borrow().clone()
    }
}

/// Certificate and key in their files, and which of their states is served.
#[derive(Debug)]
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
    seen: [u8; 32],
    is_told: bool,
    served: watch::Sender<Arc<ServerConfig>>,
}

impl Files {
    /// Reads certificate chain and key.
    ///
    /// # Errors
    ///
    /// [`TlsError`] naming the file.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let (config, seen) = load(certificate, key);
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let (served, _) = watch::channel(Arc::new(config?));
        Ok(Self { certificate, key, seen, is_told: true, served })
    }

    /// Returns what is served, now and later.
    #[must_use]
    pub fn current(&self) -> Current {
        Current(self.served.subscribe())
    }

    /// Looks at the files again. A pair that works is served from the next connection on. One that
    /// does not work is told when it is seen for the second time, because the two files are written
    /// one after the other.
    fn look(&mut self) {
        let (config, digest) = load(&self.certificate, &self.key);
        let is_new = digest != self.seen;
        self.seen = digest;
        match config {
            Ok(_) if !is_new => {}
            Ok(config) => {
                self.served.send_replace(Arc::new(config));
                self.is_told = true;
                tracing::info!("a new certificate is served from {}", self.certificate.display());
            }
            Err(_) if is_new => self.is_told = false,
            Err(error) if !self.is_told => {
                self.is_told = true;
                tracing::error!(
                    error = %Chain(&error),
                    "the new certificate cannot be used; the one before it is served on"
                );
            }
            Err(_) => {}
        }
    }

    /// Looks at the files every two seconds until `stop`.
    pub async fn watch(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(files) => self = files,
                Err(error) => {
                    return tracing::error!(%error, "the certificate is not looked at any more");
                }
            }
        }
    }
}

/// Returns what the files hold, and a digest of it by which a change is noticed. Times and inodes of
/// files say less: they stay when a file is copied over, and change when nothing did.
fn load(certificate: &Path, key: &Path) -> (Result<ServerConfig, TlsError>, [u8; 32]) {
    let mut digest = Sha256::new();
    let mut read = |path: &Path| {
        let bytes = std::fs::read(path).map(zeroize::Zeroizing::new).map_err(|source| {
            digest.update(source.to_string());
            TlsError::File { path: path.display().to_string(), source }
        })?;
        digest.update(bytes.len().to_le_bytes());
        digest.update(&*bytes);
        Ok(bytes)
    };
    let (chain_pem, key_pem) = (read(certificate), read(key));
    let config = chain_pem.and_then(|chain_pem| {
        let pem = |path: &Path, source| TlsError::Pem { path: path.display().to_string(), source };
        let chain = CertificateDer::pem_slice_iter(&chain_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| pem(certificate, error))?;
        let key_der = PrivateKeyDer::from_pem_slice(&key_pem?).map_err(|error| pem(key, error))?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key_der)
            .map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    });
    (config, digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn certificate(&self) -> PathBuf {
            self.0.path().join("cert.pem")
        }

        fn key(&self) -> PathBuf {
            self.0.path().join("key.pem")
        }

        /// Puts a new pair into the files and returns its key.
        fn renew(&self) -> String {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let made = params.self_signed(&key).unwrap();
            std::fs::write(self.certificate(), made.pem()).unwrap();
            std::fs::write(self.key(), key.serialize_pem()).unwrap();
            key.serialize_pem()
        }

        fn read(&self) -> Result<Files, TlsError> {
            Files::read(&self.certificate(), &self.key())
        }
    }

    fn folder() -> Folder {
        // An error means that the provider is installed already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Folder(tempfile::tempdir().unwrap())
    }

    #[test]
    fn a_new_pair_is_served_and_a_broken_one_is_not() {
        let folder = folder();
        let first = folder.renew();
        let mut files = folder.read().unwrap();
        let current = files.current();
        let before = current.get();

        files.look();
        assert!(Arc::ptr_eq(&before, &current.get()), "nothing changed");

        folder.renew();
        files.look();
        let renewed = current.get();
        assert!(!Arc::ptr_eq(&before, &renewed));

        std::fs::write(folder.key(), first).unwrap();
        files.look();
        assert!(Arc::ptr_eq(&renewed, &current.get()), "the key of another certificate");
        assert!(!files.is_told, "the other file may follow");
        files.look();
        assert!(files.is_told);
        std::fs::remove_file(folder.key()).unwrap();
        files.look();
        assert!(Arc::ptr_eq(&renewed, &current.get()), "no key");

        folder.renew();
        files.look();
        assert!(!Arc::ptr_eq(&renewed, &current.get()), "whole again");
    }

    #[test]
    fn a_start_with_a_broken_pair_is_refused_by_the_files_name() {
        let folder = folder();
        let missing = folder.read().unwrap_err().to_string();
        assert!(missing.contains("cert.pem"), "{missing}");

        folder.renew();
        std::fs::write(folder.key(), "not a key").unwrap();
        let broken = folder.read().unwrap_err().to_string();
        assert!(broken.contains("key.pem"), "{broken}");

        let first = folder.renew();
        folder.renew();
        std::fs::write(folder.key(), first).unwrap();
        assert!(matches!(folder.read(), Err(TlsError::Pair(_))));
    }
}

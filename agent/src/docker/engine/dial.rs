//! Byte streams to an engine, plain or over TLS.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::docker::attach::Duplex;
use crate::docker::endpoint::{Address, Endpoint, TlsPems};
use crate::docker::error::DockerError;

/// How long an engine may take to accept a connection.
const DIAL: Duration = Duration::from_secs(5);

/// Opens byte streams to one engine.
pub(super) struct Dialer {
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    /// Checks the certificates; dials nothing.
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, DockerError> {
        let tls = match (&endpoint.tls, &endpoint.address) {
            (Some(pems), Address::Tcp { host, .. }) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    DockerError::Endpoint(format!(
                        "docker host {host:?} cannot be in a certificate"
                    ))
                })?;
                Some((connector(pems)?, name))
            }
            _ => None,
        };
        Ok(Self { endpoint, tls })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Opens a byte stream.
    pub(super) async fn dial(&self) -> std::io::Result<Box<dyn Duplex>> {
        let dialled = tokio::time::timeout(DIAL, async {
            match (&self.endpoint.address, &self.tls) {
                (Address::Unix(path), _) => {
                    Ok(Box::new(UnixStream::connect(path).await?) as Box<dyn Duplex>)
                }
                (Address::Tcp { host, port }, tls) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(match tls {
                        Some((connector, name)) => {
                            Box::new(connector.connect(name.clone(), stream).await?)
                        }
                        None => Box::new(stream) as Box<dyn Duplex>,
                    })
                }
            }
        });
        dialled.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }
}

fn connector(pems: &TlsPems) -> Result<TlsConnector, DockerError> {
    let bad = |what: &str, error: &dyn std::fmt::Display| {
        DockerError::Endpoint(format!("docker TLS {what} cannot be used: {error}"))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pems.ca.as_bytes()) {
        let certificate = certificate.map_err(|error| bad("CA", &error))?;
        roots.add(certificate).map_err(|error| bad("CA", &error))?;
    }
    if roots.is_empty() {
        return Err(bad("CA", &"it holds no certificate"));
    }
    let chain = CertificateDer::pem_slice_iter(pems.cert.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad("certificate", &error))?;
    let key =
        PrivateKeyDer::from_pem_slice(pems.key.as_bytes()).map_err(|error| bad("key", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad("configuration", &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| bad("certificate", &error))?;
    Ok(TlsConnector::from(Arc::new(config)))
}

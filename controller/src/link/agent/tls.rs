//! TLS of the listener: a server certificate that can be swapped, and client certificates that may
//! be absent or expired, because the join ALPN needs both.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tianqi_common::clock::{SharedClock, UnixMillis};
use tianqi_common::wire::{ALPN, ALPN_JOIN};

use crate::core::ca::{AgentIdentity, Ca, CaError, RENEWABLE_AFTER_END};

use super::listener::StartError;

/// The server's certificate of the moment.
#[derive(Debug)]
pub(super) struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl CurrentCertificate {
    /// Makes the first certificate and says when the next is due.
    pub(super) fn make(ca: &Ca, now: UnixMillis) -> Result<(Self, UnixMillis), StartError> {
        let (key, renew_at) = certified(ca, now)?;
        Ok((Self(RwLock::new(Arc::new(key))), renew_at))
    }

    /// Makes the next certificate and says when the one after is due. Connections that stand keep
    /// what they have.
    pub(super) fn renew(&self, ca: &Ca, now: UnixMillis) -> Result<UnixMillis, StartError> {
        let (key, renew_at) = certified(ca, now)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(renew_at)
    }
}

fn certified(ca: &Ca, now: UnixMillis) -> Result<(CertifiedKey, UnixMillis), StartError> {
    let made = ca.server_certificate(now).map_err(StartError::Ca)?;
    let key = CertifiedKey::from_der(made.chain, made.key, &provider()).map_err(StartError::Tls)?;
    Ok((key, made.renew_at))
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Checks agents' certificates. What it lets through may have expired up to
/// [`RENEWABLE_AFTER_END`] ago; the connection looks at the time again.
struct AgentVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    clock: SharedClock,
}

impl fmt::Debug for AgentVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentVerifier")
    }
}

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = self.clock.now();
        let checked = self.inner.verify_client_cert(end_entity, intermediates, unix(now));
        match checked {
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => {
                let identity = AgentIdentity::read(end_entity)
                    .map_err(|_: CaError| Error::InvalidCertificate(CertificateError::Expired))?;
                if now.since(identity.not_after) > RENEWABLE_AFTER_END {
                    return checked;
                }
                self.inner.verify_client_cert(end_entity, intermediates, unix(identity.not_after))
            }
            _ => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn unix(at: UnixMillis) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(at.0).unwrap_or(0)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Builds the TLS side of the listener.
pub(super) fn server(
    ca: &Ca,
    current: Arc<CurrentCertificate>,
    clock: SharedClock,
) -> Result<QuicServerConfig, StartError> {
    let mut roots = RootCertStore::empty();
    for certificate in ca.trusted() {
        roots.add(certificate).map_err(StartError::Tls)?;
    }
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| StartError::Tls(Error::General(error.to_string())))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(StartError::Tls)?
        .with_client_cert_verifier(Arc::new(AgentVerifier { inner, clock }))
        .with_cert_resolver(current);
    tls.alpn_protocols = vec![ALPN.to_vec(), ALPN_JOIN.to_vec()];
    // Every connection shows its certificate anew; a resumed session would carry an old answer.
    tls.send_tls13_tickets = 0;
    QuicServerConfig::try_from(tls).map_err(|_| StartError::Suite)
}

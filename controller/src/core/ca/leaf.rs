//! The certificates that an authority signs: the server's and the agents'.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use tianqi_common::wire::SERVER_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BACKDATED, Ca, CaError, date, ms};

/// The server's certificate, its chain up to the authority, and its key.
pub struct ServerCertificate {
    /// The certificate, then the authority's, so that a joining machine can compare fingerprints.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key. It lives in memory alone.
    pub key: PrivateKeyDer<'static>,
    /// When the next one is due: 2/3 of the life of this one.
    pub renew_at: UnixMillis,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

/// A certificate that was made for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCertificate {
    /// The certificate, PEM.
    pub pem: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it begins.
    pub not_before: UnixMillis,
    /// When it ends.
    pub not_after: UnixMillis,
}

/// What an agent's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentIdentity {
    /// The node it names.
    pub node: NodeId,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: UnixMillis,
}

impl AgentIdentity {
    /// Reads the certificate that a peer showed. Its signature was checked by TLS.
    ///
    /// # Errors
    ///
    /// [`CaError::NotAnAgent`].
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, CaError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| CaError::NotAnAgent)?;
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let node = name.and_then(|name| name.parse().ok()).ok_or(CaError::NotAnAgent)?;
        let not_after = UnixMillis(parsed.validity().not_after.timestamp().saturating_mul(1_000));
        Ok(Self { node, serial: hex::encode(parsed.raw_serial()), not_after })
    }
}

/// A certificate request whose signature was checked. Of its contents only the key is kept.
#[derive(Debug)]
pub struct AgentRequest {
    request: CertificateSigningRequestParams,
}

impl AgentRequest {
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// [`CaError::BadRequest`] when it is not one, or was not signed by the key it names.
    pub fn parse(csr_pem: &str) -> Result<Self, CaError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::BadRequest)?;
        // rcgen keeps whatever subject, names and usages the request asks for.
        request.params = CertificateParams::default();
        Ok(Self { request })
    }

    /// Returns the SHA-256 of the public key: the same machine asking again shows the same one.
    #[must_use]
    pub fn key_hash(&self) -> [u8; 32] {
        Sha256::digest(self.request.public_key.der_bytes()).into()
    }
}

impl Ca {
    /// Makes the server's certificate, with a new key.
    ///
    /// # Errors
    ///
    /// [`CaError`] when it cannot be made.
    pub fn server_certificate(&self, now: UnixMillis) -> Result<ServerCertificate, CaError> {
        let signer = self.signer(now)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let not_after = now.plus(self.lifetimes.server).min(signer.not_after);
        let mut params =
            CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(CaError::Make)?;
        params.distinguished_name = named(SERVER_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serial_number = Some(random_serial());
        params.not_before = date(UnixMillis(now.0 - ms(BACKDATED)).max(signer.not_before));
        params.not_after = date(not_after);
        let certificate = params.signed_by(&key, &signer.issuer).map_err(CaError::Make)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), signer.certificate.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            renew_at: UnixMillis(now.0 + ms(not_after.since(now)) / 3 * 2),
        })
    }

    /// Signs a certificate that names `node` for the key of `request`.
    ///
    /// # Errors
    ///
    /// [`CaError`] when it cannot be made.
    pub fn sign_agent(
        &self,
        request: AgentRequest,
        node: NodeId,
        now: UnixMillis,
    ) -> Result<AgentCertificate, CaError> {
        let signer = self.signer(now)?;
        let mut csr = request.request;
        // Certificates count in whole seconds, so it begins at the one that has just passed.
        let not_before = UnixMillis(now.0.div_euclid(1_000).saturating_mul(1_000));
        let not_after = not_before.plus(self.lifetimes.agent).min(signer.not_after);
        let serial = random_serial();
        csr.params.distinguished_name = named(&node.to_string());
        csr.params.subject_alt_names =
            vec![SanType::URI(format!("tianqi://node/{node}").try_into().map_err(CaError::Make)?)];
        csr.params.is_ca = IsCa::ExplicitNoCa;
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.serial_number = Some(serial.clone());
        csr.params.not_before = date(not_before);
        csr.params.not_after = date(not_after);
        let certificate = csr.signed_by(&signer.issuer).map_err(CaError::Make)?;
        let serial = hex::encode(serial.to_bytes());
        Ok(AgentCertificate { pem: certificate.pem(), serial, not_before, not_after })
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Returns 16 random bytes, of which the first is neither zero nor negative, so that DER keeps them
/// as they are.
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}

/// Returns when a certificate begins and ends.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(UnixMillis, UnixMillis)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let at = |time: x509_parser::time::ASN1Time| UnixMillis(time.timestamp().saturating_mul(1_000));
    Some((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

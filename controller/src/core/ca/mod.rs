//! The controller's own small certificate authority.
//!
//! One authority signs; those before and after it are trusted as well. A successor is made one
//! [`SUCCESSOR_BEFORE_END`] before the newest authority ends and signs only after [`OVERLAP`], so
//! that every agent has been told of it with its renewals, also one that slept as long as an
//! expired certificate may be renewed. Server certificates are made at each start and again at 2/3
//! of their life; their key never leaves memory.

mod leaf;
pub mod store;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use tianqi_common::clock::UnixMillis;
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use leaf::{AgentCertificate, AgentIdentity, AgentRequest, ServerCertificate};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority lives.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3_650 * DAY.as_secs());
/// How long before the end of the newest authority its successor is made.
pub const SUCCESSOR_BEFORE_END: Duration = Duration::from_secs(365 * DAY.as_secs());
/// How long a new authority is only trusted before it signs.
pub const OVERLAP: Duration = Duration::from_secs(220 * DAY.as_secs());
/// How long an expired agent certificate may still ask for a new one.
pub const RENEWABLE_AFTER_END: Duration = Duration::from_secs(180 * DAY.as_secs());
/// How far authorities and server certificates begin in the past, for nodes whose clock is behind.
const BACKDATED: Duration = DAY;

/// How long certificates live. Tests shorten it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// An agent's certificate.
    pub agent: Duration,
    /// The server's certificate.
    pub server: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { agent: 30 * DAY, server: 90 * DAY }
    }
}

/// Why the authority could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A certificate or key could not be made.
    #[error("certificate could not be made")]
    Make(#[source] rcgen::Error),
    /// A certificate request is not usable.
    #[error("certificate request is not usable")]
    BadRequest(#[source] rcgen::Error),
    /// A stored authority cannot be read.
    #[error("stored authority {0} cannot be read")]
    Stored(String),
    /// The peer's certificate does not name a node.
    #[error("certificate does not name a node")]
    NotAnAgent,
    /// There is no authority at all.
    #[error("there is no certificate authority")]
    Empty,
    /// The database failed.
    #[error("the authority's rows could not be read or written")]
    Db(#[source] crate::core::db::DbError),
    /// A key could not be sealed or opened.
    #[error("the authority's key could not be sealed or opened")]
    Seal(#[source] crate::core::seal::SealError),
}

/// One certificate that signs others, with its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    not_before: UnixMillis,
    not_after: UnixMillis,
    created_at: UnixMillis,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority that begins now.
    ///
    /// # Errors
    ///
    /// [`CaError::Make`].
    pub fn generate(now: UnixMillis) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(CaError::Make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Tianqi agents");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(leaf::random_serial());
        params.not_before = date(UnixMillis(now.0 - ms(BACKDATED)));
        params.not_after = date(now.plus(AUTHORITY_LIFE));
        let pem = params.self_signed(&key).map_err(CaError::Make)?.pem();
        Self::read(&pem, &key.serialize_pem(), now)
    }

    /// Reads an authority that was made at `created_at`.
    ///
    /// # Errors
    ///
    /// [`CaError::Stored`] when either text is not what it should be.
    pub fn read(pem: &str, key_pem: &str, created_at: UnixMillis) -> Result<Self, CaError> {
        let unreadable = |what: &str| CaError::Stored(what.to_owned());
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| unreadable("certificate"))?;
        let key = KeyPair::from_pem(key_pem).map_err(|_| unreadable("key"))?;
        let (not_before, not_after) =
            leaf::validity(&certificate).ok_or_else(|| unreadable("validity"))?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|_| unreadable("issuer"))?;
        let certificate_pem = pem.to_owned();
        Ok(Self { certificate, certificate_pem, issuer, not_before, not_after, created_at })
    }

    /// Returns the certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the key, PEM. Only for sealing.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// Returns the SHA-256 of the certificate (DER).
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.certificate).into()
    }
}

/// The authorities, newest first. Never empty.
#[derive(Debug)]
pub struct Ca {
    authorities: Vec<Authority>,
    lifetimes: Lifetimes,
}

impl Ca {
    /// Puts authorities together.
    ///
    /// # Errors
    ///
    /// [`CaError::Empty`].
    pub fn new(mut authorities: Vec<Authority>, lifetimes: Lifetimes) -> Result<Self, CaError> {
        if authorities.is_empty() {
            return Err(CaError::Empty);
        }
        authorities.sort_by_key(|authority| std::cmp::Reverse(authority.created_at));
        Ok(Self { authorities, lifetimes })
    }

    /// Returns how long the certificates made here live.
    #[must_use]
    pub fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    /// Whether it is time to make the next authority.
    #[must_use]
    pub fn needs_successor(&self, now: UnixMillis) -> bool {
        self.authorities
            .iter()
            .all(|authority| authority.not_after < now.plus(SUCCESSOR_BEFORE_END))
    }

    /// Returns the authority that signs: the newest that agents have had time to learn of, else the
    /// oldest that is still valid.
    ///
    /// # Errors
    ///
    /// [`CaError::Empty`] when every authority has ended.
    fn signer(&self, now: UnixMillis) -> Result<&Authority, CaError> {
        let known = |authority: &&Authority| authority.created_at.plus(OVERLAP) <= now;
        let valid = |authority: &&Authority| authority.not_after > now;
        let valid_ones = || self.authorities.iter().filter(valid);
        valid_ones().find(known).or_else(|| valid_ones().next_back()).ok_or(CaError::Empty)
    }

    /// Returns the fingerprint that join tokens carry.
    ///
    /// # Errors
    ///
    /// [`CaError::Empty`] when every authority has ended.
    pub fn fingerprint(&self, now: UnixMillis) -> Result<[u8; 32], CaError> {
        Ok(self.signer(now)?.fingerprint())
    }

    /// Returns the certificates that agents must trust, PEM, newest first.
    #[must_use]
    pub fn trusted_pem(&self) -> String {
        self.authorities.iter().map(Authority::certificate_pem).collect::<Vec<_>>().join("\n")
    }

    /// Returns the certificates that agents' certificates may be signed by.
    #[must_use]
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.authorities.iter().map(|authority| authority.certificate.clone()).collect()
    }
}

fn date(at: UnixMillis) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1_000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

//! PEMs of a node's Docker endpoint: checked, sealed as one JSON, never shown.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tianqi_common::id::NodeId;
use zeroize::Zeroizing;

use super::model::NodePatch;
use crate::core::error::{Problem, Result};
use crate::core::patch::Patch;
use crate::core::seal::Seal;
use crate::core::seal::rotate::SealedColumn;
use crate::core::secret::Secret;

/// Longest PEM, in bytes. Three of them fit into the frame that opens a check.
const PEM_MAX: usize = 64 << 10;

/// The PEMs of one node. Never printed; sealed as JSON.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerTls {
    /// CA that signs the engine's certificate.
    pub ca: Option<String>,
    /// Client certificate.
    pub cert: Option<String>,
    /// Key of the client certificate.
    pub key: Option<String>,
}

impl fmt::Debug for DockerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DockerTls(…)")
    }
}

/// The PEMs of all nodes.
pub const SEALED: SealedColumn =
    SealedColumn { table: "nodes", column: "sealed_docker_tls", bound_to: |id| row(NodeId(id)) };

fn row(node: NodeId) -> String {
    format!("nodes/{node}/docker_tls")
}

impl DockerTls {
    /// Opens what [`DockerTls::seal`] made; nothing was sealed when there is nothing.
    ///
    /// # Errors
    ///
    /// `internal` (500) when it does not open, such as under another master key.
    pub fn open(seal: &Seal, node: NodeId, sealed: Option<&[u8]>) -> Result<Self> {
        let Some(sealed) = sealed else { return Ok(Self::default()) };
        let plain = seal.open(&row(node), sealed).map_err(|error| Problem::internal(&error))?;
        serde_json::from_slice(&plain).map_err(|error| Problem::internal(&error))
    }

    /// Seals the PEMs for the node's row; nothing when there are none.
    ///
    /// # Errors
    ///
    /// `internal` (500) when the cipher refuses.
    pub fn seal(&self, seal: &Seal, node: NodeId) -> Result<Option<Vec<u8>>> {
        if *self == Self::default() {
            return Ok(None);
        }
        let plain = serde_json::to_vec(self).map_err(|error| Problem::internal(&error))?;
        let sealed = seal.seal(&row(node), &Zeroizing::new(plain));
        sealed.map(Some).map_err(|error| Problem::internal(&error))
    }

    /// Applies a change and checks what comes out.
    ///
    /// # Errors
    ///
    /// `bad_pem` (422) with what is wrong. The text itself is never repeated.
    pub fn apply(&mut self, patch: &NodePatch) -> Result<()> {
        let mut changed = self.clone();
        set(&mut changed.ca, &patch.docker_tls_ca, "docker_tls_ca", is_certificates)?;
        set(&mut changed.cert, &patch.docker_tls_cert, "docker_tls_cert", is_certificates)?;
        set(&mut changed.key, &patch.docker_tls_key, "docker_tls_key", is_key)?;
        if changed.cert.is_some() != changed.key.is_some() {
            let detail = "docker_tls_cert and docker_tls_key belong together; give both or neither";
            return Err(Problem::invalid("bad_pem", detail));
        }
        *self = changed;
        Ok(())
    }
}

fn set(
    field: &mut Option<String>,
    patch: &Patch<Secret>,
    name: &str,
    is_good: impl Fn(&str) -> bool,
) -> Result<()> {
    let text = match patch {
        Patch::Leave => return Ok(()),
        Patch::Clear => None,
        Patch::Set(pem) => Some(pem.expose().trim()).filter(|text| !text.is_empty()),
    };
    if let Some(text) = text {
        if text.len() > PEM_MAX {
            let detail = format!("{name} is over {PEM_MAX} bytes");
            return Err(Problem::invalid("bad_pem", detail));
        }
        if !is_good(text) {
            let what = if name == "docker_tls_key" { "one private key" } else { "a certificate" };
            let detail = format!(
                "{name} is not the PEM of {what}; paste the whole file, with its BEGIN and END lines"
            );
            return Err(Problem::invalid("bad_pem", detail));
        }
    }
    *field = text.map(|text| format!("{text}\n"));
    Ok(())
}

fn is_certificates(text: &str) -> bool {
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let parses = certificate.is_ok_and(|der| x509_parser::parse_x509_certificate(&der).is_ok());
        if !parses {
            return false;
        }
        found = true;
    }
    found
}

fn is_key(text: &str) -> bool {
    let mut keys = PrivateKeyDer::pem_slice_iter(text.as_bytes());
    matches!((keys.next(), keys.next()), (Some(Ok(_)), None))
}

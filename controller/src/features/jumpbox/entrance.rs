//! What the API says of the SSH port: whether it is open, where, and by which keys it is known.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tianqi_common::id::InstanceId;

use super::host_key::HostKey;

/// The SSH port as the rest of the controller sees it. It is set once, when the port is bound.
#[derive(Clone, Debug, Default)]
pub struct Entrance(Arc<OnceLock<Bound>>);

#[derive(Debug)]
struct Bound {
    address: SocketAddr,
    host_key: HostKey,
}

impl Entrance {
    /// Says that the port is bound.
    pub(super) fn is_bound(&self, address: SocketAddr, host_key: HostKey) {
        // A second port of one process would be a test's; the first one is meant.
        let _ = self.0.set(Bound { address, host_key });
    }

    /// Returns the port that it listens on; nothing while SSH is off.
    pub(super) fn port(&self) -> Option<u16> {
        self.0.get().map(|bound| bound.address.port())
    }

    /// Returns the public host keys: the jumpbox's, and the instance's, each as a line without a
    /// comment and as a fingerprint. Nothing while SSH is off.
    pub(super) fn keys(&self, instance: InstanceId) -> Option<[PublicKey; 2]> {
        let host_key = &self.0.get()?.host_key;
        let keys = [host_key.key(), host_key.of_instance(instance)];
        Some(keys.map(|key| PublicKey::of(&key)))
    }
}

/// A public host key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    /// As in `known_hosts`, behind the host.
    pub line: String,
    /// `SHA256:` and the hash, as OpenSSH shows it.
    pub fingerprint: String,
}

impl PublicKey {
    fn of(key: &russh::keys::PrivateKey) -> Self {
        let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256).to_string();
        // An ed25519 key always has a line.
        let line = key.public_key().to_openssh().unwrap_or_default().trim().to_owned();
        Self { line, fingerprint }
    }
}

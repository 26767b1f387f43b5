//! How SSH is spoken: modern algorithms alone, and windows that hold a client back.

use std::borrow::Cow;
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

use super::flow::WINDOW;
use crate::config::Jumpbox;

/// Bytes of one packet from a client; what OpenSSH sends at most.
const PACKET: u32 = 32 << 10;
/// A refused try takes this long, whatever was wrong with it. What a login costs is the same for an
/// account that does not exist, so this hides the rest.
const REFUSAL: Duration = Duration::from_millis(300);
/// Tries of one connection, keys that are not known among them. Agents offer several.
const TRIES: usize = 12;
/// Questions without an answer after which a client is gone.
const UNANSWERED: usize = 3;
/// Messages of channels that wait for the connection; when full, the channels wait, and the agents
/// behind them.
const MESSAGES: usize = 32;

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
const MACS: &[mac::Name] =
    &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];
/// Host keys, and in `server-sig-algs` what keys of people may sign with: no SHA-1.
const KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::SkEd25519,
    Algorithm::SkEcdsaSha2NistP256,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// The ways to log in.
pub(super) fn methods() -> MethodSet {
    let methods = [MethodKind::PublicKey, MethodKind::KeyboardInteractive, MethodKind::Password];
    MethodSet::from(&methods[..])
}

/// Speaks with `key` as the host key. The inner server of a jump takes whom the outer one has let in.
pub(super) fn config(key: PrivateKey, rules: &Jumpbox, is_inner: bool) -> Config {
    let methods = if is_inner { MethodSet::from(&[MethodKind::None][..]) } else { methods() };
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Tianqi")),
        methods,
        auth_rejection_time: REFUSAL,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        // Nothing goes through russh's own queue of a channel: the callbacks take everything.
        channel_buffer_size: 1,
        event_buffer_size: MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            key: Cow::Borrowed(KEYS),
            host_key_certificates: Cow::Borrowed(&[]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            compression: Cow::Borrowed(&[compression::NONE]),
        },
        max_auth_attempts: TRIES,
        // Who is silent is asked; who has nothing to do may stay.
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(rules.keep_alive_seconds.into())),
        keepalive_max: UNANSWERED,
        nodelay: true,
        ..Config::default()
    }
}

//! HTTP as bytes on a socket, for what no well-behaved client does.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest wait for the server to answer or to close.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that came until the server closed.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Heard {
    /// Returns the status; nothing when there was no answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok())
    }

    /// Returns status line and headers in small letters.
    #[must_use]
    pub fn head(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase()
    }

    /// Returns the body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.bytes);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or_default()
    }
}

/// Connects from 127.0.0.1.
pub async fn connect(address: &str) -> TcpStream {
    connect_from("127.0.0.1", address).await.expect("a connection")
}

/// Connects from another address of this machine, such as `127.0.0.2`.
///
/// # Errors
///
/// When the port does not take it.
pub async fn connect_from(own: &str, address: &str) -> std::io::Result<TcpStream> {
    let own: IpAddr = own.parse().expect("an address");
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((own, 0)))?;
    socket.connect(address.parse().expect("an address")).await
}

/// Sends bytes and listens until the server closes.
///
/// # Panics
///
/// When it does not close.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> Heard {
    let began = Instant::now();
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    listen(stream, began).await
}

/// Sends bytes slowly, one each `pause`, and listens until the server closes.
///
/// # Panics
///
/// When it does not close.
pub async fn drip(stream: TcpStream, bytes: &[u8], pause: Duration) -> Heard {
    let began = Instant::now();
    let (reader, mut writer) = stream.into_split();
    let bytes = bytes.to_vec();
    let dripping = tokio::spawn(async move {
        for byte in bytes {
            if writer.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    });
    let heard = listen(reader, began).await;
    dripping.abort();
    heard
}

/// Listens until the server closes.
///
/// # Panics
///
/// When it does not close.
pub async fn listen<S: AsyncRead + Unpin>(mut stream: S, began: Instant) -> Heard {
    let mut bytes = Vec::new();
    let read = async {
        // A reset is an end as well.
        while stream.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {}
    };
    let closed = tokio::time::timeout(PATIENCE, read).await;
    assert!(closed.is_ok(), "still open; heard {}", String::from_utf8_lossy(&bytes));
    Heard { bytes, took: began.elapsed() }
}

/// Returns the bytes of a GET that asks to be the last on its connection.
#[must_use]
pub fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
        .into_bytes()
}

/// Connects with TLS as to `localhost`, trusting the certificates of `pem` alone.
///
/// # Errors
///
/// When the server's certificate is another, or it speaks no TLS.
pub async fn connect_tls(address: &str, pem: &str) -> std::io::Result<TlsStream<TcpStream>> {
    shake_hands(connect(address).await, pem).await
}

/// Speaks TLS on a stream, as [`connect_tls`] does.
///
/// # Errors
///
/// When the server's certificate is another, or it speaks no TLS.
pub async fn shake_hands(stream: TcpStream, pem: &str) -> std::io::Result<TlsStream<TcpStream>> {
    crate::install_crypto();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.expect("pem")).expect("root");
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("name");
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    tokio::time::timeout(PATIENCE, handshake).await.expect("the handshake hangs")
}

/// A certificate for `localhost` with its key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate, its own root.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Pair {
    /// Makes a new one.
    #[must_use]
    pub fn make() -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = rcgen::CertificateParams::new(names).expect("names");
        let certificate = params.self_signed(&key).expect("certificate").pem();
        Self { certificate, key: key.serialize_pem() }
    }
}

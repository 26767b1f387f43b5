//! Where a Docker engine is looked for.

use std::fmt;
use std::path::PathBuf;

use super::DockerError;

/// Where a Docker engine listens and how it is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// Certificates, for an engine on another host.
    pub tls: Option<TlsPems>,
}

/// The address of a Docker engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket of this machine.
    Unix(PathBuf),
    /// Another host.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Certificates as PEM. They stay in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsPems {
    /// The CA that signs the engine's certificate; no other is trusted.
    pub ca: String,
    /// The client certificate shown to the engine.
    pub cert: String,
    /// Its key. Never printed.
    pub key: String,
}

impl Endpoint {
    /// Reads `unix:///path` or `tcp://host:port` and the three PEMs, which are given together or
    /// not at all; empty ones count as not given.
    ///
    /// # Errors
    ///
    /// [`DockerError::Endpoint`] with what to write instead.
    pub fn parse(
        url: &str,
        ca: Option<&str>,
        cert: Option<&str>,
        key: Option<&str>,
    ) -> Result<Self, DockerError> {
        let address = Address::parse(url)?;
        let given = |pem: Option<&str>| pem.filter(|pem| !pem.trim().is_empty()).map(str::to_owned);
        let tls = match (given(ca), given(cert), given(key)) {
            (Some(ca), Some(cert), Some(key)) => Some(TlsPems { ca, cert, key }),
            (None, None, None) => None,
            _ => {
                return Err(DockerError::Endpoint(
                    "docker TLS needs all three of CA, certificate and key".to_owned(),
                ));
            }
        };
        if tls.is_some() && matches!(address, Address::Unix(_)) {
            return Err(DockerError::Endpoint(
                "docker TLS goes with a tcp:// endpoint, not with a unix socket".to_owned(),
            ));
        }
        Ok(Self { address, tls })
    }

    /// Returns whether the engine is on this machine: only a unix socket says so.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.address, Address::Unix(_))
    }

    /// Returns whether anybody on the way can read and change what is said.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        !self.is_local() && self.tls.is_none()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .field("has_tls", &self.tls.is_some())
            .finish()
    }
}

impl Address {
    fn parse(url: &str) -> Result<Self, DockerError> {
        let refuse = || {
            DockerError::Endpoint(format!(
                "docker endpoint {url:?} is neither unix:///path nor tcp://host:port"
            ))
        };
        if let Some(path) = url.strip_prefix("unix://") {
            return if path.starts_with('/') && !path.contains('\0') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(refuse())
            };
        }
        let rest = url.strip_prefix("tcp://").ok_or_else(refuse)?;
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refuse)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let host = match bare {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            None if !host.is_empty() && host.chars().all(is_name) => host,
            _ => return Err(refuse()),
        };
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_reads_what_docker_reads() {
        for url in ["unix:///var/run/docker.sock", "tcp://gpu-07:2376", "tcp://[fd00::7]:2375"] {
            assert_eq!(Endpoint::parse(url, None, None, None).unwrap().to_string(), url);
        }
        assert!(Endpoint::parse("tcp://h:2375", None, Some(""), None).unwrap().is_in_clear());
    }

    #[test]
    fn endpoint_refuses_nonsense_with_a_hint() {
        for url in [
            "",
            "unix://run/docker.sock",
            "tcp://",
            "tcp://h",
            "tcp://h:0",
            "tcp://a b:1",
            "tcp://h:99999",
            "http://h:1",
            "tcp://[nonsense]:1",
            "tcp://h/../x:1",
        ] {
            let error = Endpoint::parse(url, None, None, None).unwrap_err().to_string();
            assert!(error.contains("unix:///path"), "{url}: {error}");
        }
    }

    #[test]
    fn endpoint_refuses_half_of_the_certificates_and_never_prints_the_key() {
        assert!(Endpoint::parse("tcp://h:1", Some("ca"), None, None).is_err());
        assert!(Endpoint::parse("unix:///s", Some("a"), Some("b"), Some("c")).is_err());

        let whole = Endpoint::parse("tcp://h:1", Some("ca"), Some("cert"), Some("sesame")).unwrap();
        assert!(!format!("{whole:?} {whole}").contains("sesame"));
    }
}

//! What an admin may set on a node, checked.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use tianqi_common::wire::observed::DockerStatus;
use utoipa::{IntoParams, ToSchema};

use super::pem::PemText;
use crate::core::error::{Problem, Result};

/// Longest name of a node, in characters.
const NAME_MAX: usize = 64;
/// Longest region, in characters.
const REGION_MAX: usize = 64;
/// Longest account name of a machine, in characters.
const SSH_USER_MAX: usize = 32;
/// Longest remark, in characters.
const REMARK_MAX: usize = 1_000;
/// Longest path or endpoint, in bytes.
const PATH_MAX: usize = 500;

/// Which nodes are listed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct NodeFilter {
    /// Part of the name.
    pub name: Option<String>,
    /// Part of the region.
    pub region: Option<String>,
    /// Part of the public address.
    pub public_ip: Option<String>,
    /// Part of the private address.
    pub private_ip: Option<String>,
    /// Part of the model of a card that is present.
    pub gpu_model: Option<String>,
    /// Whether the node is on offer.
    pub listed: Option<bool>,
    /// State of its Docker engine.
    pub docker_status: Option<DockerWord>,
    /// Whether its agent is heard.
    pub online: Option<bool>,
}

/// State of a node's Docker engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DockerWord {
    /// It answers.
    Connected,
    /// It does not.
    Failed,
    /// Nobody knows: the agent is not connected, or has not tried.
    Unknown,
}

impl DockerWord {
    /// Returns the word stored in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl From<DockerStatus> for DockerWord {
    fn from(status: DockerStatus) -> Self {
        match status {
            DockerStatus::Connected => Self::Connected,
            DockerStatus::Failed => Self::Failed,
            DockerStatus::Unknown => Self::Unknown,
        }
    }
}

/// Tells a field that is null (clear it) from one that is left out (keep it).
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// A change of a node. What is left out stays; null clears.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    /// 1 to 64 letters, digits, spaces, `-`, `_` and `.`; unique.
    pub name: Option<String>,
    /// At most 64 characters.
    pub region: Option<String>,
    /// An IP address, or empty.
    pub public_ip: Option<String>,
    /// An IP address, or empty.
    pub private_ip: Option<String>,
    /// 1 to 65535.
    pub ssh_port: Option<u16>,
    /// At most 32 letters, digits, `-`, `_` and `.`; may be empty.
    pub ssh_user: Option<String>,
    /// At most 1000 characters.
    pub remark: Option<String>,
    /// Whether the node is on offer.
    pub listed: Option<bool>,
    /// Directory of the HAMi-core library on the node; null for the agent's own.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub hami_dir: Option<Option<String>>,
    /// `unix:///path` or `tcp://host:port`; null for the agent's own.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub docker_endpoint: Option<Option<String>>,
    /// PEM of the CA that signs the engine's certificate. Never returned.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub docker_tls_ca: Option<Option<PemText>>,
    /// PEM of the client certificate shown to the engine. Never returned.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub docker_tls_cert: Option<Option<PemText>>,
    /// PEM of the client certificate's key. Never returned.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub docker_tls_key: Option<Option<PemText>>,
}

/// What an admin has set, without the PEMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFields {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub region: String,
    /// An IP address, or empty.
    pub public_ip: String,
    /// An IP address, or empty.
    pub private_ip: String,
    /// Port of the machine's own SSH server.
    pub ssh_port: u16,
    /// Account on the machine; may be empty.
    pub ssh_user: String,
    /// Anything else.
    pub remark: String,
    /// Whether it is on offer.
    pub listed: bool,
    /// Directory of the HAMi-core library.
    pub hami_dir: Option<String>,
    /// Docker endpoint.
    pub docker_endpoint: Option<String>,
}

impl NodePatch {
    /// Whether the change touches what the agent is told.
    #[must_use]
    pub fn touches_settings(&self) -> bool {
        self.hami_dir.is_some() || self.docker_endpoint.is_some() || self.touches_tls()
    }

    /// Whether the change touches a PEM.
    #[must_use]
    pub fn touches_tls(&self) -> bool {
        self.docker_tls_ca.is_some()
            || self.docker_tls_cert.is_some()
            || self.docker_tls_key.is_some()
    }

    /// Returns the names of the fields given, for the audit trail.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let given = [
            ("name", self.name.is_some()),
            ("region", self.region.is_some()),
            ("public_ip", self.public_ip.is_some()),
            ("private_ip", self.private_ip.is_some()),
            ("ssh_port", self.ssh_port.is_some()),
            ("ssh_user", self.ssh_user.is_some()),
            ("remark", self.remark.is_some()),
            ("listed", self.listed.is_some()),
            ("hami_dir", self.hami_dir.is_some()),
            ("docker_endpoint", self.docker_endpoint.is_some()),
            ("docker_tls_ca", self.docker_tls_ca.is_some()),
            ("docker_tls_cert", self.docker_tls_cert.is_some()),
            ("docker_tls_key", self.docker_tls_key.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    /// Applies the change to `fields`, all of it or nothing.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) with what to type instead.
    pub fn apply(&self, fields: &mut NodeFields) -> Result<()> {
        let mut changed = fields.clone();
        set(&mut changed.name, self.name.as_deref(), check_name)?;
        set(&mut changed.region, self.region.as_deref(), |text| {
            check_text("region", text, REGION_MAX)
        })?;
        set(&mut changed.public_ip, self.public_ip.as_deref(), |text| check_ip("public_ip", text))?;
        set(&mut changed.private_ip, self.private_ip.as_deref(), |text| {
            check_ip("private_ip", text)
        })?;
        set(&mut changed.ssh_user, self.ssh_user.as_deref(), check_ssh_user)?;
        set(&mut changed.remark, self.remark.as_deref(), check_remark)?;
        if let Some(port) = self.ssh_port {
            if port == 0 {
                return Err(bad("ssh_port is 1 to 65535"));
            }
            changed.ssh_port = port;
        }
        changed.listed = self.listed.unwrap_or(changed.listed);
        if let Some(dir) = &self.hami_dir {
            changed.hami_dir = checked(dir.as_deref(), check_dir)?;
        }
        if let Some(endpoint) = &self.docker_endpoint {
            changed.docker_endpoint = checked(endpoint.as_deref(), check_endpoint)?;
        }
        *fields = changed;
        Ok(())
    }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::invalid("bad_field", detail)
}

fn set(
    field: &mut String,
    text: Option<&str>,
    check: impl Fn(&str) -> Result<String>,
) -> Result<()> {
    if let Some(text) = text {
        *field = check(text)?;
    }
    Ok(())
}

/// An empty text clears, like null.
fn checked(text: Option<&str>, check: impl Fn(&str) -> Result<()>) -> Result<Option<String>> {
    match text.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => check(text).map(|()| Some(text.to_owned())),
        None => Ok(None),
    }
}

fn check_name(text: &str) -> Result<String> {
    let name = text.trim();
    let length = name.chars().count();
    if length == 0 || length > NAME_MAX {
        let detail = format!("name has {length} characters; 1 to {NAME_MAX} are allowed");
        return Err(bad(detail));
    }
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if let Some(found) = name.chars().find(|c| !is_allowed(*c)) {
        let detail =
            format!("name holds {found:?}; letters, digits, spaces, '-', '_' and '.' are allowed");
        return Err(bad(detail));
    }
    if !name.chars().any(char::is_alphanumeric) {
        return Err(bad("name needs a letter or a digit"));
    }
    Ok(name.to_owned())
}

fn check_text(field: &str, text: &str, max: usize) -> Result<String> {
    let text = text.trim();
    let length = text.chars().count();
    if length > max {
        return Err(bad(format!("{field} has {length} characters; at most {max} are allowed")));
    }
    if text.chars().any(char::is_control) {
        return Err(bad(format!("{field} holds a control character; take it out")));
    }
    Ok(text.to_owned())
}

fn check_remark(text: &str) -> Result<String> {
    // Lines are fine in a remark.
    check_text("remark", &text.replace(['\n', '\r', '\t'], " "), REMARK_MAX)?;
    Ok(text.trim().to_owned())
}

fn check_ip(field: &str, text: &str) -> Result<String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(String::new());
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        bad(format!("{field} {shown:?} is not an IP address, such as 10.0.0.7; it may be empty"))
    })?;
    Ok(ip.to_string())
}

fn check_ssh_user(text: &str) -> Result<String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() > SSH_USER_MAX || text.starts_with('-') || !text.chars().all(is_allowed) {
        let detail = format!(
            "ssh_user is at most {SSH_USER_MAX} letters, digits, '-', '_' and '.', and does not begin with '-'"
        );
        return Err(bad(detail));
    }
    Ok(text.to_owned())
}

fn check_dir(text: &str) -> Result<()> {
    let is_plain = text.starts_with('/')
        && text.len() <= PATH_MAX
        && !text.split('/').any(|part| part == ".." || part == ".")
        && !text.chars().any(char::is_control);
    if is_plain {
        return Ok(());
    }
    Err(bad(format!(
        "hami_dir is an absolute path without '.' and '..', at most {PATH_MAX} bytes, such as /root/HAMi-core/build"
    )))
}

fn check_endpoint(text: &str) -> Result<()> {
    let is_good = if let Some(path) = text.strip_prefix("unix://") {
        path.len() > 1 && check_dir(path).is_ok()
    } else if let Some(address) = text.strip_prefix("tcp://") {
        is_host_and_port(address)
    } else {
        false
    };
    if is_good && text.len() <= PATH_MAX {
        return Ok(());
    }
    Err(bad("docker_endpoint is unix:///path/to/socket or tcp://host:port"))
}

fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_port = port.parse::<u16>().is_ok_and(|port| port != 0)
        && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            host.len() <= 253
                && host.starts_with(|c: char| c.is_ascii_alphanumeric())
                && host.chars().all(is_allowed)
        }
    };
    is_port && is_host
}

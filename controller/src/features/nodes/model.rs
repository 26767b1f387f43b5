//! What an admin may set on a node, checked.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tianqi_common::wire::observed::DockerStatus;
use utoipa::{IntoParams, ToSchema};

use crate::core::error::{Problem, Result};
use crate::core::patch::Patch;
use crate::core::secret::Secret;
use crate::core::text;

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

/// A change of a node. What is left out stays; null clears.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    /// 1 to 64 letters, digits, spaces, `-`, `_` and `.`; unique.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Patch<String>,
    /// At most 64 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub region: Patch<String>,
    /// An IP address, or empty.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub public_ip: Patch<String>,
    /// An IP address, or empty.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub private_ip: Patch<String>,
    /// 1 to 65535.
    #[serde(default)]
    #[schema(value_type = Option<u16>)]
    pub ssh_port: Patch<u16>,
    /// At most 32 letters, digits, `-`, `_` and `.`; may be empty.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub ssh_user: Patch<String>,
    /// At most 1000 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub remark: Patch<String>,
    /// Whether the node is on offer.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub listed: Patch<bool>,
    /// Directory of the HAMi-core library on the node; null for the agent's own.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub hami_dir: Patch<String>,
    /// `unix:///path` or `tcp://host:port`; null for the agent's own.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub docker_endpoint: Patch<String>,
    /// PEM of the CA that signs the engine's certificate. Never returned.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub docker_tls_ca: Patch<Secret>,
    /// PEM of the client certificate shown to the engine. Never returned.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub docker_tls_cert: Patch<Secret>,
    /// PEM of the client certificate's key. Never returned.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub docker_tls_key: Patch<Secret>,
}

/// What an admin has set, without the PEMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
        is_given(&self.hami_dir) || is_given(&self.docker_endpoint) || self.touches_tls()
    }

    /// Whether the change touches a PEM.
    #[must_use]
    pub fn touches_tls(&self) -> bool {
        is_given(&self.docker_tls_ca)
            || is_given(&self.docker_tls_cert)
            || is_given(&self.docker_tls_key)
    }

    /// Applies the change to `fields`, all of it or nothing.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) with what to type instead.
    pub fn apply(&self, fields: &mut NodeFields) -> Result<()> {
        let mut new = fields.clone();
        set(&mut new.name, &self.name, "name", |it| check_name(it))?;
        set(&mut new.region, &self.region, "region", |it| text::line("region", it, 0, REGION_MAX))?;
        set(&mut new.public_ip, &self.public_ip, "public_ip", |it| check_ip("public_ip", it))?;
        set(&mut new.private_ip, &self.private_ip, "private_ip", |it| check_ip("private_ip", it))?;
        set(&mut new.ssh_port, &self.ssh_port, "ssh_port", |it| check_port(*it))?;
        set(&mut new.ssh_user, &self.ssh_user, "ssh_user", |it| check_ssh_user(it))?;
        set(&mut new.remark, &self.remark, "remark", |it| text::block("remark", it, REMARK_MAX))?;
        set(&mut new.listed, &self.listed, "listed", |_| Ok(()))?;
        set_or_clear(&mut new.hami_dir, &self.hami_dir, check_dir)?;
        set_or_clear(&mut new.docker_endpoint, &self.docker_endpoint, check_endpoint)?;
        *fields = new;
        Ok(())
    }
}

fn is_given<T>(patch: &Patch<T>) -> bool {
    !matches!(patch, Patch::Leave)
}

fn set<T: Clone>(
    field: &mut T,
    patch: &Patch<T>,
    name: &str,
    check: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    if let Patch::Set(new) = patch {
        check(new)?;
    }
    *field = patch.clone().over_required(name, field.clone())?;
    Ok(())
}

/// An empty text clears, like null.
fn set_or_clear(
    field: &mut Option<String>,
    patch: &Patch<String>,
    check: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    if let Patch::Set(new) = patch
        && !new.is_empty()
    {
        check(new)?;
    }
    *field = patch.clone().over(field.take()).filter(|text| !text.is_empty());
    Ok(())
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::invalid("bad_field", detail)
}

fn check_name(name: &str) -> Result<()> {
    text::line("name", name, 1, NAME_MAX)?;
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if let Some(found) = name.chars().find(|c| !is_allowed(*c)) {
        let detail =
            format!("name holds {found:?}; letters, digits, spaces, '-', '_' and '.' are allowed");
        return Err(bad(detail));
    }
    if !name.starts_with(char::is_alphanumeric) {
        return Err(bad("name begins with a letter or a digit"));
    }
    Ok(())
}

fn check_ip(field: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let shown: String = text.chars().take(64).collect();
    Err(bad(format!("{field} {shown:?} is not an IP address, such as 10.0.0.7; it may be empty")))
}

fn check_port(port: u16) -> Result<()> {
    if port == 0 { Err(bad("ssh_port is 1 to 65535")) } else { Ok(()) }
}

fn check_ssh_user(text: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() > SSH_USER_MAX || text.starts_with('-') || !text.chars().all(is_allowed) {
        let detail = format!(
            "ssh_user is at most {SSH_USER_MAX} letters, digits, '-', '_' and '.', and does not begin with '-'"
        );
        return Err(bad(detail));
    }
    Ok(())
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

//! What a forward is, and what may be said of one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tianqi_common::id::{ForwardId, InstanceId, UserId};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::view::State;
use crate::config;
use crate::core::error::{Problem, Result};
use crate::core::patch::Patch;
use crate::core::text;
use crate::core::timestamp::Timestamp;

const TEXT_MAX: usize = 1_000;
const SOURCES_MAX: usize = 64;
const CONNECTIONS_MAX: u32 = 1_000_000;
const UDP_IDLE_MAX: u32 = 86_400;
/// Most forwards that are deleted at once.
pub(super) const DELETE_MANY_MAX: usize = 100;

/// What travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    /// TCP connections.
    #[default]
    Tcp,
    /// UDP datagrams.
    Udp,
}

impl Protocol {
    /// Returns the word stored in the database.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where a forward leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An address that the controller reaches by itself.
    Host(SocketAddr),
    /// A port inside an instance, reached through its node's agent.
    Instance(InstanceId, u16),
}

/// A forward as the listeners need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub id: ForwardId,
    pub owner: UserId,
    pub listen: SocketAddr,
    pub protocol: Protocol,
    pub target: Target,
    pub enabled: bool,
    pub allowed: Vec<IpNet>,
    pub max_connections: u32,
    pub udp_idle: Duration,
    pub generation: i64,
}

impl Rule {
    /// Whether what listens for `self` may go on for `other`: the way and who may take it are the same.
    pub(super) fn is_same_way(&self, other: &Self) -> bool {
        let way = |rule: &Self| (rule.owner, rule.listen, rule.protocol, rule.target);
        way(self) == way(other) && self.allowed == other.allowed
    }
}

/// A new forward: to `target_ip` and `target_port`, or to `instance_id` and `instance_port`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateForward {
    /// The address to listen on: one of this machine's, `0.0.0.0` or `::` (IPv6 alone).
    #[schema(value_type = String)]
    pub listen_ip: IpAddr,
    /// The port to listen on.
    pub listen_port: u16,
    /// `tcp` (the default) or `udp`.
    #[serde(default)]
    pub protocol: Protocol,
    /// The address it leads to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub target_ip: Option<IpAddr>,
    /// The port at that address.
    #[serde(default)]
    pub target_port: Option<u16>,
    /// The instance it leads into; no address of it needs to be reachable.
    #[serde(default)]
    pub instance_id: Option<Uuid>,
    /// The port on the instance's own 127.0.0.1.
    #[serde(default)]
    pub instance_port: Option<u16>,
    /// Whether it listens; true when left out.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// At most 1 000 characters.
    #[serde(default)]
    pub description: String,
    /// At most 1 000 characters.
    #[serde(default)]
    pub remark: String,
    /// Networks that may connect, such as `10.0.0.0/8`; everybody when empty. At most 64.
    #[serde(default)]
    pub allowed_sources: Vec<String>,
    /// Most connections, or flows of UDP, at once; what the configuration says when left out.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Seconds without a datagram after which a UDP flow ends.
    #[serde(default)]
    pub udp_idle_s: Option<u32>,
}

/// A change of a forward: what is left out stays. Another kind of target is given whole.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchForward {
    /// Another address to listen on.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub listen_ip: Patch<IpAddr>,
    /// Another port to listen on.
    #[serde(default)]
    #[schema(value_type = Option<u16>)]
    pub listen_port: Patch<u16>,
    /// The other protocol.
    #[serde(default)]
    #[schema(value_type = Option<Protocol>)]
    pub protocol: Patch<Protocol>,
    /// Another address to lead to; null when it leads into an instance from now on.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub target_ip: Patch<IpAddr>,
    /// Another port there.
    #[serde(default)]
    #[schema(value_type = Option<u16>)]
    pub target_port: Patch<u16>,
    /// Another instance to lead into; null when it leads to an address from now on.
    #[serde(default)]
    #[schema(value_type = Option<Uuid>)]
    pub instance_id: Patch<Uuid>,
    /// Another port in it.
    #[serde(default)]
    #[schema(value_type = Option<u16>)]
    pub instance_port: Patch<u16>,
    /// On or off.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub enabled: Patch<bool>,
    /// Another description.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// Another remark.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub remark: Patch<String>,
    /// Other networks that may connect.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    pub allowed_sources: Patch<Vec<String>>,
    /// Another limit of connections.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    pub max_connections: Patch<u32>,
    /// Another idle time of UDP flows, in seconds.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    pub udp_idle_s: Patch<u32>,
}

/// On or off.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Switch {
    /// Whether it listens.
    pub enabled: bool,
}

/// Which forwards are wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ForwardQuery {
    /// Part of the address that is listened on.
    pub listen_ip: Option<String>,
    /// The port that is listened on.
    pub listen_port: Option<u16>,
    /// `tcp` or `udp`.
    #[param(value_type = Option<String>)]
    pub protocol: Option<Protocol>,
    /// Part of the address, or of the instance's name, that it leads to.
    pub target: Option<String>,
    /// On or off.
    pub enabled: Option<bool>,
    /// Whose, by the account's id.
    pub owner: Option<Uuid>,
    /// `listening`, `stopped` or `error`.
    #[param(value_type = Option<String>)]
    pub state: Option<State>,
    /// Page, from 1.
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
    /// `created_at` or `listen_port`; `-` before it turns the order. Newest first when left out.
    pub sort: Option<String>,
}

/// Everything of a row that may change, checked but for what other rows and rights say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fields {
    pub listen_ip: IpAddr,
    pub listen_port: u16,
    pub protocol: Protocol,
    pub target_ip: Option<IpAddr>,
    pub target_port: Option<u16>,
    pub instance_id: Option<Uuid>,
    pub instance_port: Option<u16>,
    pub enabled: bool,
    pub description: String,
    pub remark: String,
    pub allowed_sources: Vec<String>,
    pub max_connections: u32,
    pub udp_idle_s: u32,
}

/// A forward.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Forward {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub owner_id: Uuid,
    /// The owner's name.
    pub owner_name: String,
    /// Where it listens.
    pub listen_ip: String,
    /// On which port.
    pub listen_port: u16,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// The address it leads to; null when it leads into an instance.
    pub target_ip: Option<String>,
    /// The port there.
    pub target_port: Option<u16>,
    /// The instance it leads into; null when it leads to an address.
    pub instance_id: Option<Uuid>,
    /// The instance's name.
    pub instance_name: Option<String>,
    /// The port in it.
    pub instance_port: Option<u16>,
    /// Whether it should listen.
    pub enabled: bool,
    /// For people.
    pub description: String,
    /// For people.
    pub remark: String,
    /// Networks that may connect; everybody when empty.
    pub allowed_sources: Vec<String>,
    /// Most connections, or flows of UDP, at once.
    pub max_connections: u32,
    /// Seconds without a datagram after which a UDP flow ends.
    pub udp_idle_s: u32,
    /// Grows with every change.
    pub generation: i64,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// How it stands now.
    pub live: super::view::LiveView,
}

fn yes() -> bool {
    true
}

impl CreateForward {
    /// Fills in what was left out and checks every field by itself.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) naming the field and what to write.
    pub(super) fn check(self, config: &config::Forwards) -> Result<Fields> {
        let fields = Fields {
            listen_ip: self.listen_ip,
            listen_port: self.listen_port,
            protocol: self.protocol,
            target_ip: self.target_ip,
            target_port: self.target_port,
            instance_id: self.instance_id,
            instance_port: self.instance_port,
            enabled: self.enabled,
            description: self.description,
            remark: self.remark,
            allowed_sources: self.allowed_sources,
            max_connections: self.max_connections.unwrap_or(config.rule_connections),
            udp_idle_s: self.udp_idle_s.unwrap_or(config.udp_idle_seconds),
        };
        fields.checked()
    }
}

impl Fields {
    /// Lays `patch` over these fields and checks the result.
    ///
    /// # Errors
    ///
    /// `bad_field` (422).
    pub(super) fn patched(self, patch: PatchForward) -> Result<Self> {
        let fields = Self {
            listen_ip: patch.listen_ip.over_required("listen_ip", self.listen_ip)?,
            listen_port: patch.listen_port.over_required("listen_port", self.listen_port)?,
            protocol: patch.protocol.over_required("protocol", self.protocol)?,
            target_ip: patch.target_ip.over(self.target_ip),
            target_port: patch.target_port.over(self.target_port),
            instance_id: patch.instance_id.over(self.instance_id),
            instance_port: patch.instance_port.over(self.instance_port),
            enabled: patch.enabled.over_required("enabled", self.enabled)?,
            description: patch.description.over_required("description", self.description)?,
            remark: patch.remark.over_required("remark", self.remark)?,
            allowed_sources: patch
                .allowed_sources
                .over_required("allowed_sources", self.allowed_sources)?,
            max_connections: patch
                .max_connections
                .over_required("max_connections", self.max_connections)?,
            udp_idle_s: patch.udp_idle_s.over_required("udp_idle_s", self.udp_idle_s)?,
        };
        fields.checked()
    }

    /// Writes addresses and networks in one way, so that equal ones are equal texts.
    fn checked(mut self) -> Result<Self> {
        self.listen_ip = self.listen_ip.to_canonical();
        self.target_ip = self.target_ip.map(|ip| ip.to_canonical());
        port("listen_port", self.listen_port)?;
        self.target()?;
        text::block("description", &self.description, TEXT_MAX)?;
        text::block("remark", &self.remark, TEXT_MAX)?;
        number("max_connections", self.max_connections, CONNECTIONS_MAX)?;
        number("udp_idle_s", self.udp_idle_s, UDP_IDLE_MAX)?;
        if self.allowed_sources.len() > SOURCES_MAX {
            return Err(bad(format!("allowed_sources has at most {SOURCES_MAX} networks")));
        }
        let networks = networks(&self.allowed_sources)?;
        self.allowed_sources = networks.iter().map(ToString::to_string).collect();
        Ok(self)
    }

    /// Returns where it listens.
    pub(super) fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.listen_ip, self.listen_port)
    }

    /// Returns where it leads.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) when it is neither an address and a port nor an instance and a port.
    pub(super) fn target(&self) -> Result<Target> {
        match (self.target_ip, self.target_port, self.instance_id, self.instance_port) {
            (Some(ip), Some(at), None, None) => {
                Ok(Target::Host(SocketAddr::new(ip, port("target_port", at)?)))
            }
            (None, None, Some(instance), Some(at)) => {
                Ok(Target::Instance(InstanceId(instance), port("instance_port", at)?))
            }
            _ => Err(bad(
                "a forward leads to target_ip and target_port, or to instance_id and instance_port; set one of the pairs",
            )),
        }
    }

    /// Returns the forward as the listeners need it.
    ///
    /// # Errors
    ///
    /// `bad_field` (422) when the fields were not checked.
    pub(super) fn rule(&self, id: ForwardId, owner: UserId, generation: i64) -> Result<Rule> {
        Ok(Rule {
            id,
            owner,
            listen: self.listen(),
            protocol: self.protocol,
            target: self.target()?,
            enabled: self.enabled,
            allowed: networks(&self.allowed_sources)?,
            max_connections: self.max_connections,
            udp_idle: Duration::from_secs(self.udp_idle_s.into()),
            generation,
        })
    }
}

/// Reads networks; an address stands for itself alone.
fn networks(texts: &[String]) -> Result<Vec<IpNet>> {
    let read = |text: &String| match text.trim().parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address.to_canonical())),
        Err(_) => text.trim().parse::<IpNet>().map(|network| network.trunc()).map_err(|_| {
            bad(format!("allowed_sources: {text:?} is no network, such as 10.0.0.0/8"))
        }),
    };
    texts.iter().map(read).collect()
}

fn port(field: &str, port: u16) -> Result<u16> {
    if port == 0 { Err(bad(format!("{field} is 1 to 65535"))) } else { Ok(port) }
}

fn number(field: &str, number: u32, most: u32) -> Result<()> {
    let is_fine = (1..=most).contains(&number);
    if is_fine { Ok(()) } else { Err(bad(format!("{field} is 1 to {most}, not {number}"))) }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::invalid("bad_field", detail)
}

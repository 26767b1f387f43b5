//! How a forward stands now, as it is answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::timestamp::Timestamp;

/// How a forward stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// It takes connections in.
    Listening,
    /// It is off.
    #[default]
    Stopped,
    /// It is on and does not listen; the reason says why. It is tried again by itself.
    Error,
}

/// How a forward stands now and what it has carried since the controller started.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(super) struct LiveView {
    /// `listening`: it takes connections in. `stopped`: it is off. `error`: it is on and does not
    /// listen, for `reason`; it is tried again by itself.
    pub state: State,
    /// Why it does not listen; empty when it does, or when it is simply off.
    pub reason: String,
    /// Connections, or flows of UDP, that are open.
    pub connections: u64,
    /// Connections, or flows of UDP, since the controller started.
    pub total_connections: u64,
    /// Connections and flows that were turned away, by the list of sources or by a limit.
    pub refused_connections: u64,
    /// Bytes from clients to the target.
    pub bytes_in: u64,
    /// Bytes from the target to clients.
    pub bytes_out: u64,
    /// What went wrong last; null when nothing did.
    pub last_error: Option<String>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_error_at: Option<Timestamp>,
}

/// All forwards that the caller may see, in numbers.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(super) struct Totals {
    /// Rules.
    pub rules: i64,
    /// Rules that are on.
    pub enabled: i64,
    /// Rules that listen.
    pub listening: i64,
    /// Rules that are on and do not listen.
    pub failed: i64,
    /// Connections and flows that are open.
    pub connections: u64,
    /// Bytes from clients to targets since the controller started.
    pub bytes_in: u64,
    /// Bytes from targets to clients since the controller started.
    pub bytes_out: u64,
}

/// An address of the controller's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Address {
    /// The address.
    pub address: String,
    /// Its network card; empty for `0.0.0.0`, `::`, and what the configuration names.
    pub interface: String,
}

/// Where the caller may listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Addresses {
    /// Addresses. For whoever may forward to any address: those of this machine, and `0.0.0.0` and
    /// `::` for all of them.
    pub addresses: Vec<Address>,
    /// Ports, such as `20000-29999`; empty when there are none.
    pub ports: String,
    /// Whether the caller may forward to any address, not into own instances alone.
    pub any_target: bool,
}

//! `[jumpbox]`: the SSH port.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// `[jumpbox]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jumpbox {
    /// Whether people may come in by SSH.
    pub enabled: bool,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The `HOST` or `HOST:PORT` that people type, shown in the menu's hints.
    pub public_address: Option<String>,
    /// The host key (OpenSSH, ed25519); made at the first start. `<data_dir>/jumpbox_host_key` when
    /// left out.
    pub host_key: Option<PathBuf>,
    /// Shown to everybody before they log in; empty for nothing.
    pub banner: String,
    /// Most connections at once.
    pub connections: u32,
    /// Most connections at once on which nobody has logged in yet.
    pub unauthenticated: u32,
    /// The same of one address.
    pub unauthenticated_per_address: u32,
    /// Most connections of one account.
    pub sessions_per_account: u32,
    /// Most channels of one connection.
    pub channels_per_connection: u32,
    /// Seconds within which somebody must have logged in.
    pub login_seconds: u32,
    /// Minutes without a byte either way after which a connection ends; 0 for never.
    pub idle_minutes: u32,
    /// Hours after which a connection ends; 0 for as long as its session lasts.
    pub absolute_hours: u32,
    /// Seconds of silence after which the client is asked whether it is there.
    pub keep_alive_seconds: u32,
}

impl Default for Jumpbox {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([0, 0, 0, 0], 2_026)),
            public_address: None,
            host_key: None,
            banner: String::new(),
            connections: 1_024,
            unauthenticated: 128,
            unauthenticated_per_address: 32,
            sessions_per_account: 50,
            channels_per_connection: 64,
            login_seconds: 60,
            idle_minutes: 0,
            absolute_hours: 0,
            keep_alive_seconds: 30,
        }
    }
}

impl Jumpbox {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            ("jumpbox.connections", self.connections, 1..=100_000),
            ("jumpbox.unauthenticated", self.unauthenticated, 1..=100_000),
            ("jumpbox.unauthenticated_per_address", self.unauthenticated_per_address, 1..=100_000),
            ("jumpbox.sessions_per_account", self.sessions_per_account, 1..=10_000),
            ("jumpbox.channels_per_connection", self.channels_per_connection, 1..=1_000),
            ("jumpbox.login_seconds", self.login_seconds, 1..=600),
            ("jumpbox.idle_minutes", self.idle_minutes, 0..=100_000),
            ("jumpbox.absolute_hours", self.absolute_hours, 0..=100_000),
            ("jumpbox.keep_alive_seconds", self.keep_alive_seconds, 1..=3_600),
        ];
        for (key, value, allowed) in rules {
            if !allowed.contains(&value) {
                let problem = format!("must be {} to {}", allowed.start(), allowed.end());
                return Err(ConfigError::Invalid { key, problem });
            }
        }
        if self.banner.len() > 4_096 {
            let problem = "has at most 4096 bytes".to_owned();
            return Err(ConfigError::Invalid { key: "jumpbox.banner", problem });
        }
        Ok(())
    }
}

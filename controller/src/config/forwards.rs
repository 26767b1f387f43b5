//! `[forwards]`: ports that lead somewhere.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::ConfigError;
use super::identity::within;

/// `[forwards]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forwards {
    /// Off, no rule listens, whatever it says.
    pub enabled: bool,
    /// Addresses that people who may not forward to any address may listen on.
    pub user_addresses: Vec<IpAddr>,
    /// Ports that they may listen on; without any they may not.
    pub user_ports: PortRange,
    /// Most rules of one such account.
    pub user_rules: u32,
    /// Ports that no rule may listen on, besides those of the console and of the agents.
    pub reserved_ports: Vec<u16>,
    /// Most TCP connections of all rules together.
    pub connections: u32,
    /// Most connections or flows of one rule that does not say.
    pub rule_connections: u32,
    /// Most UDP flows of all rules together.
    pub udp_flows: u32,
    /// Seconds that reaching a target may take.
    pub connect_seconds: u32,
    /// Seconds without a byte after which a TCP connection ends; 0 for never.
    pub tcp_idle_seconds: u32,
    /// Seconds without a datagram after which a UDP flow of a rule that does not say ends.
    pub udp_idle_seconds: u32,
    /// Whether link-local addresses, among them the metadata services of clouds, may be targets.
    pub link_local_targets: bool,
}

/// Ports from one to another, written `20000-29999`, or none at all, written as an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRange(Option<RangeInclusive<u16>>);

impl PortRange {
    /// Whether a port lies in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.as_ref().is_some_and(|range| range.contains(&port))
    }

    /// Returns the first and the last port, if there is any.
    #[must_use]
    pub fn ends(&self) -> Option<(u16, u16)> {
        self.0.as_ref().map(|range| (*range.start(), *range.end()))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends() {
            Some((first, last)) => write!(f, "{first}-{last}"),
            None => Ok(()),
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let ends = text.split_once('-').unwrap_or((text, text));
        match (ends.0.trim().parse::<u16>(), ends.1.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if (1..=last).contains(&first) => Ok(Self(Some(first..=last))),
            _ => Err(format!("{text:?} is no range of ports, such as 20000-29999")),
        }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Default for Forwards {
    fn default() -> Self {
        Self {
            enabled: true,
            user_addresses: Vec::new(),
            user_ports: PortRange::default(),
            user_rules: 20,
            // The SSH jumpbox.
            reserved_ports: Vec::new(),
            connections: 8_192,
            rule_connections: 1_024,
            udp_flows: 8_192,
            connect_seconds: 10,
            tcp_idle_seconds: 0,
            udp_idle_seconds: 60,
            link_local_targets: false,
        }
    }
}

impl Forwards {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        within("forwards.user_rules", self.user_rules, 0, 10_000)?;
        within("forwards.connections", self.connections, 1, 1_000_000)?;
        within("forwards.rule_connections", self.rule_connections, 1, 1_000_000)?;
        within("forwards.udp_flows", self.udp_flows, 1, 1_000_000)?;
        within("forwards.connect_seconds", self.connect_seconds, 1, 300)?;
        within("forwards.tcp_idle_seconds", self.tcp_idle_seconds, 0, 604_800)?;
        within("forwards.udp_idle_seconds", self.udp_idle_seconds, 1, 86_400)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_is_two_ports_one_port_or_none() {
        let range: PortRange = "20000-29999".parse().unwrap();

        assert!(range.contains(20_000) && range.contains(29_999) && !range.contains(30_000));
        assert_eq!("8080".parse::<PortRange>().unwrap().ends(), Some((8_080, 8_080)));
        assert!(!"".parse::<PortRange>().unwrap().contains(1));
        assert_eq!(range.to_string(), "20000-29999");
        for bad in ["0-5", "9-8", "a-b", "1-70000", "-"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        assert!(Forwards::default().check().is_ok());

        let bad = Forwards { connect_seconds: 0, ..Forwards::default() };
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains("forwards.connect_seconds"), "{error}");
    }
}

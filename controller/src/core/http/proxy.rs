//! Where a request comes from: through which proxies, by which address, with TLS or without.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use axum::http::HeaderMap;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

/// An address or a network (`10.0.0.1`, `10.0.0.0/8`, `::1/128`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether `address` lies in it; an IPv4 address written as IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address.to_canonical())),
            Err(_) => text.parse::<IpNet>().map(|network| network.trunc()),
        };
        network.map(Self).map_err(|_| {
            format!("{text:?} is no address and no network, such as 10.0.0.1 or 10.0.0.0/8")
        })
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Proxies whose `x-forwarded-for` and `x-forwarded-proto` are believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Vec<Network>);

impl TrustedProxies {
    /// Whether the proxy at `peer` is believed.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(peer))
    }

    /// Returns the nearest address that is not a trusted proxy.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        // A proxy may add a line of its own instead of lengthening the one that it was sent.
        let lines: Vec<&str> = texts(headers, "x-forwarded-for").collect();
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        let mut last = peer;
        for hop in hops.map_while(|hop| hop.trim().parse::<IpAddr>().ok()) {
            last = hop.to_canonical();
            if !self.trusts(last) {
                break;
            }
        }
        last
    }

    /// Whether a trusted proxy says that the client spoke TLS with it.
    #[must_use]
    pub fn says_secure(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        let nearest = texts(headers, "x-forwarded-proto").last();
        let nearest = nearest.and_then(|line| line.rsplit(',').next());
        self.trusts(peer) && nearest.is_some_and(|word| word.trim().eq_ignore_ascii_case("https"))
    }
}

fn texts<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// Returns what stands for one client when its requests are counted: an IPv4 address, or the /64 of
/// an IPv6 address, because one person has a whole one.
#[must_use]
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted(networks: &[&str]) -> TrustedProxies {
        TrustedProxies(networks.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            map.append(name, HeaderValue::from_str(line).unwrap());
        }
        map
    }

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_proxies_alone() {
        let trusted = trusted(&["10.0.0.0/8", "::1/128", "192.0.2.7"]);
        let client = |peer, lines: &[&str]| {
            trusted.client(ip(peer), &headers("x-forwarded-for", lines)).to_string()
        };

        assert_eq!(client("1.2.3.4", &["9.9.9.9"]), "1.2.3.4", "an untrusted peer");
        assert_eq!(client("10.255.0.1", &["9.9.9.9, 1.2.3.4"]), "1.2.3.4", "a forged first hop");
        assert_eq!(client("10.0.0.1", &["1.2.3.4, 10.0.0.2"]), "1.2.3.4", "two proxies");
        assert_eq!(client("10.0.0.1", &["9.9.9.9", "1.2.3.4"]), "1.2.3.4", "two lines");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["1.2.3.4, not an address"]), "10.0.0.1");
        assert_eq!(client("::ffff:10.0.0.1", &["1.2.3.4"]), "1.2.3.4", "IPv4 as IPv6");
        assert_eq!(client("::1", &["2001:db8::1"]), "2001:db8::1");
        assert_eq!(client("192.0.2.7", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client("192.0.2.8", &["1.2.3.4"]), "192.0.2.8");
    }

    #[test]
    fn a_forwarded_scheme_is_believed_from_trusted_proxies_alone() {
        let trusted = trusted(&["10.0.0.1"]);
        let says = |peer, lines: &[&str]| {
            trusted.says_secure(ip(peer), &headers("x-forwarded-proto", lines))
        };

        assert!(says("10.0.0.1", &["https"]));
        assert!(says("10.0.0.1", &["http, HTTPS"]));
        assert!(!says("10.0.0.1", &["https", "http"]));
        assert!(!says("10.0.0.1", &[]));
        assert!(!says("10.0.0.2", &["https"]));
    }

    #[test]
    fn what_is_no_address_and_no_network_is_refused_with_an_example() {
        for bad in ["", "10.0.0.0/33", "proxy.example.org", "10.0.0.1-10.0.0.9"] {
            let refused = bad.parse::<Network>().unwrap_err();
            assert!(refused.contains("10.0.0.0/8"), "{refused}");
        }
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_counted_together() {
        let a = counted_as(ip("2001:db8::1"));

        assert_eq!(a, counted_as(ip("2001:db8::ffff:1")));
        assert_ne!(a, counted_as(ip("2001:db8:0:1::1")));
        assert_eq!(counted_as(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }
}

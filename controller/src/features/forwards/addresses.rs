//! The addresses of this machine.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::view::Address;

/// Returns the addresses of every network card that is up, loopback among them, with the card's name.
/// A machine that does not tell has none.
pub(super) fn local() -> Vec<(IpAddr, String)> {
    let Ok(cards) = getifaddrs() else { return Vec::new() };
    let is_up = |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP);
    let mut found: Vec<_> = cards
        .filter(|card| is_up(card.flags))
        .filter_map(|card| {
            let address = card.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let v6 = || address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
            Some((v4.or_else(v6)?, card.interface_name))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Returns the addresses that whoever may listen anywhere is offered. Link-local ones of IPv6 are left
/// out: they mean something together with a card alone.
pub(super) fn offered(local: Vec<(IpAddr, String)>) -> Vec<Address> {
    let is_offered = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let offered = local.into_iter().filter(|(ip, _)| is_offered(ip));
    let offered = offered.map(|(ip, interface)| Address { address: ip.to_string(), interface });
    let all = ["0.0.0.0", "::"].map(|address| named(address.to_owned()));
    offered.chain(all).collect()
}

/// Returns an address without a card.
pub(super) fn named(address: String) -> Address {
    Address { address, interface: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_loopback_and_is_offered_what_others_reach() {
        let local = local();
        assert!(local.iter().any(|(ip, _)| ip.is_loopback()), "{local:?}");

        let made_up = ["127.0.0.1", "10.0.0.7", "fe80::1", "2001:db8::1"];
        let made_up = made_up.map(|ip| (ip.parse().unwrap(), "eth0".to_owned())).to_vec();
        let offered: Vec<_> = offered(made_up).into_iter().map(|it| it.address).collect();

        assert_eq!(offered, ["10.0.0.7", "2001:db8::1", "0.0.0.0", "::"]);
    }
}

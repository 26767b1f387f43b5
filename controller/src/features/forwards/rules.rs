//! What may be listened on and where it may lead. Pure: the configuration, this machine's addresses and
//! the other forwards are arguments.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::model::{Protocol, Rule, Target};
use crate::config::Forwards;
use crate::core::error::{Problem, Result};

/// Ports under this one need a right of their own, from the kernel too.
const PRIVILEGED: u16 = 1_024;

/// What the rules are judged by.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    /// `[forwards]`.
    pub config: &'a Forwards,
    /// Ports that the controller itself listens on.
    pub own_ports: &'a [u16],
    /// The addresses of this machine.
    pub local: &'a [IpAddr],
    /// Whether the actor may listen anywhere and lead anywhere.
    pub any_target: bool,
}

impl Setting<'_> {
    /// Checks a rule by itself.
    ///
    /// # Errors
    ///
    /// `port_reserved`, `address_not_allowed`, `port_not_allowed` and `target_not_allowed` (403),
    /// `bad_target` (422).
    pub(super) fn check(&self, rule: &Rule) -> Result<()> {
        self.check_listen(rule.listen)?;
        let most = self.config.rule_connections;
        if !self.any_target && rule.max_connections > most {
            // All rules share one number of connections.
            let detail = format!("max_connections is 1 to {most}, not {}", rule.max_connections);
            return Err(Problem::invalid("bad_field", detail));
        }
        match rule.target {
            Target::Host(target) => self.check_host(target),
            Target::Instance(..) => Ok(()),
        }
    }

    fn check_listen(&self, listen: SocketAddr) -> Result<()> {
        let port = listen.port();
        if self.own_ports.contains(&port) || self.config.reserved_ports.contains(&port) {
            let detail = format!("port {port} is the controller's own or reserved; take another");
            return Err(Problem::forbidden("port_reserved", detail));
        }
        if listen.ip().is_multicast() || listen.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
            let detail = "listen_ip is an address of this machine, 0.0.0.0 or ::";
            return Err(Problem::invalid("bad_field", detail));
        }
        if self.any_target {
            return Ok(());
        }
        if port < PRIVILEGED || !self.config.user_ports.contains(port) {
            let detail = match self.config.user_ports.ends() {
                Some((first, last)) => format!("listen on a port from {first} to {last}"),
                None => "no ports are set aside for forwards of your role; ask an admin".to_owned(),
            };
            return Err(Problem::forbidden("port_not_allowed", detail));
        }
        if !self.config.user_addresses.contains(&listen.ip()) {
            let detail = "listen on an address that GET /api/v1/forwards/addresses names";
            return Err(Problem::forbidden("address_not_allowed", detail));
        }
        Ok(())
    }

    fn check_host(&self, target: SocketAddr) -> Result<()> {
        if !self.any_target {
            let detail = "your role forwards into own instances alone; name an instance_id";
            return Err(Problem::forbidden("target_not_allowed", detail));
        }
        let ip = target.ip();
        let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
            let detail = format!("target_ip: {ip} is no address of one machine");
            return Err(Problem::invalid("bad_target", detail));
        }
        if is_link_local(ip) && !self.config.link_local_targets {
            let detail = format!(
                "target_ip: {ip} is link-local, as metadata services are; forwards.link_local_targets in the configuration allows it"
            );
            return Err(Problem::invalid("bad_target", detail));
        }
        Ok(())
    }

    /// Checks a rule beside the others.
    ///
    /// # Errors
    ///
    /// `listen_taken` (409), `forward_loop` (422).
    pub(super) fn check_beside(&self, rule: &Rule, others: &[Rule]) -> Result<()> {
        if let Some(other) = others.iter().find(|other| clash(rule, other)) {
            let detail = format!(
                "{} {} is taken by a forward that listens on {}",
                rule.protocol.as_str(),
                rule.listen,
                other.listen
            );
            return Err(Problem::conflict("listen_taken", detail));
        }
        if self.is_circle(rule, others) {
            let detail = "it would lead back to itself, straight or through other forwards";
            return Err(Problem::invalid("forward_loop", detail));
        }
        Ok(())
    }

    /// Whether what `rule` sends out comes back to it. Each forward leads to one place, so there is one
    /// way to follow; it is followed through forwards that are off too, because they may be put on.
    fn is_circle(&self, rule: &Rule, others: &[Rule]) -> bool {
        let mut at = rule;
        for _ in 0..=others.len() {
            if self.reaches(at, rule) {
                return true;
            }
            match others.iter().find(|next| self.reaches(at, next)) {
                Some(next) => at = next,
                None => return false,
            }
        }
        // More steps than forwards: the others run in a circle among themselves.
        false
    }

    /// Whether what `from` sends out arrives where `to` listens.
    fn reaches(&self, from: &Rule, to: &Rule) -> bool {
        let Target::Host(target) = from.target else { return false };
        if from.protocol != to.protocol || target.port() != to.listen.port() {
            return false;
        }
        let (target, listen) = (target.ip(), to.listen.ip());
        target == listen
            || (listen.is_unspecified()
                && target.is_ipv4() == listen.is_ipv4()
                && (target.is_loopback() || self.local.contains(&target)))
    }
}

/// Whether two rules want the same port. `::` takes IPv6 alone, so it and `0.0.0.0` stand side by side.
fn clash(one: &Rule, other: &Rule) -> bool {
    let is_same_door = |one: Protocol, other: Protocol, a: u16, b: u16| (one, a) == (other, b);
    if one.id == other.id
        || !is_same_door(one.protocol, other.protocol, one.listen.port(), other.listen.port())
    {
        return false;
    }
    let (one, other) = (one.listen.ip(), other.listen.ip());
    one == other
        || (one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified()))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tianqi_common::id::{ForwardId, InstanceId, UserId};

    use super::*;

    fn rule(listen: &str, target: &str) -> Rule {
        let target = match target {
            "" => Target::Instance(InstanceId::new(), 80),
            address => Target::Host(address.parse().unwrap()),
        };
        Rule {
            id: ForwardId::new(),
            owner: UserId::new(),
            listen: listen.parse().unwrap(),
            protocol: Protocol::Tcp,
            target,
            enabled: true,
            allowed: Vec::new(),
            max_connections: 1,
            udp_idle: Duration::from_secs(1),
            generation: 1,
        }
    }

    fn config() -> Forwards {
        Forwards {
            user_addresses: vec!["10.0.0.1".parse().unwrap()],
            user_ports: "20000-20009".parse().unwrap(),
            ..Forwards::default()
        }
    }

    /// The code with which a rule is refused, or nothing.
    fn refused(rule: &Rule, others: &[Rule], any_target: bool) -> &'static str {
        let (config, local) = (config(), ["10.0.0.1".parse().unwrap()]);
        let setting = Setting {
            config: &config,
            own_ports: &[8_890, 8_891, 2_026],
            local: &local,
            any_target,
        };
        let checked = setting.check(rule).and_then(|()| setting.check_beside(rule, others));
        checked.err().map_or("", |problem| problem.code)
    }

    #[test]
    fn people_listen_where_they_may_and_lead_into_instances_alone() {
        for (listen, target, code) in [
            ("10.0.0.1:20000", "", ""),
            ("10.0.0.1:20009", "", ""),
            ("10.0.0.1:20010", "", "port_not_allowed"),
            ("10.0.0.1:80", "", "port_not_allowed"),
            ("0.0.0.0:20000", "", "address_not_allowed"),
            ("10.0.0.2:20000", "", "address_not_allowed"),
            ("10.0.0.1:20000", "10.0.0.9:80", "target_not_allowed"),
        ] {
            assert_eq!(refused(&rule(listen, target), &[], false), code, "{listen} {target}");
        }
    }

    #[test]
    fn people_take_no_more_connections_than_is_usual() {
        let most = Forwards::default().rule_connections;
        let rule = |max_connections| Rule { max_connections, ..rule("10.0.0.1:20000", "") };

        assert_eq!(refused(&rule(most), &[], false), "");
        assert_eq!(refused(&rule(most + 1), &[], false), "bad_field");
        assert_eq!(refused(&rule(most + 1), &[], true), "");
    }

    #[test]
    fn whoever_may_lead_anywhere_is_still_kept_from_what_is_no_target() {
        for (listen, target, code) in [
            ("0.0.0.0:80", "10.0.0.9:80", ""),
            ("[::]:80", "[2001:db8::1]:80", ""),
            ("0.0.0.0:8890", "10.0.0.9:80", "port_reserved"),
            ("0.0.0.0:8891", "", "port_reserved"),
            ("0.0.0.0:2026", "", "port_reserved"),
            ("224.0.0.1:80", "", "bad_field"),
            ("0.0.0.0:80", "0.0.0.0:1", "bad_target"),
            ("0.0.0.0:80", "[::]:1", "bad_target"),
            ("0.0.0.0:80", "224.0.0.1:1", "bad_target"),
            ("0.0.0.0:80", "255.255.255.255:1", "bad_target"),
            ("0.0.0.0:80", "169.254.169.254:80", "bad_target"),
            ("0.0.0.0:80", "[fe80::1]:80", "bad_target"),
        ] {
            assert_eq!(refused(&rule(listen, target), &[], true), code, "{listen} {target}");
        }
    }

    #[test]
    fn one_port_is_for_one_rule_and_a_wildcard_takes_every_address_of_its_family() {
        for (one, other, code) in [
            ("10.0.0.1:80", "10.0.0.1:80", "listen_taken"),
            ("0.0.0.0:80", "10.0.0.1:80", "listen_taken"),
            ("10.0.0.1:80", "0.0.0.0:80", "listen_taken"),
            ("[::]:80", "[::1]:80", "listen_taken"),
            ("[::]:80", "0.0.0.0:80", ""),
            ("[::]:80", "10.0.0.1:80", ""),
            ("10.0.0.1:80", "10.0.0.2:80", ""),
            ("10.0.0.1:80", "10.0.0.1:81", ""),
        ] {
            assert_eq!(refused(&rule(one, ""), &[rule(other, "")], true), code, "{one} {other}");
        }
        let (tcp, mut udp) = (rule("10.0.0.1:80", ""), rule("10.0.0.1:80", ""));
        udp.protocol = Protocol::Udp;
        assert_eq!(refused(&tcp, &[udp], true), "", "TCP and UDP have ports of their own");
        assert_eq!(refused(&tcp, std::slice::from_ref(&tcp), true), "", "a rule beside itself");
    }

    #[test]
    fn a_forward_never_leads_back_to_itself() {
        for (listen, target) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("0.0.0.0:80", "10.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.9:80"),
            ("[::]:80", "[::1]:80"),
        ] {
            assert_eq!(refused(&rule(listen, target), &[], true), "forward_loop", "{listen}");
        }
        let others = [rule("0.0.0.0:81", "127.0.0.1:82"), rule("0.0.0.0:82", "10.0.0.1:80")];
        assert_eq!(refused(&rule("10.0.0.1:80", "10.0.0.1:81"), &others, true), "forward_loop");
        assert_eq!(refused(&rule("10.0.0.1:80", "10.0.0.2:81"), &others, true), "");
        assert_eq!(refused(&rule("10.0.0.3:80", "10.0.0.1:81"), &others, true), "");
        let circle = [rule("0.0.0.0:81", "127.0.0.1:82"), rule("0.0.0.0:82", "127.0.0.1:81")];
        assert_eq!(refused(&rule("10.0.0.1:80", "127.0.0.1:81"), &circle, true), "");
    }
}

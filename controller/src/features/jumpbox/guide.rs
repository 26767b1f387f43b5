//! The lines that a person pastes to come in by SSH. Pure.

use std::fmt;

/// The port that SSH takes when none is named.
const SSH_PORT: u16 = 22;

/// Where people come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// A name, or an address; one of IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A person's way into one instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way<'a> {
    /// Where.
    pub place: &'a Place,
    /// The account.
    pub account: &'a str,
    /// The instance as this account may call it: by name when it is its own, else by id.
    pub target: &'a str,
    /// The instance's name, for names of files and of hosts in a configuration.
    pub name: &'a str,
}

impl Place {
    /// Reads `HOST` or `HOST:PORT`, with brackets around an IPv6 address that has a port. `usual` is
    /// the port of what names none.
    ///
    /// A host holds nothing but letters, digits, `.`, `-`, `_` and `:`, so that no shell sees anything
    /// else in a line that is pasted.
    pub(super) fn parse(text: &str, usual: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match text.split_once(':') {
                // A bare address of IPv6 has more than one.
                Some((_, rest)) if rest.contains(':') => (text, None),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        // What begins with a dash is an option to SSH.
        if host.is_empty() || host.starts_with('-') || !host.chars().all(is_plain) {
            return None;
        }
        let port = port.map_or(Some(usual), |port| port.parse().ok().filter(|port| *port > 0))?;
        Some(Self { host: host.to_owned(), port })
    }

    /// Reads `jumpbox.public_address`: what people type, so no port means SSH's own.
    pub(super) fn public(text: &str) -> Option<Self> {
        Self::parse(text, SSH_PORT)
    }

    /// What stands before the host in the arguments of a program: its letter for a port, and the port.
    pub(super) fn option(&self, letter: &str) -> String {
        if self.port == SSH_PORT { String::new() } else { format!("{letter} {} ", self.port) }
    }

    /// The host as `scp`, `sftp` and addresses take it.
    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// What stands before a key in `known_hosts`.
    fn known_as(&self) -> String {
        if self.port == SSH_PORT {
            return self.host.clone();
        }
        format!("[{}]:{}", self.host, self.port)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.bracketed();
        if self.port == SSH_PORT { f.write_str(&host) } else { write!(f, "{host}:{}", self.port) }
    }
}

impl Way<'_> {
    /// Whom SSH logs in as.
    pub(super) fn login(&self) -> String {
        format!("{}+{}", self.account, self.target)
    }

    /// A shell.
    pub(super) fn ssh(&self) -> String {
        format!("ssh {}{}@{}", self.place.option("-p"), self.login(), self.place.host)
    }

    /// A file into the instance.
    pub(super) fn scp(&self) -> String {
        let (port, host) = (self.place.option("-P"), self.place.bracketed());
        format!("scp {port}FILE {}@{host}:/root/", self.login())
    }

    /// Files both ways.
    pub(super) fn sftp(&self) -> String {
        format!("sftp {}{}@{}", self.place.option("-P"), self.login(), self.place.bracketed())
    }

    /// Through the jumpbox to the instance's own SSH server.
    pub(super) fn jump(&self) -> String {
        format!("ssh -J {}@{} {}", self.account, self.place, self.target)
    }

    /// A port of the instance on one's own machine.
    pub(super) fn forward(&self) -> String {
        let port = self.place.option("-p");
        format!("ssh {port}-N -L 8080:127.0.0.1:8080 {}@{}", self.login(), self.place.host)
    }

    /// A block for `~/.ssh/config`, after which `ssh NAME`, `scp` and VS Code work by name.
    pub(super) fn config(&self) -> String {
        format!(
            "Host {}\n    HostName {}\n    ProxyJump {}@{}\n",
            self.name, self.target, self.account, self.place
        )
    }

    /// The two lines of `known_hosts` for these keys of the jumpbox and of the instance.
    pub(super) fn known_hosts(&self, jumpbox: &str, instance: &str) -> String {
        format!("{} {jumpbox}\n{} {instance}\n", self.place.known_as(), self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_with_a_port_or_without_and_nothing_a_shell_would_see_more_in() {
        for (text, expected) in [
            ("gpu.example.org", Some(("gpu.example.org", 22))),
            ("gpu.example.org:2026", Some(("gpu.example.org", 2_026))),
            ("192.0.2.7:1", Some(("192.0.2.7", 1))),
            ("2001:db8::1", Some(("2001:db8::1", 22))),
            ("[2001:db8::1]", Some(("2001:db8::1", 22))),
            ("[2001:db8::1]:2026", Some(("2001:db8::1", 2_026))),
            ("", None),
            (":2026", None),
            ("host:0", None),
            ("host:", None),
            ("host:70000", None),
            ("[::1", None),
            ("[::1]2026", None),
            ("-oProxyCommand=x", None),
            ("$(id)", None),
            ("a b", None),
            ("a\nb", None),
        ] {
            let expected = expected.map(|(host, port)| Place { host: host.to_owned(), port });
            assert_eq!(Place::parse(text, 22), expected, "{text:?}");
        }
    }

    #[test]
    fn lines_name_the_port_where_it_is_not_the_usual_one() {
        let place = Place::parse("gpu.example.org:2026", 22).unwrap();
        let way = Way { place: &place, account: "alice", target: "train-7", name: "train-7" };

        assert_eq!(way.ssh(), "ssh -p 2026 alice+train-7@gpu.example.org");
        assert_eq!(way.scp(), "scp -P 2026 FILE alice+train-7@gpu.example.org:/root/");
        assert_eq!(way.sftp(), "sftp -P 2026 alice+train-7@gpu.example.org");
        assert_eq!(way.jump(), "ssh -J alice@gpu.example.org:2026 train-7");
        assert_eq!(
            way.forward(),
            "ssh -p 2026 -N -L 8080:127.0.0.1:8080 alice+train-7@gpu.example.org"
        );
        assert_eq!(
            way.config(),
            "Host train-7\n    HostName train-7\n    ProxyJump alice@gpu.example.org:2026\n"
        );
        assert_eq!(
            way.known_hosts("ssh-ed25519 A", "ssh-ed25519 B"),
            "[gpu.example.org]:2026 ssh-ed25519 A\ntrain-7 ssh-ed25519 B\n"
        );
    }

    #[test]
    fn the_usual_port_is_left_out_and_ipv6_is_bracketed_where_programs_want_it() {
        let place = Place { host: "2001:db8::1".to_owned(), port: 22 };
        let way = Way { place: &place, account: "alice", target: "one", name: "one" };

        assert_eq!(way.ssh(), "ssh alice+one@2001:db8::1");
        assert_eq!(way.scp(), "scp FILE alice+one@[2001:db8::1]:/root/");
        assert_eq!(way.jump(), "ssh -J alice@[2001:db8::1] one");
        assert_eq!(way.known_hosts("A", "B"), "2001:db8::1 A\none B\n");
    }
}

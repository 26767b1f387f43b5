//! What a person types before the `@`, and what they ask of a channel. Pure.

use tianqi_common::id::InstanceId;
use tianqi_common::name::{InstanceName, UserName};
use tianqi_common::wire::stream::PtySize;

/// The name that somebody logs in with: an account, and an instance if they go straight in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Login {
    /// The account's name as typed; it may not exist.
    pub account: String,
    /// What stands behind the `+`.
    pub target: Option<Target>,
}

/// Which instance somebody means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One of their own, by name.
    Own(String),
    /// Any that they may enter, by id.
    Id(InstanceId),
    /// Somebody's, by both names.
    Of {
        /// The owner's name.
        owner: String,
        /// The instance's name.
        name: String,
    },
    /// None: no instance can be called so.
    Nothing,
}

impl Login {
    /// Takes `account` or `account+instance` apart. Account names hold no `+`, so the first one parts
    /// them.
    pub(super) fn parse(text: &str) -> Self {
        match text.split_once('+') {
            None => Self { account: text.to_owned(), target: None },
            Some((account, target)) => {
                Self { account: account.to_owned(), target: Some(Target::parse(target)) }
            }
        }
    }
}

impl Target {
    /// Reads an instance's name, its id, or `owner/name`.
    pub(super) fn parse(text: &str) -> Self {
        if let Ok(id) = text.parse() {
            return Self::Id(id);
        }
        let is_name = |name: &str| InstanceName::parse(name).is_ok();
        match text.split_once('/') {
            None if is_name(text) => Self::Own(text.to_owned()),
            Some((owner, name)) if UserName::parse(owner).is_ok() && is_name(name) => {
                Self::Of { owner: owner.to_owned(), name: name.to_owned() }
            }
            None | Some(_) => Self::Nothing,
        }
    }
}

/// The port that stands for an instance's own SSH server, which the jumpbox is.
const SSH_PORT: u32 = 22;
/// What may follow an instance's name where a host's name is meant.
const DOMAIN: &str = ".tianqi";

/// Where `-W`, `-J` or `-L` of somebody who named no instance leads: `train-7:22` and
/// `train-7.tianqi:22` are instances; nothing else is anything.
pub(super) fn jump_target(host: &str, port: u32) -> Target {
    if port != SSH_PORT {
        return Target::Nothing;
    }
    Target::parse(host.strip_suffix(DOMAIN).unwrap_or(host))
}

/// A terminal that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    /// Its kind, such as `xterm-256color`.
    pub name: String,
    /// Its size.
    pub size: PtySize,
}

/// Longest side of a terminal, as everywhere.
const SIDE_MAX: u32 = 10_000;

/// Returns a size that a terminal can have. Clients without a window of their own say 0.
pub(super) fn size(cols: u32, rows: u32) -> PtySize {
    let side = |wanted: u32, usual: u16| match wanted {
        0 => usual,
        other => u16::try_from(other.min(SIDE_MAX)).unwrap_or(usual),
    };
    PtySize { cols: side(cols, 80), rows: side(rows, 24) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_name_is_an_account_and_perhaps_an_instance() {
        let id = InstanceId::new();
        let own = |name: &str| Some(Target::Own(name.to_owned()));
        let of = |owner: &str, name: &str| {
            Some(Target::Of { owner: owner.to_owned(), name: name.to_owned() })
        };
        for (typed, account, target) in [
            ("alice", "alice", None),
            ("alice+train-7", "alice", own("train-7")),
            ("admin+bob/train-7", "admin", of("bob", "train-7")),
            (&format!("alice+{id}"), "alice", Some(Target::Id(id))),
            ("alice+", "alice", Some(Target::Nothing)),
            ("+train-7", "", own("train-7")),
            ("alice+a+b", "alice", Some(Target::Nothing)),
            ("alice+../x", "alice", Some(Target::Nothing)),
            ("alice+bob/", "alice", Some(Target::Nothing)),
            ("alice+bob/a/b", "alice", Some(Target::Nothing)),
            ("alice+名字", "alice", Some(Target::Nothing)),
            ("", "", None),
        ] {
            let login = Login::parse(typed);

            assert_eq!((login.account.as_str(), login.target), (account, target), "{typed}");
        }
    }

    #[test]
    fn only_port_22_of_an_instance_is_somewhere_to_jump_to() {
        let own = Target::Own("train-7".to_owned());
        for (host, port, target) in [
            ("train-7", 22, own.clone()),
            ("train-7.tianqi", 22, own),
            ("train-7", 80, Target::Nothing),
            ("127.0.0.1", 22, Target::Nothing),
            ("train-7.example.org", 22, Target::Nothing),
            ("", 22, Target::Nothing),
            ("train-7", 70_000, Target::Nothing),
        ] {
            assert_eq!(jump_target(host, port), target, "{host}:{port}");
        }
    }

    #[test]
    fn sizes_are_what_a_terminal_can_have() {
        assert_eq!(size(0, 0), PtySize { cols: 80, rows: 24 });
        assert_eq!(size(132, 43), PtySize { cols: 132, rows: 43 });
        assert_eq!(size(u32::MAX, 1), PtySize { cols: 10_000, rows: 1 });
    }
}

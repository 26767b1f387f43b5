//! What people read at the jumpbox, in their language. Both files make the same structure, so a text
//! that is missing in one does not compile.

mod en;
mod zh;

use crate::core::error::Problem;

/// A language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Language {
    /// English.
    #[default]
    English,
    /// Chinese.
    Chinese,
}

/// The texts; `{}` stands for what is said of.
#[derive(Debug)]
pub(super) struct Texts {
    /// The menu's heading; `{}` is the account.
    pub heading: &'static str,
    /// Heads of the columns: number, name, container, node, phase, owner.
    pub columns: [&'static str; 6],
    /// What keys do.
    pub help: &'static str,
    /// How to come straight in; the first `{}` is the port's option or nothing, then account and host.
    pub hint: &'static str,
    /// The account has no instance.
    pub none: &'static str,
    /// Nothing is called like the filter; `{}` is the filter.
    pub no_match: &'static str,
    /// Which page of how many; two `{}`.
    pub page: &'static str,
    /// The filter in use; `{}` is the filter.
    pub filter: &'static str,
    /// Asks for a choice.
    pub prompt: &'static str,
    /// Goodbye.
    pub goodbye: &'static str,
    /// The shell has ended.
    pub back: &'static str,
    /// Phases, in the order of [`PHASES`].
    pub phases: [&'static str; 8],
    /// It does not run; `{}` are name and phase.
    pub not_running: &'static str,
    /// Whether to start it.
    pub ask_start: &'static str,
    /// It is being started.
    pub starting: &'static str,
    /// It is its turn to wait, with the phase.
    pub waiting: &'static str,
    /// It does not run yet, and nobody waits any more.
    pub still_waiting: &'static str,
    /// Its node does not answer.
    pub node_offline: &'static str,
    /// It is being deleted.
    pub deleting: &'static str,
    /// There is none such.
    pub no_such_instance: &'static str,
    /// The account's password was set by somebody else.
    pub must_change_password: &'static str,
    /// There are too many connections.
    pub too_many_sessions: &'static str,
    /// A menu needs a terminal.
    pub no_terminal: &'static str,
    /// A command needs an instance; `{}` is the account.
    pub name_an_instance: &'static str,
    /// The session ended.
    pub session_ended: &'static str,
    /// The instance is stopped or the right to it has ended.
    pub access_ended: &'static str,
    /// The connection to the node was lost.
    pub node_lost: &'static str,
    /// It failed; `{}` is why, in English.
    pub failed: &'static str,
}

/// The phases in the order of [`Texts::phases`].
pub(super) const PHASES: [&str; 8] =
    ["pending", "creating", "running", "stopping", "exited", "failed", "deleting", "unknown"];

impl Language {
    /// Chooses by the client's environment: `LC_ALL`, then `LC_MESSAGES`, then `LANG`. Accounts say
    /// nothing of a language yet; where they do, it comes first here.
    pub(super) fn of_env(env: &[(String, String)]) -> Self {
        let value = |wanted: &str| {
            let found = env.iter().find(|(name, value)| name == wanted && !value.is_empty());
            found.map(|(_, value)| value.as_str())
        };
        let first = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().find_map(value);
        match first {
            Some(locale) if locale.to_ascii_lowercase().starts_with("zh") => Self::Chinese,
            Some(_) | None => Self::English,
        }
    }

    /// Returns its texts.
    pub(super) fn texts(self) -> &'static Texts {
        match self {
            Self::English => &en::TEXTS,
            Self::Chinese => &zh::TEXTS,
        }
    }
}

impl Texts {
    /// Returns a phase in words; as it is when it is not known.
    pub(super) fn phase(&self, phase: &str) -> String {
        let found = PHASES.iter().zip(self.phases).find(|(known, _)| **known == phase);
        found.map_or(phase, |(_, text)| text).to_owned()
    }

    /// Returns a problem in words. Those that people meet are translated.
    pub(super) fn problem(&self, problem: &Problem) -> String {
        match problem.code {
            "no_such_instance" => self.no_such_instance.to_owned(),
            "node_offline" => self.node_offline.to_owned(),
            "node_lost" => self.node_lost.to_owned(),
            "password_change_required" => self.must_change_password.to_owned(),
            "too_many_sessions" => self.too_many_sessions.to_owned(),
            "unauthorised" => self.session_ended.to_owned(),
            "stopped" => self.access_ended.to_owned(),
            _ => fill(self.failed, &[&problem.detail]),
        }
    }
}

/// Puts `values` in the place of each `{}`.
pub(super) fn fill(text: &str, values: &[&str]) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut values = values.iter();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{}") {
        filled.push_str(before);
        filled.push_str(values.next().copied().unwrap_or_default());
        rest = after;
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(env: &[(&str, &str)]) -> Language {
        let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Language::of_env(&env)
    }

    #[test]
    fn the_clients_locale_chooses_the_language() {
        for (env, expected) in [
            (&[][..], Language::English),
            (&[("LANG", "zh_CN.UTF-8")], Language::Chinese),
            (&[("LANG", "ZH_TW")], Language::Chinese),
            (&[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "en_US.UTF-8")], Language::English),
            (&[("LANG", "de_DE"), ("LC_MESSAGES", "zh_CN")], Language::Chinese),
            (&[("LANG", "zh_CN"), ("LC_ALL", "")], Language::Chinese),
            (&[("TERM", "zh")], Language::English),
        ] {
            assert_eq!(language(env), expected, "{env:?}");
        }
    }

    #[test]
    fn both_languages_have_as_many_places_to_fill() {
        // `Debug` prints every field in order, so the places can be counted one by one.
        let places = |texts: &Texts| {
            let printed = format!("{texts:#?}");
            printed.lines().map(|line| line.matches("{}").count()).collect::<Vec<_>>()
        };

        assert_eq!(places(&en::TEXTS), places(&zh::TEXTS));
        assert!(places(&en::TEXTS).iter().sum::<usize>() > 5);
    }

    #[test]
    fn places_are_filled_in_order_and_values_are_not_looked_into() {
        assert_eq!(fill("a {} b {}", &["{}", "2"]), "a {} b 2");
        assert_eq!(fill("a {} b {}", &["1"]), "a 1 b ");
    }

    #[test]
    fn phases_and_problems_are_told_in_words() {
        let texts = Language::Chinese.texts();
        assert_eq!(texts.phase("running"), "运行中");
        assert_eq!(texts.phase("odd"), "odd");
        let problem = Problem::unavailable("node_offline", "x");
        assert_eq!(texts.problem(&problem), texts.node_offline);
        let other = Problem::unavailable("docker_failed", "the engine refuses");
        assert!(texts.problem(&other).contains("the engine refuses"));
    }
}

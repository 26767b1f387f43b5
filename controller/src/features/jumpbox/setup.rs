//! What a client asks of a session channel before it starts something there. Pure: each request is
//! answered at once, and what was asked is handed over when something starts.

use tianqi_common::wire::stream::PtySize;

use super::model::{Term, size};

/// Longest command line, in bytes: what one argument may have on Linux, less room for the shell's own.
const LINE_MAX: usize = 120 << 10;
/// Most variables of one channel, and longest value of one.
const ENV_MAX: usize = 64;
const VALUE_MAX: usize = 4 << 10;
/// Longest name of a kind of terminal.
const TERM_MAX: usize = 64;

/// What runs on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A shell.
    Shell,
    /// A command line.
    Exec(String),
    /// Files.
    Sftp,
}

/// Something to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// What.
    pub kind: Kind,
    /// The terminal, if one was asked for.
    pub term: Option<Term>,
    /// Variables, those of the safe list alone.
    pub env: Vec<(String, String)>,
}

/// What was asked for so far.
#[derive(Debug, Default)]
pub(super) struct Setup {
    term: Option<Term>,
    env: Vec<(String, String)>,
    has_started: bool,
}

impl Setup {
    /// A terminal is asked for. Returns whether it is granted.
    pub(super) fn pty(&mut self, name: &str, cols: u32, rows: u32) -> bool {
        if self.has_started {
            return false;
        }
        let is_name = !name.is_empty()
            && name.len() <= TERM_MAX
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
        let name = if is_name { name } else { "xterm" };
        self.term = Some(Term { name: name.to_owned(), size: size(cols, rows) });
        true
    }

    /// A variable is sent. Returns whether it is taken.
    pub(super) fn env(&mut self, name: &str, value: &str) -> bool {
        let is_full = self.env.len() >= ENV_MAX || value.len() > VALUE_MAX;
        if self.has_started || is_full || !is_safe(name) || value.chars().any(char::is_control) {
            return false;
        }
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        true
    }

    /// A window changed. Returns the size to pass on when something runs in it already.
    pub(super) fn resize(&mut self, cols: u32, rows: u32) -> Option<PtySize> {
        let term = self.term.as_mut()?;
        term.size = size(cols, rows);
        self.has_started.then_some(term.size)
    }

    /// Something is to start; nothing when something has, or when it cannot be started.
    pub(super) fn start(&mut self, kind: Kind) -> Option<Start> {
        let is_too_long =
            matches!(&kind, Kind::Exec(line) if line.len() > LINE_MAX || line.contains('\0'));
        if self.has_started || is_too_long {
            return None;
        }
        self.has_started = true;
        Some(Start { kind, term: self.term.clone(), env: std::mem::take(&mut self.env) })
    }
}

/// Whether a variable may go into an instance: language, colours, time zone, who commits. None of them
/// changes which programs run.
fn is_safe(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "LANG",
        "LANGUAGE",
        "COLORTERM",
        "NO_COLOR",
        "TZ",
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_EMAIL",
        "GIT_COMMITTER_NAME",
        "GIT_COMMITTER_EMAIL",
    ];
    let is_locale = name.strip_prefix("LC_").is_some_and(|rest| {
        (1..=32).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    });
    is_locale || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_handed_over_once() {
        let mut setup = Setup::default();
        assert!(setup.env("LANG", "zh_CN.UTF-8") && setup.env("LC_ALL", "C"));
        assert!(setup.env("LANG", "en_US.UTF-8"), "the later one counts");
        assert!(setup.pty("xterm-256color", 101, 37));
        assert_eq!(setup.resize(102, 38), None, "nothing runs yet; the size is kept");

        let start = setup.start(Kind::Shell).unwrap();

        let term = start.term.unwrap();
        assert_eq!((term.name.as_str(), term.size), ("xterm-256color", size(102, 38)));
        let env: Vec<_> = start.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]);
        assert_eq!(setup.resize(103, 39), Some(size(103, 39)));
        assert!(setup.start(Kind::Sftp).is_none(), "one thing runs on a channel");
        assert!(!setup.pty("xterm", 1, 1) && !setup.env("TZ", "UTC"));
    }

    #[test]
    fn variables_that_could_run_something_are_refused() {
        let mut setup = Setup::default();
        for (name, value) in [
            ("LD_PRELOAD", "/tmp/x.so"),
            ("PATH", "/tmp"),
            ("BASH_ENV", "/tmp/x"),
            ("LC_", "x"),
            ("LC_ALL;id", "x"),
            ("lang", "C"),
            ("LANG", "a\nb"),
            ("LANG", &"x".repeat(VALUE_MAX + 1)),
        ] {
            assert!(!setup.env(name, value), "{name}");
        }
        for i in 0..ENV_MAX {
            assert!(setup.env(&format!("LC_{i}"), "x"));
        }
        assert!(!setup.env("LC_ALL", "x"), "there are enough");
    }

    #[test]
    fn huge_lines_and_odd_terminals_are_bounded() {
        let mut setup = Setup::default();
        assert!(setup.start(Kind::Exec("x".repeat(LINE_MAX + 1))).is_none());
        assert!(setup.start(Kind::Exec("a\0b".to_owned())).is_none());
        assert!(setup.pty("\u{1b}]0;x", u32::MAX, 0));

        let start = setup.start(Kind::Exec("true".to_owned())).unwrap();

        assert_eq!(start.term.unwrap(), Term { name: "xterm".to_owned(), size: size(10_000, 24) });
    }
}

//! Which output of an instance is wanted, as a person asks for it.

use std::time::Duration;

use chrono::DateTime;
use serde::Deserialize;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::InstanceId;
use tianqi_common::wire::stream::{LogQuery as Wanted, Logs};
use utoipa::IntoParams;

use crate::core::error::{Problem, Result};

/// Lines from the end when the caller says neither how many nor since when.
const TAIL: u32 = 100;
/// Most lines from the end.
const TAIL_MAX: u32 = 100_000;
/// Most lines from the end of which agents of before know.
const OLD_TAIL_MAX: u32 = 10_000;
/// Longest text to look for, in characters.
const SEARCH_MAX: usize = 200;

/// Which output is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Lines from the end, 0 to 100 000, or `all`. When left out: 100, or all of a time or a download.
    /// With `search`, lines that match are counted, and at most their last 8 MiB are found.
    tail: Option<String>,
    /// Nothing older: a time (RFC 3339), or how long ago, such as `90s`, `10m`, `2h` or `1d`.
    since: Option<String>,
    /// Nothing newer, in the same words.
    until: Option<String>,
    /// Whether to go on with what comes.
    follow: Option<bool>,
    /// Whether each line begins with its time.
    timestamps: Option<bool>,
    /// Only lines that hold this text, whatever its case; at most 200 characters.
    search: Option<String>,
    /// Whether it is to be kept as a file; it cannot go on then.
    download: Option<bool>,
}

impl LogQuery {
    /// Whether the answer is a file.
    pub(super) fn is_download(&self) -> bool {
        self.download.unwrap_or(false)
    }

    /// Checks the query for an instance, as of `now`.
    ///
    /// # Errors
    ///
    /// `bad_tail`, `bad_time`, `bad_search` and `bad_download` (422).
    pub(super) fn check(&self, instance: InstanceId, now: UnixMillis) -> Result<Wanted> {
        let (since, until) = (time("since", &self.since, now)?, time("until", &self.until, now)?);
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(Problem::invalid("bad_time", "since is later than until"));
        }
        let search = self.search.clone().unwrap_or_default();
        if search.chars().count() > SEARCH_MAX || search.chars().any(char::is_control) {
            let detail = format!("search is one line of at most {SEARCH_MAX} characters");
            return Err(Problem::invalid("bad_search", detail));
        }
        let (follow, is_download) = (self.follow.unwrap_or(false), self.is_download());
        if follow && is_download {
            return Err(Problem::invalid(
                "bad_download",
                "a download has an end; leave follow out",
            ));
        }
        let has_range = is_download || since.is_some() || until.is_some();
        let timestamps = self.timestamps.unwrap_or(false);
        Ok(Wanted {
            instance,
            tail: self.lines(has_range)?,
            since,
            until,
            follow,
            timestamps,
            search,
        })
    }

    fn lines(&self, has_range: bool) -> Result<Option<u32>> {
        match self.tail.as_deref() {
            None => Ok(Some(TAIL).filter(|_| !has_range)),
            Some("all") => Ok(None),
            Some(text) => match text.parse() {
                Ok(lines) if lines <= TAIL_MAX => Ok(Some(lines)),
                Ok(_) | Err(_) => {
                    let detail = format!("tail is 0 to {TAIL_MAX} or \"all\", not {text:?}");
                    Err(Problem::invalid("bad_tail", detail))
                }
            },
        }
    }
}

/// Returns the same question in the words of agents of before; nothing when they lack some.
pub(super) fn in_old_words(wanted: &Wanted) -> Option<Logs> {
    let is_new = wanted.since.is_some() || wanted.until.is_some() || !wanted.search.is_empty();
    let tail = wanted.tail.filter(|tail| *tail <= OLD_TAIL_MAX && !is_new)?;
    let Wanted { instance, follow, timestamps, .. } = *wanted;
    Some(Logs { instance, tail, follow, timestamps })
}

fn time(name: &str, text: &Option<String>, now: UnixMillis) -> Result<Option<UnixMillis>> {
    let Some(text) = text else { return Ok(None) };
    if let Some(ago) = ago(text) {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        return Ok(Some(UnixMillis(now.0.saturating_sub(ago).max(0))));
    }
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) if time.timestamp_millis() >= 0 => Ok(Some(UnixMillis(time.timestamp_millis()))),
        Ok(_) | Err(_) => {
            let detail = format!(
                "{name} is a time such as 2026-01-31T08:30:00Z or how long ago, such as 10m; \
                 {text:?} is neither"
            );
            Err(Problem::invalid("bad_time", detail))
        }
    }
}

/// Reads `90`, `90s`, `10m`, `2h` or `1d`.
fn ago(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok()).flatten()?;
    Some(Duration::from_secs(number.checked_mul(unit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn query(text: &str) -> LogQuery {
        let uri = format!("http://x/?{text}").parse().unwrap();
        axum::extract::Query::<LogQuery>::try_from_uri(&uri).unwrap().0
    }

    fn wanted(text: &str) -> Wanted {
        query(text).check(InstanceId::new(), NOW).unwrap()
    }

    fn refused(text: &str) -> &'static str {
        query(text).check(InstanceId::new(), NOW).unwrap_err().code
    }

    #[test]
    fn a_hundred_lines_are_the_usual_and_everything_of_a_time_or_a_download() {
        assert_eq!(wanted("").tail, Some(100));
        assert_eq!(wanted("search=x").tail, Some(100));
        for all in ["tail=all", "since=10m", "until=10m", "download=true"] {
            assert_eq!(wanted(all).tail, None, "{all}");
        }
        assert_eq!(wanted("tail=0").tail, Some(0));
        assert_eq!(wanted("tail=100000&download=true").tail, Some(100_000));
    }

    #[test]
    fn times_are_moments_or_how_long_ago() {
        for (text, millis) in [
            ("since=90", 1_799_999_910_000),
            ("since=90s", 1_799_999_910_000),
            ("since=10m", 1_799_999_400_000),
            ("since=2h", 1_799_992_800_000),
            ("since=1d", 1_799_913_600_000),
            ("since=99999999999d", 0),
            ("since=2027-01-15T16:00:00.250%2B08:00", 1_800_000_000_250),
        ] {
            assert_eq!(wanted(text).since, Some(UnixMillis(millis)), "{text}");
        }
        let range = wanted("since=2m&until=1m");
        assert!(range.since < range.until);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_word() {
        let long = format!("search={}", "x".repeat(201));
        for (text, code) in [
            ("tail=100001", "bad_tail"),
            ("tail=-1", "bad_tail"),
            ("tail=many", "bad_tail"),
            ("since=yesterday", "bad_time"),
            ("since=10w", "bad_time"),
            ("since=m", "bad_time"),
            ("since=", "bad_time"),
            ("since=-5m", "bad_time"),
            ("until=1969-12-31T00:00:00Z", "bad_time"),
            ("since=18446744073709551615d", "bad_time"),
            ("since=1m&until=2m", "bad_time"),
            (&long, "bad_search"),
            ("search=a%0Ab", "bad_search"),
            ("download=true&follow=true", "bad_download"),
        ] {
            assert_eq!(refused(text), code, "{text}");
        }
    }

    #[test]
    fn an_old_agent_is_asked_only_what_it_knows() {
        let old = in_old_words(&wanted("tail=7&follow=true&timestamps=true")).unwrap();
        assert_eq!((old.tail, old.follow, old.timestamps), (7, true, true));
        for new in ["tail=10001", "tail=all", "since=1m&tail=5", "until=1m&tail=5", "search=x"] {
            assert_eq!(in_old_words(&wanted(new)), None, "{new}");
        }
    }
}

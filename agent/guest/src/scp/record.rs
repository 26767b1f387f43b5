//! The lines that announce what comes.

use nix::sys::time::TimeSpec;

use super::wire::Stop;

/// A line that announces a file or a directory: `0644 123 name`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) name: &'a [u8],
}

impl<'a> Record<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, Stop> {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let mode = parts
            .next()
            .filter(|digits| digits.len() == 4)
            .and_then(|digits| u32::from_str_radix(unsigned(digits)?, 8).ok())
            .ok_or(Stop::Protocol("bad mode"))?;
        let size = parts
            .next()
            .and_then(|digits| unsigned(digits)?.parse().ok())
            .ok_or(Stop::Protocol("size not delimited"))?;
        let name = parts.next().unwrap_or_default();
        let leads_elsewhere = matches!(name, b"" | b"." | b"..");
        if leads_elsewhere || name.contains(&b'/') || name.contains(&0) {
            return Err(Stop::Protocol("unexpected filename"));
        }
        Ok(Self { mode, size, name })
    }
}

/// When a file was modified and read, as `-p` keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) modified: TimeSpec,
    pub(super) accessed: TimeSpec,
}

impl Times {
    /// Takes `MODIFIED MICROSECONDS ACCESSED MICROSECONDS`.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let mut numbers =
            line.split(|byte| *byte == b' ').map(|digits| unsigned(digits)?.parse::<i64>().ok());
        let mut next = || numbers.next().flatten();
        let mut time = || {
            let (seconds, micros) = (next()?, next()?);
            (micros < 1_000_000).then(|| TimeSpec::new(seconds, micros * 1000))
        };
        let (modified, accessed) = (time()?, time()?);
        numbers.next().is_none().then_some(Self { modified, accessed })
    }
}

/// Returns digits as text: what a number could begin with otherwise, a sign, is no digit.
fn unsigned(digits: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_takes_names_with_spaces_and_no_names_that_lead_elsewhere() {
        let record = Record::parse(b"0644 18446744073709551615 a b").unwrap();
        assert_eq!(record, Record { mode: 0o644, size: u64::MAX, name: b"a b" });

        for line in [
            "0644 1 ..",
            "0644 1 .",
            "0644 1 ",
            "0644 1",
            "0644 1 a/b",
            "0644 1 /etc",
            "0644 1 a\0b",
            "644 1 a",
            "0888 1 a",
            "+644 1 a",
            "0644 -1 a",
            "0644 +1 a",
            "0644  a",
            "0644 18446744073709551616 a",
            "",
        ] {
            assert!(Record::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn parse_times_takes_four_numbers() {
        let times = Times::parse(b"1700000000 5 1600000000 0").unwrap();

        assert_eq!(times.modified, TimeSpec::new(1_700_000_000, 5000));
        assert_eq!(times.accessed, TimeSpec::new(1_600_000_000, 0));
        for line in
            ["", "1 0 1", "1 0 1 0 1", "1 1000000 1 0", "-1 0 1 0", "99999999999999999999 0 1 0"]
        {
            assert_eq!(Times::parse(line.as_bytes()), None, "{line}");
        }
    }
}

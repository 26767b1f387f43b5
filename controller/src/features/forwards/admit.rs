//! Who is let in. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

/// What is asked of whoever comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Networks that may come; everybody when empty.
    pub allowed: Vec<IpNet>,
    /// Most connections of this forward at once.
    pub own: u64,
    /// Most connections of all forwards at once.
    pub all: u64,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Where it comes from.
    #[error("{0} is not among the allowed sources")]
    Source(IpAddr),
    /// The forward has as many connections as it may.
    #[error("the forward has its {0} connections")]
    Full(u64),
    /// All forwards together do.
    #[error("all forwards together have their {0} connections")]
    AllFull(u64),
}

impl Limits {
    /// Decides on somebody who comes from `source` while `own` connections of this forward and `all`
    /// of every forward are open.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub(super) fn admit(&self, source: IpAddr, own: u64, all: u64) -> Result<(), Refusal> {
        let source = source.to_canonical();
        let is_allowed =
            self.allowed.is_empty() || self.allowed.iter().any(|network| network.contains(&source));
        if !is_allowed {
            return Err(Refusal::Source(source));
        }
        if own >= self.own {
            return Err(Refusal::Full(self.own));
        }
        if all >= self.all {
            return Err(Refusal::AllFull(self.all));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_and_two_limits_decide_in_this_order() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let list = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let limits = Limits { allowed: list, own: 2, all: 5 };
        let anybody = Limits { allowed: Vec::new(), ..limits.clone() };

        for (source, own, all, expected) in [
            ("10.1.2.3", 1, 4, Ok(())),
            ("::ffff:10.1.2.3", 1, 4, Ok(())),
            ("2001:db8::9", 0, 0, Ok(())),
            ("11.0.0.1", 2, 5, Err(Refusal::Source(ip("11.0.0.1")))),
            ("2001:db9::9", 0, 0, Err(Refusal::Source(ip("2001:db9::9")))),
            ("10.1.2.3", 2, 5, Err(Refusal::Full(2))),
            ("10.1.2.3", 1, 5, Err(Refusal::AllFull(5))),
        ] {
            assert_eq!(limits.admit(ip(source), own, all), expected, "{source} {own} {all}");
        }
        assert_eq!(anybody.admit(ip("11.0.0.1"), 0, 0), Ok(()));
    }
}

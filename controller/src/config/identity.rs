//! `[passwords]` and `[tokens]`: what logging in costs, and how long API tokens live.

use serde::Deserialize;

use super::ConfigError;

/// `[passwords]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Passwords {
    /// Fewest characters of a password that somebody sets.
    pub min_length: u32,
    /// Memory of one Argon2id hash in KiB; as many are made at once as there are cores, two to
    /// eight.
    pub argon2_memory_kib: u32,
    /// Passes over that memory.
    pub argon2_iterations: u32,
    /// Lanes of that memory.
    pub argon2_parallelism: u32,
    /// Numbers that a client tries, on average, before it may log in after repeated failures.
    pub challenge_tries: u32,
}

impl Default for Passwords {
    /// Argon2id as OWASP recommends it: 19 MiB, two passes, one lane. The challenge costs a laptop
    /// between half a second and a second of one core.
    fn default() -> Self {
        Self {
            min_length: 10,
            argon2_memory_kib: 19_456,
            argon2_iterations: 2,
            argon2_parallelism: 1,
            challenge_tries: 2_000,
        }
    }
}

/// `[tokens]`: API tokens, which people make for their programs.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// Days until a token ends whose maker did not say.
    pub default_days: u32,
    /// Most days until a token ends.
    pub max_days: u32,
    /// Most tokens of one account.
    pub per_account: u32,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { default_days: 90, max_days: 365, per_account: 50 }
    }
}

impl Tokens {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        within("tokens.max_days", self.max_days, 1, 3_650)?;
        within("tokens.default_days", self.default_days, 1, self.max_days)?;
        within("tokens.per_account", self.per_account, 0, 10_000)
    }
}

impl Passwords {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        within("passwords.min_length", self.min_length, 8, 128)?;
        within("passwords.argon2_memory_kib", self.argon2_memory_kib, 1_024, 1_048_576)?;
        within("passwords.argon2_iterations", self.argon2_iterations, 1, 100)?;
        within("passwords.argon2_parallelism", self.argon2_parallelism, 1, 16)?;
        within("passwords.challenge_tries", self.challenge_tries, 1, 100_000)
    }

    /// Whether a stolen hash is cheaper to try than OWASP thinks wise: it asks for some 36 MiB
    /// passes in every combination that it names.
    #[must_use]
    pub fn is_weak(&self) -> bool {
        u64::from(self.argon2_memory_kib) * u64::from(self.argon2_iterations) < 35_000
    }
}

pub(super) fn within(
    key: &'static str,
    value: u32,
    least: u32,
    most: u32,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Invalid { key, problem: format!("must be {least} to {most}, not {value}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_bounds_are_refused_with_the_bounds() {
        assert!(Passwords::default().check().is_ok());

        let bad = Passwords { argon2_memory_kib: 8, ..Passwords::default() };
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains("argon2_memory_kib") && error.contains("1024"), "{error}");
        for bad in [
            Passwords { min_length: 7, ..Passwords::default() },
            Passwords { argon2_iterations: 0, ..Passwords::default() },
            Passwords { argon2_parallelism: 17, ..Passwords::default() },
            Passwords { challenge_tries: 0, ..Passwords::default() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_lives_no_longer_by_default_than_at_most() {
        assert!(Tokens::default().check().is_ok());
        let error = Tokens { max_days: 30, ..Tokens::default() }.check().unwrap_err().to_string();
        assert!(error.contains("tokens.default_days") && error.contains("30"), "{error}");
    }

    #[test]
    fn the_default_is_not_weak_and_the_least_is() {
        assert!(!Passwords::default().is_weak());
        let least =
            Passwords { argon2_memory_kib: 1_024, argon2_iterations: 1, ..Passwords::default() };
        assert!(least.is_weak());
    }
}

//! The hurdle after repeated failures, in place of a captcha: a little work for the client's machine.
//!
//! The controller thinks of a number from 0 to `max_number` and tells what PBKDF2-HMAC-SHA-256 makes
//! of it (password: the number in decimal digits; salt: the text `salt`; 32 bytes). The client tries
//! numbers until it finds the one, and sends it back with the salt, the challenge and the signature as
//! they came. Each number takes a thousand rounds, so that a browser, which pays for every call of
//! `SubtleCrypto`, needs about as long as a program.
//!
//! Nothing is stored of a challenge: its signature says that it was made here and its salt until when
//! it may be used. Solutions that were used are remembered until then (`throttle.rs`). The key is of
//! this process alone; after a restart a client is given another challenge.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tianqi_common::clock::UnixMillis;
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// How the number becomes the challenge.
pub const ALGORITHM: &str = "PBKDF2-SHA-256";
/// Rounds of PBKDF2 for each number.
const ITERATIONS: u32 = 1_000;
/// How long a challenge may be solved and used.
const LIFETIME: Duration = Duration::from_mins(5);

/// A challenge, as a client gets it in the `data` of the problem `challenge_required`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Challenge {
    /// Always `PBKDF2-SHA-256`.
    pub algorithm: String,
    /// Rounds for each number.
    pub iterations: u32,
    /// The largest number that it can be.
    pub max_number: u32,
    /// The salt: these characters, not what they may stand for.
    pub salt: String,
    /// What the number gives, in hexadecimal digits.
    pub challenge: String,
    /// Says that it was made here.
    pub signature: String,
}

/// A solved challenge.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Solution {
    /// As it came.
    pub salt: String,
    /// As it came.
    pub challenge: String,
    /// As it came.
    pub signature: String,
    /// The number that gives the challenge.
    pub number: u32,
}

/// A solution that is right and in time; whether it was used before is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solved {
    /// Which challenge it was.
    pub nonce: u128,
    /// When it is of no use any more.
    pub expires_at: UnixMillis,
}

/// Makes challenges and checks solutions.
#[derive(Clone)]
pub struct Challenges {
    key: Arc<Zeroizing<[u8; 32]>>,
    max_number: u32,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Challenges").field("max_number", &self.max_number).finish_non_exhaustive()
    }
}

impl Challenges {
    /// Starts with a new key. A client tries `tries` numbers on average.
    #[must_use]
    pub fn new(tries: u32) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(key.as_mut());
        Self { key: Arc::new(key), max_number: tries.saturating_mul(2) }
    }

    /// Makes a challenge.
    #[must_use]
    pub fn issue(&self, now: UnixMillis) -> Challenge {
        let nonce: u128 = rand::rng().random();
        let salt = format!("{nonce:032x}.{}", now.plus(LIFETIME).0);
        let number = rand::rng().random_range(0..=self.max_number);
        let challenge = hex::encode(derive(number, &salt, ITERATIONS));
        let signature = hex::encode(self.mac(&salt, &challenge).finalize().into_bytes());
        let algorithm = ALGORITHM.to_owned();
        let (iterations, max_number) = (ITERATIONS, self.max_number);
        Challenge { algorithm, iterations, max_number, salt, challenge, signature }
    }

    /// Checks a solution; nothing when it is wrong, too late, or of a challenge of somebody else.
    #[must_use]
    pub fn check(&self, solution: &Solution, now: UnixMillis) -> Option<Solved> {
        // The signature comes first: numbers are tried for challenges of one's own alone.
        let signature = hex::decode(&solution.signature).ok()?;
        let mac = self.mac(&solution.salt, &solution.challenge);
        mac.verify_slice(&signature).ok()?;
        let (nonce, expires_at) = solution.salt.split_once('.')?;
        let nonce = u128::from_str_radix(nonce, 16).ok()?;
        let expires_at = UnixMillis(expires_at.parse().ok()?);
        let is_in_time = now < expires_at;
        let is_right = is_in_time
            && hex::encode(derive(solution.number, &solution.salt, ITERATIONS))
                == solution.challenge;
        is_right.then_some(Solved { nonce, expires_at })
    }

    fn mac(&self, salt: &str, challenge: &str) -> Hmac<Sha256> {
        // A salt that was made here holds no line end.
        let mac = keyed(self.key.as_slice());
        mac.chain_update(salt).chain_update("\n").chain_update(challenge)
    }
}

/// Returns the first block of PBKDF2-HMAC-SHA-256 (RFC 8018) over the number's decimal digits.
fn derive(number: u32, salt: &str, iterations: u32) -> [u8; 32] {
    let keyed = keyed(number.to_string().as_bytes());
    let first = keyed.clone().chain_update(salt).chain_update(1_u32.to_be_bytes());
    let mut round: [u8; 32] = first.finalize().into_bytes().into();
    let mut sum = round;
    for _ in 1..iterations {
        round = keyed.clone().chain_update(round).finalize().into_bytes().into();
        for (sum, byte) in sum.iter_mut().zip(round) {
            *sum ^= byte;
        }
    }
    sum
}

#[allow(clippy::expect_used, reason = "HMAC takes keys of any length")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Solves a challenge, as a client does; nothing when it cannot be solved.
#[must_use]
pub fn solve(challenge: &Challenge) -> Option<Solution> {
    let is_it = |number: &u32| {
        let derived = derive(*number, &challenge.salt, challenge.iterations);
        hex::encode(derived) == challenge.challenge
    };
    let number = (0..=challenge.max_number).find(is_it)?;
    let Challenge { salt, challenge, signature, .. } = challenge.clone();
    Some(Solution { salt, challenge, signature, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    #[test]
    fn the_rounds_are_those_of_the_standard() {
        // As Python's hashlib.pbkdf2_hmac("sha256", b"1", b"salt", 2) has it.
        let known = "cd4524236376ebe154f7a4fbb2533298181b2ca82a649b5eb9c9e07488776cbf";

        assert_eq!(hex::encode(derive(1, "salt", 2)), known);
    }

    #[test]
    fn a_solution_is_right_until_it_is_too_late() {
        let challenges = Challenges::new(4);
        let challenge = challenges.issue(NOW);
        let solution = solve(&challenge).unwrap();

        let solved = challenges.check(&solution, NOW).unwrap();
        assert_eq!(solved.expires_at, NOW.plus(LIFETIME));
        assert!(challenges.check(&solution, NOW.plus(LIFETIME)).is_none());
        let other = challenges.issue(NOW);
        assert_ne!(challenges.check(&solve(&other).unwrap(), NOW).unwrap().nonce, solved.nonce);
    }

    #[test]
    fn nothing_of_a_solution_can_be_changed() {
        let challenges = Challenges::new(4);
        let right = solve(&challenges.issue(NOW)).unwrap();
        let (nonce, _) = right.salt.split_once('.').unwrap();
        let later = format!("{nonce}.{}", NOW.plus(LIFETIME * 10).0);

        for wrong in [
            Solution { number: right.number + 1, ..right.clone() },
            Solution { salt: later, ..right.clone() },
            Solution { challenge: "00".repeat(32), ..right.clone() },
            Solution { signature: "00".repeat(32), ..right.clone() },
            Solution { signature: "no hex".to_owned(), ..right.clone() },
            Solution { salt: String::new(), ..right.clone() },
        ] {
            assert!(challenges.check(&wrong, NOW).is_none(), "{wrong:?}");
        }
        let elsewhere = Challenges::new(4);
        assert!(elsewhere.check(&right, NOW).is_none(), "another process made it");
    }
}

//! Passwords: Argon2id, away from the async threads, a few at a time.
//!
//! A hash says itself how it was made. One that was made with other parameters than the
//! configuration's is made anew when its owner next logs in; until then a login to that account takes
//! another time than to one that does not exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::argon2id::Argon2id;
use super::strength::PASSWORD_MAX;
use crate::config::Passwords;
use crate::core::error::{Problem, Result};
use crate::core::secret::Secret;

/// Callers that may wait for their turn; one more is told to come back.
const WAITING_MAX: usize = 64;

/// Hashes and compares passwords.
///
/// By default one hash takes 19 MiB and some 20 ms of a core, so as many run at once as there are
/// cores, and their memory is kept for the next. Others wait; when too many wait, the next is refused (`busy`, 503).
#[derive(Clone, Debug)]
pub struct Hasher {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    argon2id: Argon2id,
    /// What a password is compared with when the account does not exist, so that the answer takes as
    /// long as for one that does; no password gives it.
    nobody: Arc<str>,
    runs: Arc<AtomicU64>,
}

/// A turn to use a core for one password.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// What a comparison found.
#[derive(Debug)]
pub struct Verdict {
    /// Whether it is the password.
    pub is_right: bool,
    /// The hash to store from now on, when the stored one was made with other parameters.
    pub renewed: Option<String>,
}

impl Hasher {
    /// Starts with as many turns as there are cores, two to eight.
    #[must_use]
    pub fn new(passwords: &Passwords) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let (memory, iterations, lanes) = (
            passwords.argon2_memory_kib,
            passwords.argon2_iterations,
            passwords.argon2_parallelism,
        );
        Self {
            running: Arc::new(Semaphore::new(cores.clamp(2, 8))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            // Whatever passes the configuration's check is fine with Argon2.
            argon2id: Argon2id::new(
                Params::new(memory, iterations, lanes, None).unwrap_or_default(),
            ),
            nobody: nobody(memory, iterations, lanes).into(),
            runs: Arc::default(),
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    ///
    /// `busy` (503) when too many wait.
    pub async fn turn(&self) -> Result<Turn> {
        let busy = || Problem::unavailable("busy", "too many people log in now; try again");
        let _place = self.waiting.clone().try_acquire_owned().map_err(|_| busy())?;
        self.running.clone().acquire_owned().await.map(Turn).map_err(|_| busy())
    }

    /// Returns what is stored of `password`: Argon2id with its own salt, as a PHC string.
    ///
    /// # Errors
    ///
    /// `busy` (503), `internal` (500).
    pub async fn hash(&self, password: &Secret) -> Result<String> {
        let (turn, password, this) = (self.turn().await?, password.clone(), self.clone());
        blocking(move || {
            let hash = this.run(&password);
            drop(turn);
            hash
        })
        .await?
    }

    /// Compares `password` with what is stored; `None` stands for an account that does not exist,
    /// takes as long, and is never right.
    ///
    /// # Errors
    ///
    /// `internal` (500) when the stored text is not a hash.
    pub async fn verify(
        &self,
        turn: Turn,
        password: &Secret,
        stored: Option<&str>,
    ) -> Result<Verdict> {
        let is_known = stored.is_some();
        let stored = stored.unwrap_or(&self.nobody).to_owned();
        let (password, this) = (password.clone(), self.clone());
        blocking(move || {
            let hash = PasswordHash::new(&stored).map_err(|error| Problem::internal(&error))?;
            // The comparison is made in both cases.
            let is_right = this.fits(&password, &hash)? && is_known;
            let is_old = is_right && !this.argon2id.is_current(&hash);
            let renewed = if is_old { Some(this.run(&password)?) } else { None };
            drop(turn);
            Ok(Verdict { is_right, renewed })
        })
        .await?
    }

    /// Returns how many hashes were made since the start, for new passwords and for comparisons.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    fn run(&self, password: &Secret) -> Result<String> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let hash = self.argon2id.hash(password.expose().as_bytes());
        hash.map(|hash| hash.to_string()).map_err(|error| Problem::internal(&error))
    }

    fn fits(&self, password: &Secret, hash: &PasswordHash) -> Result<bool> {
        let text = password.expose();
        if text.len() > PASSWORD_MAX {
            return Ok(false);
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        let fits = self.argon2id.fits(text.as_bytes(), hash);
        fits.map_err(|error| Problem::internal(&error))
    }
}

/// Returns a hash with these parameters and 16 and 32 bytes of zero for salt and outcome.
fn nobody(memory: u32, iterations: u32, lanes: u32) -> String {
    let (salt, outcome) = ("A".repeat(22), "A".repeat(43));
    format!("$argon2id$v=19$m={memory},t={iterations},p={lanes}${salt}${outcome}")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Problem::internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CHEAP;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    async fn verify(hasher: &Hasher, text: &str, stored: Option<&str>) -> Verdict {
        hasher.verify(hasher.turn().await.unwrap(), &secret(text), stored).await.unwrap()
    }

    #[tokio::test]
    async fn a_hash_fits_its_own_password_alone() {
        let hasher = Hasher::new(&CHEAP);
        let stored = hasher.hash(&secret("correct horse")).await.unwrap();

        assert!(verify(&hasher, "correct horse", Some(&stored)).await.is_right);
        assert!(!verify(&hasher, "correct horsf", Some(&stored)).await.is_right);
        assert!(!verify(&hasher, "correct horse", None).await.is_right);
        assert!(stored.starts_with("$argon2id$v=19$m=1024,t=1,p=1$"), "{stored}");
    }

    #[tokio::test]
    async fn an_unknown_account_costs_as_much_as_a_known_one() {
        for passwords in [CHEAP, Passwords { argon2_iterations: 3, argon2_parallelism: 2, ..CHEAP }]
        {
            let hasher = Hasher::new(&passwords);
            let stored = hasher.hash(&secret("anything")).await.unwrap();
            let (real, fake) =
                (PasswordHash::new(&stored).unwrap(), PasswordHash::new(&hasher.nobody).unwrap());

            assert_eq!(fake.params.to_string(), real.params.to_string());
            assert_eq!(fake.algorithm, real.algorithm);
            assert_eq!(fake.hash.unwrap().as_bytes().len(), real.hash.unwrap().as_bytes().len());

            let runs = async |stored: Option<&str>| {
                let before = hasher.runs();
                let verdict = verify(&hasher, "wrong", stored).await;
                assert!(!verdict.is_right && verdict.renewed.is_none());
                hasher.runs() - before
            };
            assert_eq!((runs(Some(&stored)).await, runs(None).await), (1, 1));
        }
    }

    #[tokio::test]
    async fn a_hash_of_other_parameters_is_made_anew_when_the_password_is_right() {
        let (old, new) =
            (Hasher::new(&CHEAP), Hasher::new(&Passwords { argon2_iterations: 2, ..CHEAP }));
        let stored = old.hash(&secret("correct horse")).await.unwrap();

        assert!(verify(&new, "wrong", Some(&stored)).await.renewed.is_none());
        assert!(verify(&old, "correct horse", Some(&stored)).await.renewed.is_none());
        let verdict = verify(&new, "correct horse", Some(&stored)).await;
        let renewed = verdict.renewed.unwrap();
        assert!(verdict.is_right && renewed.contains("t=2"), "{renewed}");
        let verdict = verify(&new, "correct horse", Some(&renewed)).await;
        assert!(verdict.is_right && verdict.renewed.is_none());
    }

    #[tokio::test]
    async fn more_than_the_waiting_room_holds_are_told_to_come_back() {
        let hasher = Hasher::new(&CHEAP);
        let mut turns = Vec::new();
        while hasher.running.available_permits() > 0 {
            turns.push(hasher.turn().await.unwrap());
        }
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let hasher = hasher.clone();
                tokio::spawn(async move { hasher.turn().await })
            })
            .collect();
        while hasher.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }

        assert_eq!(hasher.turn().await.unwrap_err().code, "busy");
        drop(turns);
        for one in waiting {
            assert!(one.await.unwrap().is_ok());
        }
    }
}

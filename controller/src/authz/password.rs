//! Passwords: Argon2id, away from the async threads, a few at a time.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::error::{Problem, Result};
use crate::core::secret::Secret;

/// Fewest characters of a password that somebody sets.
pub const PASSWORD_MIN: usize = 10;
/// Most bytes of a password; more would only cost time.
pub const PASSWORD_MAX: usize = 1_024;
/// Callers that may wait for their turn; one more is told to come back.
const WAITING_MAX: usize = 64;

/// What a password is compared with when the account does not exist, so that the answer takes as
/// long as for one that does. It has the parameters of [`Argon2::default`]; no password gives it.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes and compares passwords.
///
/// One hash takes 19 MiB and some 20 ms of a core, so as many run at once as there are cores. Others
/// wait; when too many wait, the next is refused (`busy`, 503).
#[derive(Clone, Debug)]
pub struct Hasher {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// A turn to use a core for one password.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Hasher {
    /// Starts with as many turns as there are cores, two to eight.
    #[must_use]
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            running: Arc::new(Semaphore::new(cores.clamp(2, 8))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
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
        let (turn, password) = (self.turn().await?, password.clone());
        blocking(move || {
            let hash = Argon2::default().hash_password(password.expose().as_bytes());
            drop(turn);
            hash.map(|hash| hash.to_string()).map_err(|error| Problem::internal(&error))
        })
        .await?
    }

    /// Compares `password` with what is stored; `None` stands for an account that does not exist,
    /// takes as long, and is never right.
    ///
    /// # Errors
    ///
    /// `internal` (500) when the stored text is not a hash.
    pub async fn verify(turn: Turn, password: &Secret, stored: Option<&str>) -> Result<bool> {
        let is_known = stored.is_some();
        let (password, stored) = (password.clone(), stored.unwrap_or(NOBODY).to_owned());
        blocking(move || {
            let hash = PasswordHash::new(&stored).map_err(|error| Problem::internal(&error))?;
            let text = password.expose();
            let is_right = text.len() <= PASSWORD_MAX
                && Argon2::default().verify_password(text.as_bytes(), &hash).is_ok();
            drop(turn);
            Ok(is_right && is_known)
        })
        .await?
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Problem::internal(&error))
}

/// Checks a password that somebody wants to set.
///
/// # Errors
///
/// `weak_password` (422) saying what is asked for.
pub fn check_new(password: &Secret) -> Result<()> {
    let (chars, bytes) = (password.expose().chars().count(), password.expose().len());
    if chars < PASSWORD_MIN {
        let detail = format!("the password has {chars} characters; give at least {PASSWORD_MIN}");
        return Err(Problem::invalid("weak_password", detail));
    }
    if bytes > PASSWORD_MAX {
        let detail = format!("the password has {bytes} bytes; at most {PASSWORD_MAX} are allowed");
        return Err(Problem::invalid("weak_password", detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_hash_fits_its_own_password_alone() {
        let hasher = Hasher::new();
        let stored = hasher.hash(&secret("correct horse")).await.unwrap();

        let verify = async |text: &str, stored: Option<&str>| {
            Hasher::verify(hasher.turn().await.unwrap(), &secret(text), stored).await.unwrap()
        };
        assert!(verify("correct horse", Some(&stored)).await);
        assert!(!verify("correct horsf", Some(&stored)).await);
        assert!(!verify("correct horse", None).await);
        assert!(stored.starts_with("$argon2id$"));
    }

    #[test]
    fn an_unknown_account_costs_as_much_as_a_known_one() {
        let nobody = PasswordHash::new(NOBODY).unwrap();
        let real = Argon2::default().hash_password(b"anything").unwrap();

        assert_eq!(nobody.params.to_string(), real.params.to_string());
        assert_eq!(nobody.algorithm, real.algorithm);
        assert_eq!(nobody.hash.unwrap().as_bytes().len(), real.hash.unwrap().as_bytes().len());
    }

    #[tokio::test]
    async fn more_than_the_waiting_room_holds_are_told_to_come_back() {
        let hasher = Hasher::new();
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

    #[test]
    fn short_and_endless_passwords_are_refused_with_their_length() {
        assert!(check_new(&secret("密码密码密码密码密码")).is_ok());
        assert!(check_new(&secret("123456789")).unwrap_err().detail.contains("9 characters"));
        assert!(check_new(&secret(&"x".repeat(PASSWORD_MAX + 1))).is_err());
    }
}

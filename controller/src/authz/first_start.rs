//! The first start: the account `admin`, and no default password.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::account::{self, Account};
use super::login::random_password;
use super::{Authz, RoleName};
use crate::core::audit::{self, Doer, Entry, Outcome};
use crate::core::db::DbError;
use crate::core::error::Problem;
use crate::core::secret::Secret;

/// The first account's name.
pub const ADMIN: &str = "admin";
const PASSWORD_FILE: &str = "initial-admin-password";

/// Why the first account could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FirstStartError {
    /// The password that was asked for is refused.
    #[error("TIANQI_ADMIN_PASSWORD is refused: {0}")]
    Password(String),
    /// The password could not be hashed.
    #[error("the password of the first account cannot be hashed: {0}")]
    Hash(String),
    /// The file for the generated password cannot be written.
    #[error("cannot write the password of the first account to {path}")]
    File {
        /// Where to.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The database refused.
    #[error("cannot store the first account")]
    Db(#[source] DbError),
}

/// Where the generated password of the first account lies until its owner changes it.
#[must_use]
pub fn password_file(data_dir: &Path) -> PathBuf {
    data_dir.join(PASSWORD_FILE)
}

impl Authz {
    /// Makes the account `admin` when there is no account at all.
    ///
    /// With `chosen` (`TIANQI_ADMIN_PASSWORD`) that is its password. Without, a random one is
    /// written to `<data_dir>/initial-admin-password` (mode 0600) and must be changed at the first
    /// login. The file is written first, so that no account exists whose password nobody has.
    ///
    /// # Errors
    ///
    /// [`FirstStartError`].
    pub async fn ensure_admin(
        &self,
        data_dir: &Path,
        chosen: Option<Secret>,
    ) -> Result<(), FirstStartError> {
        if account::count(&self.db).await.map_err(FirstStartError::Db)? > 0 {
            return Ok(());
        }
        let is_generated = chosen.is_none();
        let password = chosen.unwrap_or_else(random_password);
        self.check_new_password(&password, ADMIN)
            .map_err(|problem| FirstStartError::Password(problem.detail))?;
        if is_generated {
            write_password(data_dir, &password)?;
        }
        let hash = self.hasher.hash(&password).await;
        let hash = hash.map_err(|problem: Problem| FirstStartError::Hash(problem.detail))?;
        match self.insert_admin(&hash, is_generated).await {
            // Another controller on the same database was faster.
            Err(DbError::Duplicate(_)) => Ok(()),
            other => other.map_err(FirstStartError::Db),
        }
    }

    async fn insert_admin(&self, hash: &str, is_generated: bool) -> Result<(), DbError> {
        let now = self.clock.now();
        let admin = Account {
            must_change_password: is_generated,
            ..Account::new(ADMIN.to_owned(), RoleName::ADMIN, now)
        };
        let mut tx = self.db.begin().await?;
        account::insert(&mut tx, &admin, hash).await?;
        let entry = Entry {
            doer: &Doer::system(),
            action: "users:create",
            target_kind: "user",
            target_id: admin.id.to_string(),
            outcome: Outcome::Done,
            detail: serde_json::json!({ "name": ADMIN, "role": "admin" }),
        };
        audit::record(&mut tx, now, &entry).await?;
        tx.commit().await
    }
}

fn write_password(data_dir: &Path, password: &Secret) -> Result<(), FirstStartError> {
    let path = password_file(data_dir);
    let failed = |source| FirstStartError::File { path: path.display().to_string(), source };
    // One left by a start that was killed before the account was stored is of no use.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    writeln!(file, "{}", password.expose()).and_then(|()| file.sync_all()).map_err(failed)?;
    tracing::info!("account admin made; its password is in {}", path.display());
    Ok(())
}

/// Removes the file with the first password once its owner chose another.
pub fn forget_password_file(data_dir: &Path) {
    let path = password_file(data_dir);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot remove {}; its password is no longer valid", path.display());
    }
}

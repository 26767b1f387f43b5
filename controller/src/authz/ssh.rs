//! Coming in by SSH: a password by the same check and the same throttle as everywhere, or a public
//! key. Both end in a session of their own, which is listed and can be ended like any other.
//!
//! A second factor belongs where [`Authz::ssh_password`] has checked the password: SSH can ask for
//! more by `keyboard-interactive`.

use super::account::{self, Account};
use super::actor;
use super::login::{Visitor, counted_name};
use super::session::SessionKind;
use super::ssh_key::{self, SshKey};
use super::{Actor, Authz};
use crate::core::audit::Via;
use crate::core::error::{Problem, Result};
use crate::core::secret::Secret;

impl Authz {
    /// Checks a name and a password and begins a session of SSH. Nobody can be shown a challenge
    /// there, so whoever would be asked for one waits instead, whether the account exists or not.
    ///
    /// # Errors
    ///
    /// As [`Authz::check_password`], and `account_changed` (409).
    pub async fn ssh_password(
        &self,
        visitor: &Visitor,
        name: &str,
        password: &Secret,
    ) -> Result<Actor> {
        let hurdle = self.throttle.hurdle(&counted_name(name), visitor.remote).await;
        if !hurdle.wait_unsolved.is_zero() {
            let seconds = hurdle.wait_unsolved.as_millis().div_ceil(1_000);
            let detail = format!("too many wrong passwords; try again in {seconds} s");
            return Err(Problem::too_many("too_many_attempts", detail));
        }
        let account = self.check_password(visitor, name, password).await?;
        self.ssh_session(visitor, &account, None).await
    }

    /// Whether a proof by this key is worth asking for: the account `name` has it. The same one
    /// statement answers for an account that does not exist.
    ///
    /// # Errors
    ///
    /// `internal` (500).
    pub async fn knows_ssh_key(&self, name: &str, fingerprint: &str) -> Result<bool> {
        Ok(ssh_key::of_account(&self.db, name, fingerprint).await?.is_some())
    }

    /// Begins a session of SSH for somebody who has proved to hold the key.
    ///
    /// # Errors
    ///
    /// `wrong_credentials` (401) when the account has no such key, `account_disabled` (403),
    /// `account_changed` (409).
    pub async fn ssh_key(&self, visitor: &Visitor, name: &str, fingerprint: &str) -> Result<Actor> {
        let wrong = || Problem::unauthorised("wrong_credentials", "there is no such key");
        let key = ssh_key::of_account(&self.db, name, fingerprint).await?.ok_or_else(wrong)?;
        let account = account::account(&self.db, key.user).await?.ok_or_else(wrong)?;
        if account.disabled {
            self.note_refusal(visitor, &account.name, "account_disabled").await?;
            let detail = "this account is disabled; ask an admin";
            return Err(Problem::forbidden("account_disabled", detail));
        }
        let actor = self.ssh_session(visitor, &account, Some(&key)).await?;
        ssh_key::note_use(&self.db, key.id, self.clock.now(), &actor.remote_address).await?;
        Ok(actor)
    }

    async fn ssh_session(
        &self,
        visitor: &Visitor,
        account: &Account,
        key: Option<&SshKey>,
    ) -> Result<Actor> {
        let begun = self.begin(visitor, account, SessionKind::Ssh, key).await?;
        Ok(Actor {
            id: account.id,
            name: account.name.clone(),
            role: self.role_of(account).await?,
            session: begun.id,
            expires_at: begun.expires_at,
            must_change_password: account.must_change_password,
            via: Via::Ssh,
            remote_address: visitor.remote.to_string(),
            request_id: visitor.request_id.clone(),
        })
    }

    /// Ends the session of an SSH connection that has ended, if it still stands.
    ///
    /// # Errors
    ///
    /// `internal` (500).
    pub async fn ssh_left(&self, actor: &Actor) -> Result<()> {
        let mut tx = self.db.begin().await?;
        super::session::end(&mut tx, actor.session).await?;
        Ok(tx.commit().await?)
    }

    /// Reads again what an actor may do now, for whoever stays connected for long.
    ///
    /// # Errors
    ///
    /// `unauthorised` (401) when its session has ended or its account is disabled.
    pub async fn refresh(&self, actor: &Actor) -> Result<Actor> {
        actor::refresh(self, actor).await
    }
}

//! Logging in and out, and changing passwords. Browser, SSH and tokens come through here.

use std::net::IpAddr;

use axum::http::HeaderMap;
use axum::http::header::USER_AGENT;
use rand::RngExt;
use rand::distr::Alphanumeric;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::UserId;
use tianqi_common::name::UserName;

use super::account::{self, Account};
use super::challenge::Solution;
use super::session::{self, Begun, Origin, SessionKind};
use super::ssh_key::SshKey;
use super::throttle::Hurdle;
use super::{Actor, Authz, token};
use crate::core::audit::{self, Doer, Entry, Outcome, Via};
use crate::core::db::Tx;
use crate::core::error::{Problem, Result};
use crate::core::http::RequestInfo;
use crate::core::secret::Secret;

const LOGIN: &str = "session:login";
/// Length of a password that is made here: 24 letters and digits are 142 bits.
const GENERATED_LENGTH: usize = 24;

/// What somebody logs in with.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The account's name.
    pub name: &'a str,
    /// Its password.
    pub password: &'a Secret,
    /// A challenge that the client has solved, if it was given one.
    pub solution: Option<&'a Solution>,
}

/// Somebody who is not logged in yet.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// The client's address.
    pub remote: IpAddr,
    /// The request's id; empty outside of HTTP.
    pub request_id: String,
    /// What the client says it is.
    pub user_agent: String,
    /// How they try to come in.
    pub via: Via,
}

impl Visitor {
    /// Takes what an HTTP request says.
    #[must_use]
    pub fn of(info: &RequestInfo, headers: &HeaderMap, kind: SessionKind) -> Self {
        let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
        Self {
            remote: info.remote,
            request_id: info.id.clone(),
            user_agent: agent.unwrap_or_default().to_owned(),
            via: match kind {
                SessionKind::Cookie => Via::Cookie,
                SessionKind::Token => Via::Token,
                SessionKind::Ssh => Via::Ssh,
            },
        }
    }

    fn doer(&self) -> Doer {
        let request_id = self.request_id.clone();
        Doer { request_id, ..Doer::anonymous(self.remote, self.via) }
    }
}

impl Authz {
    /// Checks a name and a password; every face of the controller asks here. Faces that can show a
    /// challenge ask [`Authz::log_in`], which asks for one first.
    ///
    /// # Errors
    ///
    /// `wrong_credentials` (401) whether the account or the password is wrong, `account_disabled`
    /// (403) when the password is right, `too_many_attempts` (429), `busy` (503).
    pub async fn check_password(
        &self,
        visitor: &Visitor,
        name: &str,
        password: &Secret,
    ) -> Result<Account> {
        let name = counted_name(name);
        self.slow_down(&name, visitor.remote).await?;
        let turn = self.hasher.turn().await?;
        // Whoever waited for a turn may have failed elsewhere in the meantime.
        self.slow_down(&name, visitor.remote).await?;
        let found = account::with_hash(&self.db, &name).await?;
        let stored = found.as_ref().map(|(_, hash)| hash.as_str());
        let verdict = self.hasher.verify(turn, password, stored).await?;
        match found {
            Some((account, old)) if verdict.is_right && !account.disabled => {
                self.throttle.succeeded(&name).await;
                if let Some(new) = verdict.renewed {
                    account::renew_hash(&self.db, account.id, &old, &new).await?;
                }
                Ok(account)
            }
            Some((account, _)) if verdict.is_right => {
                self.note_refusal(visitor, &account.name, "account_disabled").await?;
                let detail = "this account is disabled; ask an admin";
                Err(Problem::forbidden("account_disabled", detail))
            }
            _ => {
                self.throttle.failed(&name, visitor.remote).await;
                self.note_refusal(visitor, &name, "wrong_credentials").await?;
                Err(Problem::unauthorised("wrong_credentials", "the name or the password is wrong"))
            }
        }
    }

    /// Lets a try go ahead, or says how long it must wait. Returns whether it needs a solved challenge.
    async fn slow_down(&self, name: &str, remote: IpAddr) -> Result<bool> {
        let Hurdle { wait, challenge, .. } = self.throttle.hurdle(name, remote).await;
        if wait.is_zero() {
            return Ok(challenge);
        }
        let seconds = wait.as_millis().div_ceil(1_000);
        let detail = format!("too many wrong passwords; try again in {seconds} s");
        let data = serde_json::json!({ "retry_after_seconds": seconds });
        Err(Problem::too_many("too_many_attempts", detail).with(data))
    }

    /// After repeated failures of the account or the address, asks for a solved challenge and uses it
    /// up. Whether the account exists plays no part.
    async fn ask_for_work(&self, remote: IpAddr, credentials: Credentials<'_>) -> Result<()> {
        if !self.slow_down(&counted_name(credentials.name), remote).await? {
            return Ok(());
        }
        let now = self.clock.now();
        let detail = match credentials.solution {
            None => "after repeated wrong passwords a login needs a solved challenge",
            Some(solution) => match self.challenges.check(solution, now) {
                Some(solved) if self.throttle.spend(solved).await => return Ok(()),
                Some(_) => "this solution was used before",
                None => "this solution is wrong or too old",
            },
        };
        let detail = format!("{detail}; solve data.challenge and send it as challenge_solution");
        let data = serde_json::json!({ "challenge": self.challenges.issue(now) });
        Err(Problem::forbidden("challenge_required", detail).with(data))
    }

    pub(super) async fn note_refusal(
        &self,
        visitor: &Visitor,
        name: &str,
        code: &str,
    ) -> Result<()> {
        let entry = Entry {
            doer: &visitor.doer(),
            action: LOGIN,
            target_kind: "user",
            target_id: name.to_owned(),
            outcome: Outcome::Refused,
            detail: serde_json::json!({ "code": code }),
        };
        Ok(audit::record_alone(&self.db, self.clock.now(), &entry).await?)
    }

    /// Checks a name and a password and begins a session.
    ///
    /// # Errors
    ///
    /// `challenge_required` (403) with a challenge in its data, `account_changed` (409) when it was
    /// disabled or its password reset in the meantime, and as [`Authz::check_password`].
    pub async fn log_in(
        &self,
        visitor: &Visitor,
        credentials: Credentials<'_>,
        kind: SessionKind,
    ) -> Result<(Begun, Account)> {
        self.ask_for_work(visitor.remote, credentials).await?;
        let Credentials { name, password, .. } = credentials;
        let account = self.check_password(visitor, name, password).await?;
        Ok((self.begin(visitor, &account, kind, None).await?, account))
    }

    /// Begins a session of an account that has proved who it is, by `key` if it was one.
    ///
    /// # Errors
    ///
    /// `account_changed` (409).
    pub(super) async fn begin(
        &self,
        visitor: &Visitor,
        account: &Account,
        kind: SessionKind,
        key: Option<&SshKey>,
    ) -> Result<Begun> {
        let now = self.clock.now();
        let (address, ssh_key) = (visitor.remote.to_string(), key.map(|key| key.id));
        let origin = Origin { remote_address: &address, user_agent: &visitor.user_agent, ssh_key };
        let mut tx = self.db.begin().await?;
        if !account::is_unchanged(&mut tx, account).await? {
            let detail = "the account was changed just now; log in again";
            return Err(Problem::conflict("account_changed", detail));
        }
        let begun = session::begin(&mut tx, self.sessions, account.id, kind, origin, now).await?;
        let doer = Doer {
            id: Some(account.id),
            name: account.name.clone(),
            kind: "user",
            ..visitor.doer()
        };
        let mut detail = serde_json::json!({ "kind": kind.as_str() });
        if let (Some(key), Some(detail)) = (key, detail.as_object_mut()) {
            detail.insert("ssh_key".to_owned(), key.fingerprint.clone().into());
        }
        note_done(&mut tx, now, &doer, LOGIN, account.id, detail).await?;
        tx.commit().await?;
        Ok(begun)
    }

    /// Ends the session that `actor` speaks through.
    ///
    /// # Errors
    ///
    /// `internal` (500).
    pub async fn log_out(&self, actor: &Actor) -> Result<()> {
        let mut tx = self.db.begin().await?;
        session::end(&mut tx, actor.session).await?;
        let (now, detail) = (self.clock.now(), serde_json::json!({}));
        note_done(&mut tx, now, &actor.doer(), "session:logout", actor.id, detail).await?;
        Ok(tx.commit().await?)
    }

    /// Sets the caller's own password and ends the account's other sessions.
    ///
    /// # Errors
    ///
    /// `wrong_password` (422) when `current` is not the password, `weak_password` (422),
    /// `too_many_attempts` (429), `busy` (503).
    pub async fn change_own_password(
        &self,
        actor: &Actor,
        remote: IpAddr,
        current: &Secret,
        new: &Secret,
    ) -> Result<()> {
        self.check_new_password(new, &actor.name)?;
        self.slow_down(&actor.name, remote).await?;
        let turn = self.hasher.turn().await?;
        let found = account::with_hash(&self.db, &actor.name).await?;
        let stored = found.as_ref().map(|(_, hash)| hash.as_str());
        if !self.hasher.verify(turn, current, stored).await?.is_right {
            self.throttle.failed(&actor.name, remote).await;
            return Err(Problem::invalid("wrong_password", "current_password is wrong"));
        }
        if current.expose() == new.expose() {
            let detail = "the new password is the old one; choose another";
            return Err(Problem::invalid("weak_password", detail));
        }
        let hash = self.hasher.hash(new).await?;
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        account::set_password(&mut tx, actor.id, &hash, false, now).await?;
        let ended = session::end_all(&mut tx, actor.id, Some(actor.session)).await?;
        let detail = serde_json::json!({ "ended_sessions": ended });
        note_done(&mut tx, now, &actor.doer(), "me:password", actor.id, detail).await?;
        Ok(tx.commit().await?)
    }

    /// Sets somebody's password in `tx` and ends all sessions of the account and withdraws its API
    /// tokens: whoever knew the password may have made some. `hash` comes from
    /// [`Hasher::hash`](super::password::Hasher::hash), made before the transaction.
    ///
    /// # Errors
    ///
    /// `internal` (500).
    pub async fn reset_password(
        &self,
        tx: &mut Tx,
        doer: &Doer,
        user: UserId,
        hash: &str,
        must_change: bool,
    ) -> Result<()> {
        let now = self.clock.now();
        account::set_password(tx, user, hash, must_change, now).await?;
        let ended = session::end_all(tx, user, None).await?;
        let withdrawn = token::withdraw_all(tx, user).await?;
        let detail = serde_json::json!({ "ended_sessions": ended, "withdrawn_tokens": withdrawn });
        note_done(tx, now, doer, "users:password", user, detail).await
    }

    /// Gives the account called `name` a new random password that must be changed at the next
    /// login, ends its sessions, and returns the password and the account. For the admin socket.
    ///
    /// # Errors
    ///
    /// `no_such_user` (404), `busy` (503).
    pub async fn reset_to_random(&self, doer: &Doer, name: &str) -> Result<(Secret, Account)> {
        let found = account::with_hash(&self.db, name).await?;
        let (account, _) = found.ok_or_else(|| {
            Problem::not_found("no_such_user", format!("there is no account {name:?}"))
        })?;
        let password = random_password();
        let hash = self.hasher.hash(&password).await?;
        let mut tx = self.db.begin().await?;
        self.reset_password(&mut tx, doer, account.id, &hash, true).await?;
        tx.commit().await?;
        self.throttle.succeeded(name).await;
        Ok((password, account))
    }
}

/// Returns the name under which failures are counted. Names that cannot exist are counted as one, so
/// that noise does not fill the memory.
pub(super) fn counted_name(name: &str) -> String {
    UserName::parse(name).map(String::from).unwrap_or_default()
}

/// Makes a password of letters and digits that nobody guesses.
pub(super) fn random_password() -> Secret {
    let letters = rand::rng().sample_iter(Alphanumeric).take(GENERATED_LENGTH);
    Secret::new(letters.map(char::from).collect())
}

/// Writes in `tx` that something was done to an account.
async fn note_done(
    tx: &mut Tx,
    now: UnixMillis,
    doer: &Doer,
    action: &'static str,
    user: UserId,
    detail: serde_json::Value,
) -> Result<()> {
    let (target_kind, target_id) = ("user", user.to_string());
    let outcome = Outcome::Done;
    let entry = Entry { doer, action, target_kind, target_id, outcome, detail };
    Ok(audit::record(tx, now, &entry).await?)
}

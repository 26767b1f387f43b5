//! THE place for who may do what.
//!
//! A [`Grant`] is proof that somebody may do one thing to one resource. It is made here and nowhere
//! else, it is not serialisable, and it cannot be pointed at another target. A handler cannot be
//! written without one in its signature; opening anything on an instance takes one.
//!
//! A second factor (TOTP) belongs in `login.rs`, after `check_password` and before a session begins: a
//! login that lacks it is answered like one that lacks a solved challenge. OpenID Connect belongs
//! beside it as another way to an account; both end in `session::begin`.

pub mod account;
pub mod actor;
mod argon2id;
pub mod challenge;
mod credential;
mod extract;
pub mod first_start;
pub mod login;
pub mod password;
pub mod policy;
pub mod quota;
pub mod resource;
pub mod role;
pub mod session;
mod ssh;
pub mod ssh_key;
pub mod standing;
pub mod strength;
mod throttle;
pub mod token;
pub mod watch;

use std::marker::PhantomData;

use tianqi_common::clock::SharedClock;
use tianqi_common::id::UserId;

use crate::config::Config;
use crate::core::audit::Via;
use crate::core::db::Db;
use crate::core::error::{Problem, Result};
use crate::core::http::rate::Limiter;
use crate::core::secret::Secret;

pub use actor::Actor;
pub use policy::{Permission, Reach};
pub use resource::Anything;
pub use role::{Role, RoleName};

/// What this module needs of the process.
#[derive(Clone)]
pub struct Authz {
    /// Where accounts and sessions are.
    pub db: Db,
    /// What the time is.
    pub clock: SharedClock,
    /// How long sessions live.
    pub sessions: actor::SessionRules,
    /// Origins, besides the request's own host, that the console is served from.
    pub public_origin: Option<String>,
    /// Passwords, a few at a time.
    pub hasher: password::Hasher,
    min_length: u32,
    challenges: challenge::Challenges,
    throttle: throttle::Throttle,
    rates: Limiter<UserId>,
}

impl Authz {
    /// Starts with nobody throttled; needs a running runtime.
    #[must_use]
    pub fn start(db: Db, clock: SharedClock, config: &Config) -> Self {
        let passwords = &config.passwords;
        if passwords.is_weak() {
            tracing::warn!("[passwords]: stolen hashes of this cost are cheap to try; raise it");
        }
        Self {
            db,
            throttle: throttle::Throttle::start(clock.clone()),
            clock,
            sessions: actor::SessionRules::of(&config.sessions),
            public_origin: config.public_origin(),
            rates: Limiter::new(config.limits.account()),
            hasher: password::Hasher::new(passwords),
            min_length: passwords.min_length,
            challenges: challenge::Challenges::new(passwords.challenge_tries),
        }
    }

    /// Checks a password that somebody wants to set for the account called `name`.
    ///
    /// # Errors
    ///
    /// `weak_password` (422) saying what is asked for.
    pub fn check_new_password(&self, password: &Secret, name: &str) -> Result<()> {
        strength::check(password, name, self.min_length)
    }
}

impl Authz {
    /// Returns the role of an account with what it allows now.
    ///
    /// # Errors
    ///
    /// `internal` (500).
    pub async fn role_of(&self, account: &account::Account) -> Result<Role> {
        Ok(role::read(&self.db, &account.role).await?)
    }
}

impl std::fmt::Debug for Authz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authz").finish_non_exhaustive()
    }
}

/// Proof that `actor` may do `P` to `resource`.
#[derive(Debug)]
pub struct Grant<R, P> {
    actor: Actor,
    resource: R,
    reach: Reach,
    permission: PhantomData<fn() -> P>,
}

/// What a list may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's.
    All,
    /// One account's own.
    Own(UserId),
}

impl Scope {
    /// Returns the account to which a list is narrowed, if it is.
    #[must_use]
    pub fn owner(self) -> Option<UserId> {
        match self {
            Self::All => None,
            Self::Own(owner) => Some(owner),
        }
    }
}

impl<R, P> Grant<R, P> {
    /// Who.
    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// To what.
    #[must_use]
    pub fn resource(&self) -> &R {
        &self.resource
    }

    /// What a list under this grant may show.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self.reach {
            Reach::All => Scope::All,
            Reach::Own | Reach::None => Scope::Own(self.actor.id),
        }
    }
}

impl<R: resource::Resource, P: Permission> Grant<R, P> {
    /// Decides. Callers without a session (SSH, tools) make their [`Actor`] in [`actor`] first.
    ///
    /// # Errors
    ///
    /// `forbidden` (403) when the role lacks the permission, `not_found` (404) when the resource
    /// belongs to somebody else, so that nobody learns which ids exist; `password_change_required`
    /// (403) while somebody else's password is still in use.
    pub fn decide(actor: Actor, resource: R) -> Result<Self> {
        let is_always_allowed =
            matches!(P::NAME, policy::MePassword::NAME | policy::SessionOwn::NAME);
        if actor.must_change_password && !is_always_allowed {
            let detail = "set your own password first: PUT /api/v1/me/password";
            return Err(Problem::forbidden("password_change_required", detail));
        }
        let reach = actor.role.reach(P::NAME);
        let is_visible = match reach {
            Reach::All => true,
            Reach::Own => resource.owner().is_none_or(|owner| owner == actor.id),
            Reach::None => {
                return Err(lacks(&actor, P::NAME));
            }
        };
        if !is_visible {
            return Err(R::missing());
        }
        Ok(Self { actor, resource, reach, permission: PhantomData })
    }

    /// Decides again for something that holds a grant for long, after an event
    /// [`Revoked`](crate::core::event::Event::Revoked) for its actor or when events were missed.
    ///
    /// # Errors
    ///
    /// `unauthorised` (401) when the session has ended, and as [`Grant::decide`].
    pub async fn recheck(&self, authz: &Authz) -> Result<()>
    where
        R: Clone,
    {
        let actor = actor::refresh(authz, &self.actor).await?;
        Self::decide(actor, self.resource.clone()).map(|_| ())
    }
}

/// A token has what its maker gave it and its account still has, so its role alone may not be to
/// blame.
fn lacks(actor: &Actor, permission: &str) -> Problem {
    let detail = match actor.via {
        Via::ApiToken => {
            format!("this token, or the role {} of its account, lacks {permission}", actor.role)
        }
        Via::Cookie
        | Via::Token
        | Via::Ssh
        | Via::Forward
        | Via::Local
        | Via::Agent
        | Via::System => {
            format!("your role {} lacks the permission {permission}", actor.role)
        }
    };
    Problem::forbidden("forbidden", detail)
}

//! What requests and answers about sessions and API tokens hold.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::authz::session::SessionInfo;
use crate::authz::ssh_key::SshKey;
use crate::authz::token::ApiToken;
use crate::core::timestamp::Timestamp;

/// A session.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionView {
    /// Its id.
    pub id: Uuid,
    /// `cookie` for the console, `token` for a program that logged in, `ssh` for an SSH connection.
    pub kind: String,
    /// Whether this request came by it.
    pub is_current: bool,
    /// Where it was begun from.
    pub remote_address: String,
    /// What the client said it was.
    pub user_agent: String,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When it was used last, to the minute.
    pub last_used_at: Timestamp,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
}

impl SessionView {
    pub(super) fn of(it: SessionInfo, current: Uuid) -> Self {
        Self {
            id: it.id,
            kind: it.kind,
            is_current: it.id == current,
            remote_address: it.remote_address,
            user_agent: it.user_agent,
            created_at: it.created_at.into(),
            last_used_at: it.last_used_at.into(),
            expires_at: it.expires_at.into(),
        }
    }
}

/// An API token, without the token itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it may do, as far as its account may at the time.
    pub permissions: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends; it is listed for 30 days more.
    pub expires_at: Timestamp,
    /// When it was used last, to the minute; null when it never was.
    pub last_used_at: Option<Timestamp>,
    /// From where it was used last; empty when it never was.
    pub last_used_address: String,
}

impl From<ApiToken> for TokenView {
    fn from(it: ApiToken) -> Self {
        Self {
            id: it.id,
            name: it.name,
            permissions: it.permissions,
            created_at: it.created_at.into(),
            expires_at: it.expires_at.into(),
            last_used_at: it.last_used_at.map(Timestamp::from),
            last_used_address: it.last_used_address,
        }
    }
}

/// A new API token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Its name, 1 to 50 characters, unique among the account's tokens.
    pub name: String,
    /// What it may do: names of permissions that the account has, such as `instances:read`.
    pub permissions: Vec<String>,
    /// Days until it ends; 90 when left out, at most 365, unless configured otherwise.
    pub expires_in_days: Option<u32>,
}

/// An API token that was just made.
#[derive(Serialize, ToSchema)]
pub struct MadeToken {
    /// What to send as `Authorization: Bearer`. It is shown this once.
    pub token: String,
    /// What is stored of it.
    #[serde(flatten)]
    pub view: TokenView,
}

/// An SSH public key.
#[derive(Debug, Serialize, ToSchema)]
pub struct SshKeyView {
    /// Its id.
    pub id: Uuid,
    /// What its owner calls it.
    pub name: String,
    /// `SHA256:` and the hash, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// Such as `ssh-ed25519`.
    pub algorithm: String,
    /// The key as one line.
    pub public_key: String,
    /// When it was added.
    pub created_at: Timestamp,
    /// When somebody logged in with it last; null when nobody did.
    pub last_used_at: Option<Timestamp>,
    /// From where; empty when nobody did.
    pub last_used_address: String,
}

impl From<SshKey> for SshKeyView {
    fn from(it: SshKey) -> Self {
        Self {
            id: it.id,
            name: it.name,
            fingerprint: it.fingerprint,
            algorithm: it.algorithm,
            public_key: it.public_key,
            created_at: it.created_at.into(),
            last_used_at: it.last_used_at.map(Timestamp::from),
            last_used_address: it.last_used_address,
        }
    }
}

/// An SSH public key to log in with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddSshKey {
    /// What to call it, 1 to 50 characters.
    pub name: String,
    /// The line of the `.pub` file: ed25519, ecdsa, rsa of 2048 bits or more, or the `sk-` kinds of
    /// security keys.
    pub public_key: String,
}

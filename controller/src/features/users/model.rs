//! What requests and answers about accounts hold.

use serde::{Deserialize, Serialize};
use tianqi_common::id::UserId;
use utoipa::ToSchema;

use crate::authz::Role;
use crate::authz::account::Account;
use crate::core::secret::Secret;
use crate::core::timestamp::Timestamp;

/// An account.
#[derive(Debug, Serialize, ToSchema)]
pub struct User {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    pub id: UserId,
    /// The name to log in with.
    pub name: String,
    /// The name people read; may be empty.
    pub display_name: String,
    /// What it may do.
    pub role: Role,
    /// A disabled account cannot log in.
    pub disabled: bool,
    /// Whether somebody else set the password; until it is changed nothing else is allowed.
    pub must_change_password: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

impl From<Account> for User {
    fn from(account: Account) -> Self {
        Self {
            id: account.id,
            name: account.name,
            display_name: account.display_name,
            role: account.role,
            disabled: account.disabled,
            must_change_password: account.must_change_password,
            created_at: account.created_at.into(),
            updated_at: account.updated_at.into(),
        }
    }
}

/// How the session's token is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionMode {
    /// As an HttpOnly cookie, for the console.
    #[default]
    Cookie,
    /// In the body, for programs that send `Authorization: Bearer`.
    Token,
}

/// A login.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// The account's name.
    pub username: String,
    /// Its password.
    #[schema(value_type = String, format = Password)]
    pub password: Secret,
    /// How the session's token is given.
    #[serde(default)]
    pub mode: SessionMode,
}

/// A session.
#[derive(Serialize, ToSchema)]
pub struct Session {
    /// With mode `token` alone: what to send as `Authorization: Bearer`. It is shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
    /// Who is logged in.
    pub user: User,
}

/// A new password of one's own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeOwnPassword {
    /// The password until now.
    #[schema(value_type = String, format = Password)]
    pub current_password: Secret,
    /// The password from now on: at least 10 characters.
    #[schema(value_type = String, format = Password, min_length = 10, max_length = 1024)]
    pub new_password: Secret,
}

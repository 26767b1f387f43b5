//! What requests and answers about accounts hold.

use serde::{Deserialize, Serialize};
use tianqi_common::id::UserId;
use utoipa::{IntoParams, ToSchema};

use crate::authz::RoleName;
use crate::authz::account::Account;
use crate::authz::challenge::Solution;
use crate::authz::role::Allowance;
use crate::core::patch::Patch;
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
    /// An address for mail; may be empty.
    pub email: String,
    /// A telephone number; may be empty.
    pub phone: String,
    /// The colour that stands for a picture, such as `#1890ff`; may be empty.
    pub avatar_color: String,
    /// What it may do.
    pub role: RoleName,
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
            email: account.email,
            phone: account.phone,
            avatar_color: account.avatar_color,
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
    /// The solution of a challenge, after a refusal with `challenge_required`.
    #[serde(default)]
    pub challenge_solution: Option<Solution>,
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
    /// What they may do, so that a page shows what will work.
    pub permissions: Vec<Allowance>,
}

/// A new password of one's own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeOwnPassword {
    /// The password until now.
    #[schema(value_type = String, format = Password)]
    pub current_password: Secret,
    /// The password from now on: 10 characters unless configured otherwise, not a common one, without
    /// the account's name.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024)]
    pub new_password: Secret,
}

/// A new account.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The name to log in with: small letters, digits, `-`, `_` and `.`, 2 to 32, beginning with a
    /// letter; unique and never changed.
    pub name: String,
    /// Its first password: 10 characters unless configured otherwise, not a common one, without the
    /// account's name.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024)]
    pub password: Secret,
    /// The name people read, at most 100 characters.
    #[serde(default)]
    pub display_name: String,
    /// An address for mail, at most 190 characters.
    #[serde(default)]
    pub email: String,
    /// A telephone number, at most 32 characters: digits, spaces and `+ - . ( )`.
    #[serde(default)]
    pub phone: String,
    /// The colour that stands for a picture, such as `#1890ff`.
    #[serde(default)]
    pub avatar_color: String,
    /// What it may do; `user` when left out.
    #[serde(default = "role_user")]
    pub role: RoleName,
    /// Whether its owner must choose another password first; true when left out.
    #[serde(default = "yes")]
    pub must_change_password: bool,
}

/// A change of an account; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchUser {
    /// The name people read, at most 100 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub display_name: Patch<String>,
    /// An address for mail, at most 190 characters; empty for none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub email: Patch<String>,
    /// A telephone number, at most 32 characters: digits, spaces and `+ - . ( )`; empty for none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub phone: Patch<String>,
    /// The colour that stands for a picture, such as `#1890ff`; empty for none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub avatar_color: Patch<String>,
    /// What it may do.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub role: Patch<RoleName>,
    /// A disabled account cannot log in; disabling it ends its sessions and withdraws its API tokens.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub disabled: Patch<bool>,
}

/// A change of what one's own account says of its owner; what is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchMe {
    /// The name people read, at most 100 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub display_name: Patch<String>,
    /// An address for mail, at most 190 characters; empty for none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub email: Patch<String>,
    /// A telephone number, at most 32 characters: digits, spaces and `+ - . ( )`; empty for none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub phone: Patch<String>,
    /// The colour that stands for a picture, such as `#1890ff`; empty for none.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub avatar_color: Patch<String>,
}

/// What becomes of what an account leaves behind.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DeleteUser {
    /// The account that gets its instances; without it, an account that has some is not deleted.
    #[param(value_type = Option<uuid::Uuid>)]
    pub hand_over_to: Option<UserId>,
}

/// A new password for somebody else.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetPassword {
    /// The password from now on: 10 characters unless configured otherwise, not a common one, without
    /// the account's name.
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024)]
    pub password: Secret,
    /// Whether its owner must choose another first; true when left out.
    #[serde(default = "yes")]
    pub must_change_password: bool,
}

/// Which accounts to list, and which page.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct UserQuery {
    /// Part of the name.
    pub name: Option<String>,
    /// Part of the name people read.
    pub display_name: Option<String>,
    /// Part of the address for mail.
    pub email: Option<String>,
    /// Part of the telephone number.
    pub phone: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// Whether it is disabled.
    pub disabled: Option<bool>,
    /// Page, from 1 (the default).
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
    /// `name` (the default), `display_name`, `email`, `role` or `created_at`, with `-` before it for falling order.
    pub sort: Option<String>,
}

fn role_user() -> RoleName {
    RoleName::USER
}

fn yes() -> bool {
    true
}

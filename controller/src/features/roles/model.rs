//! What requests and answers about roles hold.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::authz::policy::{PERMISSIONS, PermissionInfo, Reach};
use crate::authz::role::{Allowance, AllowedReach};
use crate::authz::{Role, RoleName};
use crate::core::error::{Problem, Result};
use crate::core::patch::Patch;
use crate::core::text;
use crate::core::timestamp::Timestamp;

/// Longest description, in characters.
const DESCRIPTION_MAX: usize = 500;

/// A permission of the table, with what the built-in roles have of it. `admin` has all of all.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PermissionView {
    name: &'static str,
    /// What it allows, in one sentence.
    sentence: &'static str,
    /// Whether every role has it for the account itself.
    everybody: bool,
    /// How far it reaches for the role `user`; null for not at all.
    user: Option<AllowedReach>,
    /// How far it reaches for the role `auditor`; null for not at all.
    auditor: Option<AllowedReach>,
}

impl From<&PermissionInfo> for PermissionView {
    fn from(info: &PermissionInfo) -> Self {
        Self {
            name: info.name,
            sentence: info.sentence,
            everybody: info.is_everybodys(),
            user: allowed(info.user),
            auditor: allowed(info.auditor),
        }
    }
}

fn allowed(reach: Reach) -> Option<AllowedReach> {
    match reach {
        Reach::None => None,
        Reach::Own => Some(AllowedReach::Own),
        Reach::All => Some(AllowedReach::All),
    }
}

/// A role.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoleView {
    /// Its name, which is also its id.
    pub name: RoleName,
    /// Whether the program brings it; such a role does not change.
    pub built_in: bool,
    /// What it is for.
    pub description: String,
    /// What it allows.
    pub permissions: Vec<Allowance>,
    /// How many accounts have it.
    pub accounts: i64,
    /// When it was made; null for a built-in one.
    pub created_at: Option<Timestamp>,
    /// When it was changed last; null for a built-in one.
    pub updated_at: Option<Timestamp>,
}

/// A new role.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateRole {
    /// Small letters, digits, `-`, `_` and `.`, 2 to 32, beginning with a letter; never changed.
    pub name: RoleName,
    /// What it is for, at most 500 characters.
    #[serde(default)]
    pub description: String,
    /// What it allows, each permission at most once. What everybody has need not be named.
    pub permissions: Vec<Allowance>,
}

/// A change of a role; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchRole {
    /// What it is for, at most 500 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// What it allows from now on, all of it.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Allowance>>)]
    pub permissions: Patch<Vec<Allowance>>,
}

/// Which roles to list, and which page.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleQuery {
    /// Part of the name, whatever its case.
    pub name: Option<String>,
    /// Page, from 1 (the default).
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
}

/// Checks what a role is to be and returns it.
///
/// # Errors
///
/// `bad_field` (422) naming the field and what to write.
pub(super) fn checked(
    name: &RoleName,
    description: &str,
    permissions: &[Allowance],
) -> Result<Role> {
    if !name.is_well_formed() {
        let detail = "name: 2 to 32 small letters a-z (first), digits, '-', '_' and '.'";
        return Err(Problem::invalid("bad_field", detail));
    }
    if name.is_built_in() {
        return Err(Problem::conflict(
            "duplicate",
            "a built-in role has this name; choose another",
        ));
    }
    text::block("description", description, DESCRIPTION_MAX)?;
    for (i, allowance) in permissions.iter().enumerate() {
        let name = &allowance.permission;
        if !PERMISSIONS.iter().any(|info| info.name == name) {
            let detail = format!(
                "permissions: there is no permission {name:?}; GET /api/v1/permissions lists them"
            );
            return Err(Problem::invalid("bad_field", detail));
        }
        if permissions.iter().skip(i + 1).any(|other| other.permission == *name) {
            let detail = format!("permissions: {name} is named twice; name it once");
            return Err(Problem::invalid("bad_field", detail));
        }
    }
    Ok(Role::custom(name.clone(), permissions))
}

//! Roles: a name and what it allows. Three are built in; others are rows of the table `roles`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};
use tianqi_common::name::UserName;
use utoipa::ToSchema;

use super::policy::{PERMISSIONS, PermissionInfo, Reach};
use crate::core::db::{Db, DbError, Tx, args, row};

/// A role's name: small letters, digits, `-`, `_` and `.`, 2 to 32, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct RoleName(std::borrow::Cow<'static, str>);

impl RoleName {
    /// Everything.
    pub const ADMIN: Self = Self(std::borrow::Cow::Borrowed("admin"));
    /// Own instances.
    pub const USER: Self = Self(std::borrow::Cow::Borrowed("user"));
    /// Reads everything, changes nothing.
    pub const AUDITOR: Self = Self(std::borrow::Cow::Borrowed("auditor"));
    /// The names that no row may take.
    pub const BUILT_IN: [Self; 3] = [Self::ADMIN, Self::USER, Self::AUDITOR];

    /// Takes a name as it is stored or asked for; only a name that is in use finds a role.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(std::borrow::Cow::Owned(text.into()))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a new role may be called so.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.0.len() >= 2 && UserName::parse(&self.0).is_ok()
    }

    /// Whether this is one of the three that the program brings.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        Self::BUILT_IN.contains(self)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One thing that a role allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// The permission's name, such as `instances:read`.
    pub permission: String,
    /// How far it reaches.
    pub reach: AllowedReach,
}

/// How far an allowance reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllowedReach {
    /// To what the account owns, and to what belongs to nobody.
    Own,
    /// To everything.
    All,
}

impl From<AllowedReach> for Reach {
    fn from(reach: AllowedReach) -> Self {
        match reach {
            AllowedReach::Own => Self::Own,
            AllowedReach::All => Self::All,
        }
    }
}

/// A role with what it allows. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    name: RoleName,
    reaches: Arc<BTreeMap<&'static str, Reach>>,
}

static BUILT_IN: LazyLock<[Role; 3]> =
    LazyLock::new(|| [Role::admin(), Role::user(), Role::auditor()]);

impl Role {
    fn of_table(name: RoleName, reach: impl Fn(&PermissionInfo) -> Reach) -> Self {
        let reaches = PERMISSIONS.iter().map(|info| (info.name, reach(info)));
        Self { name, reaches: Arc::new(reaches.collect()) }
    }

    /// Everything.
    #[must_use]
    pub fn admin() -> Self {
        Self::of_table(RoleName::ADMIN, |_| Reach::All)
    }

    /// Own instances.
    #[must_use]
    pub fn user() -> Self {
        Self::of_table(RoleName::USER, |info| info.user)
    }

    /// Reads everything, changes nothing.
    #[must_use]
    pub fn auditor() -> Self {
        Self::of_table(RoleName::AUDITOR, |info| info.auditor)
    }

    /// Returns a role that the program brings.
    #[must_use]
    pub fn built_in(name: &RoleName) -> Option<Self> {
        BUILT_IN.iter().find(|role| role.name == *name).cloned()
    }

    /// Makes a role of what its row allows. What everybody has is part of every role; a permission
    /// that this program does not know, from a newer one, allows nothing.
    #[must_use]
    pub fn custom(name: RoleName, allowances: &[Allowance]) -> Self {
        Self::of_table(name, |info| {
            let allowed = allowances.iter().find(|it| it.permission == info.name);
            let reach = allowed.map_or(Reach::None, |it| it.reach.into());
            if info.is_everybodys() { reach.max(Reach::Own) } else { reach }
        })
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &RoleName {
        &self.name
    }

    /// Returns how far it reaches with a permission; an unknown one reaches nothing.
    #[must_use]
    pub fn reach(&self, permission: &str) -> Reach {
        self.reaches.get(permission).copied().unwrap_or(Reach::None)
    }

    /// Returns what it allows, in the order of the names.
    #[must_use]
    pub fn allowances(&self) -> Vec<Allowance> {
        let allowed = self.reaches.iter().filter_map(|(name, reach)| {
            let reach = match reach {
                Reach::None => return None,
                Reach::Own => AllowedReach::Own,
                Reach::All => AllowedReach::All,
            };
            Some(Allowance { permission: (*name).to_owned(), reach })
        });
        allowed.collect()
    }

    /// Returns the first permission with which `other` reaches further, if there is one: nobody
    /// gives what they do not have. What everybody has plays no part: an API token lacks it, and may
    /// still make accounts.
    #[must_use]
    pub fn lacks(&self, other: &Self) -> Option<&'static str> {
        let others = PERMISSIONS.iter().filter(|info| !info.is_everybodys());
        others.map(|info| info.name).find(|name| other.reach(name) > self.reach(name))
    }

    /// Returns this role without the permissions that are not in `names`, and without those that are
    /// for no token. Not even what everybody has is added: a token for one thing does that one thing.
    #[must_use]
    pub fn narrowed_to(&self, names: &[String]) -> Self {
        Self::of_table(self.name.clone(), |info| {
            let is_kept = info.is_for_tokens() && names.iter().any(|name| name == info.name);
            if is_kept { self.reach(info.name) } else { Reach::None }
        })
    }

    /// Puts together the role of an account from its row: the name, and `roles.permissions` when
    /// there is such a row. A role that is gone leaves what everybody has.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`] when the row's permissions cannot be read.
    pub fn of_row(name: &str, permissions: Option<&str>) -> Result<Self, DbError> {
        let name = RoleName::new(name);
        if let Some(role) = Self::built_in(&name) {
            return Ok(role);
        }
        let allowances: Vec<Allowance> = match permissions {
            Some(text) => serde_json::from_str(text).map_err(|error| DbError::Corrupt {
                column: "roles.permissions",
                problem: error.to_string(),
            })?,
            None => Vec::new(),
        };
        Ok(Self::custom(name, &allowances))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

row! {
    struct PermissionsRow { permissions: String }
}

/// Returns the role called `name`, built in or stored, and keeps a stored one from being deleted
/// until the transaction ends.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn find(tx: &mut Tx, name: &RoleName) -> Result<Option<Role>, DbError> {
    if let Some(role) = Role::built_in(name) {
        return Ok(Some(role));
    }
    let sql = "select permissions from roles where name = $1 for update";
    let row: Option<PermissionsRow> = tx.first(sql, args![name.as_str()]).await?;
    row.map(|row| Role::of_row(name.as_str(), Some(&row.permissions))).transpose()
}

/// Returns the role called `name`; one that is gone leaves what everybody has.
///
/// # Errors
///
/// [`DbError`] when the engine refuses.
pub async fn read(db: &Db, name: &RoleName) -> Result<Role, DbError> {
    let sql = "select permissions from roles where name = $1";
    let row: Option<PermissionsRow> = match name.is_built_in() {
        true => None,
        false => db.first(sql, args![name.as_str()]).await?,
    };
    Role::of_row(name.as_str(), row.as_ref().map(|row| row.permissions.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator() -> Role {
        let allow =
            |permission: &str, reach| Allowance { permission: permission.to_owned(), reach };
        Role::custom(
            RoleName::new("operator"),
            &[
                allow("nodes:write", AllowedReach::All),
                allow("instances:read", AllowedReach::Own),
                allow("from:a_newer_program", AllowedReach::All),
            ],
        )
    }

    #[test]
    fn a_role_reaches_what_it_allows_and_what_everybody_has() {
        let role = operator();

        assert_eq!(role.reach("nodes:write"), Reach::All);
        assert_eq!(role.reach("instances:read"), Reach::Own);
        assert_eq!(role.reach("me:password"), Reach::Own);
        assert_eq!(role.reach("users:write"), Reach::None);
        assert_eq!(role.reach("from:a_newer_program"), Reach::None);
    }

    #[test]
    fn allowances_written_and_read_again_make_the_same_role() {
        let text = serde_json::to_string(&operator().allowances()).unwrap();

        assert_eq!(Role::of_row("operator", Some(&text)).unwrap(), operator());
    }

    #[test]
    fn a_role_lacks_what_reaches_further_in_another() {
        let (admin, user, auditor) = (Role::admin(), Role::user(), Role::auditor());

        assert_eq!(admin.lacks(&user), None);
        assert_eq!(admin.lacks(&operator()), None);
        assert!(user.lacks(&operator()).is_some());
        assert_eq!(user.lacks(&user), None);
        assert!(auditor.lacks(&user).is_some_and(|name| name.starts_with("instances:")));
    }

    #[test]
    fn a_narrowed_role_has_what_is_named_and_no_further_than_before() {
        let names = ["instances:read", "users:write", "me:tokens"].map(str::to_owned);

        let narrowed = operator().narrowed_to(&names);

        assert_eq!(narrowed.reach("instances:read"), Reach::Own);
        assert_eq!(narrowed.reach("users:write"), Reach::None);
        assert_eq!(narrowed.reach("nodes:write"), Reach::None);
        assert_eq!(narrowed.reach("me:password"), Reach::None);
        assert_eq!(narrowed.reach("me:tokens"), Reach::None, "no token makes tokens");
    }

    #[test]
    fn a_role_that_is_gone_leaves_what_everybody_has_and_a_broken_row_is_told() {
        let gone = Role::of_row("gone", None).unwrap();

        let everybodys = PERMISSIONS.iter().filter(|info| info.is_everybodys()).count();
        assert_eq!(gone.allowances().len(), everybodys, "{:?}", gone.allowances());
        assert!(gone.allowances().iter().all(|allowance| allowance.reach == AllowedReach::Own));
        assert!(Role::of_row("broken", Some("{")).is_err());
    }
}

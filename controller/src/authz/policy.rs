//! The table of permissions: the only source of who may do what.

/// How far a role's permission reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not at all.
    None,
    /// Things the account owns, and things that belong to nobody.
    Own,
    /// Everything.
    All,
}

/// A permission as a type, so that a handler's signature names it.
pub trait Permission: Send + Sync + 'static {
    /// Its name, such as `instances:create`.
    const NAME: &'static str;
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct PermissionInfo {
    /// Its name.
    pub name: &'static str,
    /// What it allows, in one sentence.
    pub sentence: &'static str,
    /// How far it reaches for the role `user`.
    pub user: Reach,
    /// How far it reaches for the role `auditor`.
    pub auditor: Reach,
}

impl PermissionInfo {
    /// Whether every role has it for the account itself, also custom ones that do not name it.
    #[must_use]
    pub fn is_everybodys(&self) -> bool {
        self.name.starts_with("session:") || self.name.starts_with("me:")
    }

    /// Whether an API token may have it: none may make another token, change the password or end
    /// sessions, so that whoever finds one cannot stay.
    #[must_use]
    pub fn is_for_tokens(&self) -> bool {
        !self.is_everybodys() || matches!(self.name, "me:read" | "me:write")
    }
}

macro_rules! permissions {
    ($($sentence:literal $name:literal $type:ident: user $user:ident, auditor $auditor:ident;)*) => {
        $(
            #[doc = $sentence]
            #[derive(Debug)]
            pub struct $type;
            impl Permission for $type {
                const NAME: &'static str = $name;
            }
        )*
        /// Every permission. The role `admin` has all of them.
        pub const PERMISSIONS: &[PermissionInfo] = &[
            $(PermissionInfo {
                name: $name,
                sentence: $sentence,
                user: Reach::$user,
                auditor: Reach::$auditor,
            }),*
        ];
    };
}

permissions! {
    "See who is logged in and log out." "session:own" SessionOwn: user Own, auditor Own;
    "Change one's own password." "me:password" MePassword: user Own, auditor Own;
    "Read one's own account." "me:read" MeRead: user Own, auditor Own;
    "Change what one's own account says of its owner." "me:write" MeWrite: user Own, auditor Own;
    "List and end one's own sessions." "me:sessions" MeSessions: user Own, auditor Own;
    "Make, list and withdraw one's own API tokens." "me:tokens" MeTokens: user Own, auditor Own;
    "Add, list and remove one's own SSH public keys." "me:ssh_keys" MeSshKeys: user Own, auditor Own;
    "List and read accounts." "users:read" UsersRead: user None, auditor All;
    "Create, change and delete accounts, and reset their passwords." "users:write" UsersWrite: user None, auditor None;
    "Read nodes, their cards and their state." "nodes:read" NodesRead: user None, auditor All;
    "Change, cordon, drain and remove nodes." "nodes:write" NodesWrite: user None, auditor None;
    "Make, list and withdraw join tokens." "join_tokens:write" JoinTokensWrite: user None, auditor None;
    "Read the images on offer." "images:read" ImagesRead: user All, auditor All;
    "Create, change and delete images and their registry credentials." "images:write" ImagesWrite: user None, auditor None;
    "Read the specs on offer." "specs:read" SpecsRead: user All, auditor All;
    "Create, change and delete specs." "specs:write" SpecsWrite: user None, auditor None;
    "See where a request would be placed, and why not elsewhere." "placements:read" PlacementsRead: user All, auditor All;
    "List and read instances, their events and figures." "instances:read" InstancesRead: user Own, auditor All;
    "Create instances." "instances:create" InstancesCreate: user Own, auditor None;
    "Change, start, stop and restart instances." "instances:write" InstancesWrite: user Own, auditor None;
    "Delete instances with their data." "instances:delete" InstancesDelete: user Own, auditor None;
    "Read the output of instances." "instances:logs" InstancesLogs: user Own, auditor None;
    "Open a terminal in instances and run programs there." "instances:exec" InstancesExec: user Own, auditor None;
    "Enter instances by SSH: shells, commands, files, and connections into them." "instances:ssh" InstancesSsh: user Own, auditor None;
    "See and use images and specs that are not on offer." "catalogue:unlisted" CatalogueUnlisted: user None, auditor All;
    "Set the priority of instances in the queue." "instances:priority" InstancesPriority: user None, auditor None;
    "List roles and read what they allow." "roles:read" RolesRead: user None, auditor All;
    "Create, change and delete roles, as far as one's own role reaches." "roles:write" RolesWrite: user None, auditor None;
    "See one's own quota and what counts towards it." "me:quota" MeQuota: user Own, auditor Own;
    "Read quotas and what everybody uses of them." "quotas:read" QuotasRead: user None, auditor All;
    "Set and remove the quotas of accounts and roles." "quotas:write" QuotasWrite: user None, auditor None;
    "List and read forwards, their state and figures." "forwards:read" ForwardsRead: user Own, auditor All;
    "Open, change and close forwards into instances, on the ports and addresses set aside for that." "forwards:write" ForwardsWrite: user Own, auditor None;
    "Open forwards to any address, and listen on any address and port." "forwards:host" ForwardsHost: user None, auditor None;
    "Read what was done, by whom." "audit:read" AuditRead: user None, auditor All;
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn names_are_unique_and_every_sentence_is_one() {
        for (i, info) in PERMISSIONS.iter().enumerate() {
            assert!(info.sentence.ends_with('.'), "{}", info.name);
            assert!(PERMISSIONS[i + 1..].iter().all(|other| other.name != info.name));
        }
    }

    #[test]
    fn auditor_changes_nothing_but_its_own_password() {
        for info in PERMISSIONS.iter().filter(|info| info.auditor != Reach::None) {
            let is_reading = info.name.ends_with(":read") || info.name == "catalogue:unlisted";
            assert!(is_reading || info.is_everybodys(), "{}", info.name);
        }
    }
}

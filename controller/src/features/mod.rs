//! The rooms: everything about one noun in one folder.

pub mod audit;
pub mod forwards;
pub mod images;
pub mod instances;
pub mod jumpbox;
pub mod nodes;
pub mod quotas;
pub mod roles;
pub mod specs;
pub mod system;
pub mod telemetry;
pub mod terminal;
pub mod users;

use std::sync::Arc;

use axum::extract::FromRef;
use tianqi_common::clock::SharedClock;

use crate::authz::Authz;
use crate::config::Config;
use crate::core::audit::{self as audit_chain, Chain};
use crate::core::ca::{self, Ca};
use crate::core::db::Db;
use crate::core::event::Events;
use crate::core::seal::Seal;
use crate::core::seal::rotate::SealedColumn;
use crate::link::Link;

use forwards::live::Ports;
use jumpbox::Entrance;
use telemetry::live::Live;

/// Every column that holds sealed secrets; a rotation of the master key goes through them.
pub const SEALED: &[SealedColumn] =
    &[audit_chain::SEALED, ca::store::SEALED, images::SEALED, nodes::SEALED];

/// What a room may reach. There is no lock in it: state behind a lock belongs to its task.
#[derive(Clone, Debug)]
pub struct Ctx {
    /// The database.
    pub db: Db,
    /// What the time is.
    pub clock: Clock,
    /// "Something changed".
    pub events: Events,
    /// Secrets at rest.
    pub seal: Arc<Seal>,
    /// The configuration.
    pub config: Arc<Config>,
    /// Who may do what.
    pub authz: Authz,
    /// The chain of the audit.
    pub chain: Chain,
    /// Nodes and instances.
    pub link: Link,
    /// What nodes and instances use now.
    pub live: Live,
    /// What listens for forwards now.
    pub ports: Ports,
    /// Where people come in by SSH.
    pub entrance: Entrance,
    /// Who signs the agents' certificates.
    pub ca: Arc<Ca>,
}

/// A clock that can be printed, so that everything that holds one can be.
#[derive(Clone)]
pub struct Clock(pub SharedClock);

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl std::ops::Deref for Clock {
    type Target = dyn tianqi_common::clock::Clock;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl FromRef<Ctx> for Authz {
    fn from_ref(ctx: &Ctx) -> Self {
        ctx.authz.clone()
    }
}

impl FromRef<Ctx> for Arc<Seal> {
    fn from_ref(ctx: &Ctx) -> Self {
        ctx.seal.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::SEALED;

    #[test]
    fn a_rotation_of_the_master_key_knows_every_sealed_column() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
        let mut found = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let sql = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let words = sql.split(|c: char| !c.is_alphanumeric() && c != '_');
            let mut table = "";
            let mut before = "";
            for word in words.filter(|word| !word.is_empty()) {
                if before == "table" {
                    table = word;
                }
                // A time at which something was sealed is no secret.
                if before.starts_with("sealed_") && word == "blob" {
                    found.insert(format!("{table}.{before}"));
                }
                before = word;
            }
        }

        let listed = SEALED.iter().map(|it| format!("{}.{}", it.table, it.column)).collect();

        assert!(found.contains("images.sealed_registry_password"), "nothing was read");
        assert_eq!(found, listed, "add it to features::SEALED with the row it is bound to");
    }
}

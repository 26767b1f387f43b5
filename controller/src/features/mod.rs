//! The rooms: everything about one noun in one folder.

pub mod audit;
pub mod images;
pub mod instances;
pub mod nodes;
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
use crate::core::audit::Chain;
use crate::core::ca::Ca;
use crate::core::db::Db;
use crate::core::event::Events;
use crate::core::seal::Seal;
use crate::link::Link;

use telemetry::live::Live;

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

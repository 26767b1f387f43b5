//! Instances: containers that users own.
//!
//! Handlers write what should be and answer 202; the loop in `reconcile` brings it about. An
//! instance is `pending` until the scheduler finds it a place, and every phase has its reason. A
//! stop releases CPU, memory and cards and keeps node, disk and data; a delete is over when the
//! node says that nothing is left.
//!
//! Invariants: the states of `lifecycle.rs`; grants exist only for instances on a node; a name is
//! unique among its owner's live instances; no create and no start takes its owner over their quota.

pub mod actions;
mod catalogue;
pub mod change;
pub mod fleet;
mod hand_over;
#[cfg(test)]
mod http_tests;
pub mod lifecycle;
#[cfg(test)]
mod lifecycle_tests;
mod log_query;
mod logs;
pub mod model;
mod placements;
mod quota;
mod routes;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod view;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Ctx;
use crate::core::slots::Slots;

/// The paths of this room.
#[must_use]
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(routes::list, routes::create))
        .routes(routes!(routes::get, routes::patch, routes::delete))
        .routes(routes!(routes::delete_many))
        .routes(routes!(routes::start))
        .routes(routes!(routes::stop))
        .routes(routes!(routes::restart))
        .routes(routes!(routes::events))
        .routes(routes!(routes::logs))
        .routes(routes!(routes::placements))
        .layer(axum::Extension(Slots::<uuid::Uuid>::new(logs::PER_SESSION)))
}

//! Figures of nodes and instances. Today: what they use now, in memory.
//!
//! One task ([`live::ingest`]) takes in what agents send. There is one sample for each node,
//! replaced by the next and forgotten with the node, so memory is bounded by the nodes. An instance
//! is looked up on the node where the controller placed it: what another node says of it does not
//! count.

pub mod live;
mod routes;
mod store;
#[cfg(test)]
mod tests;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Ctx;

/// The paths of this room.
#[must_use]
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(routes::stats)).routes(routes!(routes::node))
}

//! Figures of nodes and instances. Today: the last sample of each instance, in memory.

pub mod live;
mod routes;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Ctx;

/// The paths of this room.
#[must_use]
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(routes::stats))
}

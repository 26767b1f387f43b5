//! Whether the controller lives and is ready, and what its API is. None of it needs a session.

mod docs;
mod health;

use axum::Router;
use axum::routing::get;

use crate::features::Ctx;

/// Returns the paths outside `/api/v1` and the API's description inside it.
pub fn router(description: utoipa::openapi::OpenApi) -> Router<Ctx> {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .merge(docs::router(description))
}

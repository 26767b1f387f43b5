//! How people and their programs are logged in now: sessions and API tokens, one's own and, for those
//! who may change accounts, everybody's.
//!
//! Ending one of them ends what was opened by it (terminals, output that is followed) within two
//! seconds. An API token manages neither: whoever finds one must not be able to make another.

mod actions;
mod model;
mod sessions;
#[cfg(test)]
mod tests;
mod tokens;

use utoipa_axum::router::OpenApiRouter;

use crate::features::Ctx;

/// The paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().merge(sessions::router()).merge(tokens::router())
}

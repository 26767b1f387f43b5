//! Accounts: who may log in, their roles, their sessions and passwords.
//!
//! Checking passwords and keeping sessions is `authz`; this room is its face in the API. There is
//! always an admin who can log in, and an account that still owns instances is deleted only when
//! somebody else gets them.

mod access;
mod actions;
mod leaving;
mod me;
mod model;
#[cfg(test)]
mod password_tests;
mod profile;
mod routes;
mod session;
#[cfg(test)]
mod session_tests;
mod store;
#[cfg(test)]
mod tests;

use utoipa_axum::router::OpenApiRouter;

use crate::features::Ctx;

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .merge(session::router())
        .merge(me::router())
        .merge(access::router())
        .merge(routes::router())
}

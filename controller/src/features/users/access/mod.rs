//! How people and their programs are logged in now, and with what: sessions, API tokens and SSH public
//! keys, one's own and, for those who may change accounts, everybody's.
//!
//! Ending one of them ends what was opened by it (terminals, SSH, output that is followed) within two
//! seconds. An API token manages none of them: whoever finds one must not be able to make another.

mod actions;
mod key_actions;
#[cfg(test)]
mod key_tests;
mod model;
mod sessions;
mod ssh_keys;
#[cfg(test)]
mod tests;
mod tokens;

use utoipa_axum::router::OpenApiRouter;

use crate::features::Ctx;

/// The paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().merge(sessions::router()).merge(tokens::router()).merge(ssh_keys::router())
}

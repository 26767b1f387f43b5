//! The browser terminal: one WebSocket, one program with a terminal in an instance.
//!
//! # Frames
//!
//! | from | kind | means |
//! |---|---|---|
//! | browser | binary | bytes typed |
//! | browser | text `{"type":"resize","cols":80,"rows":24}` | the terminal's new size |
//! | browser | text `{"type":"ping"}` | is anybody there? |
//! | controller | text `{"type":"opened"}` | the program runs; the first frame |
//! | controller | binary | bytes to show |
//! | controller | text `{"type":"pong"}` | the answer to a ping; left out while output waits |
//! | controller | text `{"type":"exit","code":0}` | the program ended; the last frame |
//! | controller | text `{"type":"error","code":"not_running","message":"…"}` | it could not be opened, or ended otherwise; the last frame |
//!
//! `tests/vectors/terminal.json` holds examples that both sides test against. After the last frame
//! the WebSocket is closed: 1000 after an exit, 1008 when the controller refuses (a bad frame, a
//! right that ended, an instance that was stopped), 1011 for a failure.
//!
//! Whatever is wrong with the request itself (no right, no such instance, a bad size) is answered
//! over HTTP. Whatever goes wrong when the program is started comes as an error frame, because a
//! browser does not show a script the answer to a refused upgrade.
//!
//! # Limits
//!
//! Binary frames from a browser have at most 64 KiB, text frames 1 KiB; an agent's pieces of output
//! at most 256 KiB. Sizes are 1 to 10 000. A session has at most 16 terminals open, an instance 64
//! streams. The WebSocket is pinged every 20 s and given up after 60 s of silence; a person may
//! think for as long as they like. The terminal ends at once when the right to it does, when the
//! instance is to stop or to go, and when either side ends; the program in it is then hung up.

mod actions;
mod frame;
mod pump;
mod routes;
#[cfg(test)]
mod tests;

use axum::Extension;
use axum::routing::connect;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Ctx;
use crate::core::slots::Slots;

/// Terminals that a session may have open.
const PER_SESSION: usize = 16;

/// The paths of this room.
#[must_use]
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(routes::open))
        // A WebSocket over HTTP/2 is a CONNECT.
        .route("/instances/{id}/terminal", connect(routes::open))
        .layer(Extension(Slots::<uuid::Uuid>::new(PER_SESSION)))
}

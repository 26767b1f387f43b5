//! The browser terminal: one WebSocket, one program with a terminal in an instance.
//!
//! # Frames
//!
//! | from | kind | means |
//! |---|---|---|
//! | browser | binary | bytes typed |
//! | browser | text `{"type":"resize","cols":80,"rows":24}` | the terminal's new size |
//! | controller | binary | bytes to show |
//! | controller | text `{"type":"exit","code":0}` | the program ended; the last frame |
//! | controller | text `{"type":"error","code":"not_running","message":"…"}` | it could not be opened, or broke; the last frame |
//!
//! `tests/vectors/terminal.json` holds examples that both sides test against. Binary frames have at
//! most 64 KiB, text frames 1 KiB; whatever breaks this ends the terminal with an error. The browser
//! is pinged every 30 s and given up when it is silent for 90 s. The terminal ends when the right to
//! it does.

mod frame;
mod pump;
mod routes;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Ctx;

/// The paths of this room.
#[must_use]
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(routes::open))
}

//! The browser terminal: one WebSocket, one program with a terminal in an instance.
//!
//! # Frames
//!
//! | from | kind | means |
//! |---|---|---|
//! | browser | binary | bytes typed |
//! | browser | text `{"type":"resize","cols":80,"rows":24}` | the terminal's new size |
//! | browser | text `{"type":"ping"}` | is anybody there? |
//! | browser | text `{"type":"hangup"}` | end the program |
//! | browser | text `{"type":"attach","ticket":"…","offset":17}` | come back; the first frame after `?attach=1`, and nowhere else |
//! | controller | text `{"type":"opened","kept":true,"ticket":"…","expires_s":600,"offset":0,"resumed":false}` | the program runs; the first frame |
//! | controller | text `{"type":"opened","kept":false}` | the same, of a program to which nobody can come back |
//! | controller | binary | bytes to show |
//! | controller | text `{"type":"pong"}` | the answer to a ping; left out while output waits |
//! | controller | text `{"type":"exit","code":0}` | the program ended; the last frame |
//! | controller | text `{"type":"error","code":"not_running","message":"…"}` | it could not be opened, or ended otherwise; the last frame |
//!
//! `tests/vectors/terminal.json` holds examples that both sides test against. After the last frame
//! the WebSocket is closed: 1000 after an exit, 1008 when the controller refuses (a bad frame, a
//! right that ended, an instance that was stopped, a terminal that is gone or taken over), 1011 for a
//! failure, after which a page may try again.
//!
//! Whatever is wrong with the request itself (no right, no such instance, a bad size) is answered
//! over HTTP. Whatever goes wrong when the program is started comes as an error frame, because a
//! browser does not show a script the answer to a refused upgrade.
//!
//! # Coming back
//!
//! Where a node has a guest, the program outlives its page: a closed WebSocket, a lost network and a
//! controller that restarts only leave it, for ten minutes. Its row holds whose it is and the hash of
//! a ticket. With that ticket any session of the same account that may open a terminal there comes
//! back: `?attach=1`, then the attach frame (a ticket in the address would be logged). `offset` is
//! what the page has seen, the first `opened`'s plus every byte since; without it everything that is
//! kept comes, which is the screen. At most 256 KiB are kept: the `offset` of `opened` says where what
//! follows begins. The guest takes the new page's size and lets a program that fills the screen paint it
//! anew.
//!
//! A ticket is good once; every `opened` brings another. One that is late, used, somebody else's, or
//! of another instance, is told `terminal_gone` in the same words. A second page with the ticket of a
//! first one takes the terminal over, and the first is told `taken_over`.
//!
//! What ends a program: its own end, `hangup`, `DELETE …/terminals/{terminal}`, a right that ends, an
//! instance that is stopped, and ten minutes without anybody. The right is the session's while a page
//! is there and the account's while it is left (`keeper.rs`).
//!
//! # Limits
//!
//! Binary frames from a browser have at most 64 KiB, text frames 1 KiB; an agent's pieces of output
//! at most 256 KiB. Sizes are 1 to 10 000. A session has at most 16 terminals open, an instance 64
//! streams. An account has at most 32 kept ones: the one left for longest makes room for another. The
//! WebSocket is pinged every 20 s and given up after 60 s of silence; a person may think for as long
//! as they like.

mod actions;
mod frame;
#[cfg(test)]
mod frame_tests;
mod goodbye;
mod keeper;
#[cfg(test)]
mod keeper_tests;
mod model;
mod open;
mod pump;
mod routes;
mod store;
#[cfg(test)]
mod tests;
mod ticket;

use axum::Extension;
use axum::routing::connect;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Ctx;
use crate::core::slots::Slots;

pub use keeper::{begin, run};

/// Terminals that a session may have open.
const PER_SESSION: usize = 16;
/// Terminals that are kept for an account.
const PER_ACCOUNT: usize = 32;

/// The paths of this room.
#[must_use]
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(routes::open))
        .routes(routes!(routes::list))
        .routes(routes!(routes::hang_up))
        // A WebSocket over HTTP/2 is a CONNECT.
        .route("/instances/{id}/terminal", connect(routes::open))
        .layer(Extension(Slots::<uuid::Uuid>::new(PER_SESSION)))
}

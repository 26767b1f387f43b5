//! Port forwards: a port of the controller's machine that leads to an address, or into an instance.
//!
//! # Targets
//!
//! `target_ip` and `target_port`: the controller connects by itself. Over TCP the bytes go from socket to
//! socket inside the kernel (`splice.rs`). `instance_id` and `instance_port`: the connection travels
//! through the node's agent to the instance's own 127.0.0.1, so nothing of the instance needs to be
//! reachable. UDP goes in flows, one for each client, that end when they rest (`udp/`).
//!
//! # Who may
//!
//! Whoever has `forwards:host` listens anywhere and leads anywhere, other people listen on the addresses
//! and ports that `[forwards]` sets aside and lead into own instances. A forward stands on its owner's
//! right, looked at again whenever the account, a role or the instance changes: when the right ends,
//! so do listening and every connection. It begins again by itself when the right is back. It goes with
//! its instance, and with its owner's account.
//!
//! # States
//!
//! `stopped` (off), `listening`, and `error` with a reason (on, but the port is taken, the address is not
//! there, or the right is gone). What is in `error` is tried again every two seconds when the port was
//! to blame, and every 30 seconds otherwise. Numbers are counted since the controller started.
//!
//! # Changes
//!
//! They take effect at once, and the answer to a change says what came of it. Descriptions, the limit of
//! connections and the idle time change without closing anything. Another way (address, port, protocol,
//! target, owner) or another list of sources closes what is open. `::` takes IPv6 alone.
//!
//! # Limits
//!
//! Connections are limited for each rule and for all together (`[forwards]`), so are flows of UDP. A
//! connection holds at most one pipe or one buffer in each direction: who reads slowly slows its sender
//! down. Datagrams that find no room are dropped. When descriptors run out, taking in pauses.
//!
//! # Audit
//!
//! Changes are audited with what was before and after. Connections to an address come by the thousand, so
//! they are counted: one row `forwards:carry` when a forward stops and every hour in which it carried
//! something. Connections into an instance are written down by visits (`visits.rs`): two rows for each
//! source and minute at most, with their number and bytes; without the first nobody is let in.

mod actions;
mod addresses;
mod admit;
mod keeper;
pub mod live;
mod model;
mod port;
mod pump;
mod routes;
mod rules;
mod running;
mod splice;
mod store;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod view;
mod visits;

pub use keeper::run;
pub use routes::router;

//! Machines with an agent: how they join, what they have, whether they are heard.
//!
//! A machine joins by a token and becomes a row; a key that joined once stays the same node. Its
//! agent's certificates are known by serial; removing the node revokes them at once. An admin edits
//! the row, the agent's reports fill the rest of it, and one task ([`connection`]) writes the latter:
//! online and offline, Docker's state, inventory and cards. Who is offline is decided by the pure
//! [`judge`]. A card that vanishes stays as a row that is not present.
//!
//! A drain cordons a node. Instances on it are stopped only when the request says so: then
//! [`crate::core::event::Event::Drain`] asks the room that owns them. Should the controller end in
//! that moment, the node is cordoned and the drain can be asked for again.
//!
//! Owns `nodes`, `node_gpus`, `node_joins`, `agent_certificates` and
//! `join_tokens`.

pub mod actions;
pub mod connection;
pub mod directory;
mod inventory;
pub mod judge;
pub mod model;
pub mod pem;
mod routes;
pub mod settings;
pub mod store;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod view;

pub use connection::run;
pub use directory::Directory;
pub use pem::SEALED;
pub use routes::router;

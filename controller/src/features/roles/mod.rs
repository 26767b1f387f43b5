//! Roles: what accounts may do, as sets of permissions.
//!
//! The table of permissions is `authz/policy.rs` and nothing else; `/permissions` serves it. `admin`,
//! `user` and `auditor` are built in and never change; others are rows. Whoever makes or changes a
//! role gives no more than their own role has, and a role that an account has cannot be deleted.

mod actions;
mod model;
mod routes;
mod store;
#[cfg(test)]
mod tests;

pub use routes::router;

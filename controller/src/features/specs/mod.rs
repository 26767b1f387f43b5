//! Specs: the sizes on offer and their price.
//!
//! A spec asks for no card, for whole cards, or for a slice of one card. Instances keep a copy of
//! the spec that they were made from, so a change concerns new instances alone; a spec that a living
//! instance was made from cannot be deleted.

mod actions;
mod model;
mod routes;
mod store;
#[cfg(test)]
mod tests;

pub use routes::router;

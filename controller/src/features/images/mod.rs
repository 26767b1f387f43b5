//! Images on offer: which containers people may start, and the credentials to fetch them.
//!
//! An entry is one image reference. Its registry password is sealed under the row's id, is never
//! answered, and reaches an agent inside a pull alone. An image that a living instance was made from
//! cannot be deleted; taking it off the list keeps it from new instances.

mod actions;
mod model;
mod routes;
mod store;
#[cfg(test)]
mod tests;

pub use routes::router;
pub use store::{SEALED, credentials};

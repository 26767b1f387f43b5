//! The words that controller and agent share, and the protocol between them.
//!
//! Nothing that only one binary needs belongs here, and nothing here does IO; the framed reading
//! and writing of [`wire::frame`] is behind the feature `wire`.

pub mod clock;
pub mod id;
pub mod name;
pub mod shell;
pub mod unit;
pub mod wire;

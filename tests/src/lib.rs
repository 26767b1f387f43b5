//! Equipment of the whole-path tests: real engines, images, databases, controllers and agents.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "test equipment fails by panicking, and waits on the real clock"
)]

pub mod deadline;
pub mod dockerd;
pub mod images;

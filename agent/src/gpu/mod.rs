//! Cards: what they are, how slices of them reach a container.

pub mod inject;

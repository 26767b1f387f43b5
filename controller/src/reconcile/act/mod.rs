//! What the loop does about a difference. Every action may run twice.

pub(super) mod agent;
pub(super) mod end;
pub(super) mod node;
pub(super) mod place;
pub(super) mod pull;
pub(super) mod queue;

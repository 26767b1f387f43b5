//! Quotas: how much of everything an account may have at most.
//!
//! A row stands for one account, or for every account of a role. An account's row is laid over its
//! role's, field by field: what it does not say, the role's row says, and what neither says has no
//! limit. No row is built in, so nobody is limited until an admin says so.
//!
//! What counts, from the rows of instances and at the moment of asking:
//!
//! | quantity | counts |
//! |---|---|
//! | `instances` | every instance that nobody has asked to delete |
//! | `gpus` | whole cards of every instance that should run |
//! | `gpu_memory_mib` | memory of the slice of every instance that should run |
//! | `cpu_cores`, `memory_mib` | those of every instance that should run |
//! | `disk_gib` | system and data disk of every instance until it is gone |
//!
//! "Should run" includes the queue: what waits will take as soon as it can, so a queue cannot be
//! longer than a quota. A stop gives back what running takes, at once, although the node needs a moment;
//! a node that does not answer must not hold an account's quota. Disk is held until the node says that
//! it is free.
//!
//! A create and a start are checked in their own transaction, which locks the account first: requests
//! at once count one after the other. Nothing else is: lowering a limit below what is used ends
//! nothing and refuses more, and an admin who hands instances over to an account may take it over its
//! quota; they count for it from then on. A step that gives back is never refused.

mod actions;
mod model;
mod routes;
mod store;
#[cfg(test)]
mod tests;

pub use routes::router;

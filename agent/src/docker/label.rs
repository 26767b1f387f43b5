//! The labels by which the agent knows its containers and volumes again.

/// Which instance a container or volume belongs to. Containers without it are never touched.
pub const INSTANCE: &str = "tianqi.instance";
/// The generation of the instance when its container was made.
pub const GENERATION: &str = "tianqi.generation";
/// The uuids of the cards that were asked for, separated by commas; how Docker was told is not
/// always visible afterwards.
pub const GPUS: &str = "tianqi.gpus";
/// The name the container was made with; Docker's own name can be changed.
pub const CONTAINER_NAME: &str = "tianqi.container_name";
/// The limits that could not be enforced when the container was made, as JSON.
pub const LIMITS: &str = "tianqi.limits";
/// Marks the network of the instances.
pub const NETWORK: &str = "tianqi.network";

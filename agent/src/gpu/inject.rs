//! What a slice adds to a container, and the seam between the loop that makes containers and the
//! code that knows the slicing library.

use tianqi_common::id::InstanceId;
use tianqi_common::wire::desired::{GpuSlice, GpuUuid};
use tianqi_common::wire::observed::LimitState;

/// What a slice adds to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Environment variables; they win over the image's and the user's.
    pub env: Vec<(String, String)>,
    /// Files and directories of the node shown in the container.
    pub binds: Vec<Bind>,
    /// Whether the slice is enforced, and why not. Reported with the instance.
    pub limits: Vec<LimitState>,
}

/// A file or directory of the node shown in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the node; it must exist before the container starts.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Whether the container may not write it.
    pub read_only: bool,
}

/// Why a slice could not be prepared. The container is neither made nor started; the loop tries
/// again with growing pauses and reports the message.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// A file of the node could not be read or written.
    #[error("could not {what} {path}")]
    Io {
        /// What was tried, such as `write`.
        what: &'static str,
        /// Which file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The slicing library must not be used as it is.
    #[error("{0}")]
    Unusable(String),
}

/// Gives slices to containers. Every call may block on the disk (the loop makes it on a blocking
/// thread) and may come twice for the same instance.
pub trait SliceInjector: Send + Sync + 'static {
    /// Makes everything that the container of `instance` needs and says what to inject. Called
    /// before the container is made. A node without a usable library answers with a
    /// [`LimitState`] that says so, not with an error, unless such instances must not run.
    ///
    /// # Errors
    ///
    /// [`InjectError`] when files could not be made.
    fn prepare(
        &self,
        instance: InstanceId,
        slice: GpuSlice,
        gpus: &[GpuUuid],
    ) -> Result<Injection, InjectError>;

    /// Writes the limits afresh. Called before every start, also after a reboot of the node, when
    /// everything that [`SliceInjector::prepare`] made in memory is gone.
    ///
    /// # Errors
    ///
    /// [`InjectError`] when files could not be written.
    fn reseed(
        &self,
        instance: InstanceId,
        slice: GpuSlice,
        gpus: &[GpuUuid],
    ) -> Result<(), InjectError>;

    /// Removes what was made for `instance`. Called after its container is gone; an instance
    /// without anything is fine.
    ///
    /// # Errors
    ///
    /// [`InjectError`] when something could not be removed; it is reported as left over.
    fn cleanup(&self, instance: InstanceId) -> Result<(), InjectError>;
}

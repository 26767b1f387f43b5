//! THE place that reaches a running instance or its node.
//!
//! Agents dial in (`agent/`); what they report leaves through two bounded channels that the
//! composition root connects: [`AgentEvent`]s wait for the reader, [`samples`] drop the oldest.
//! `link` knows no room: who may connect is asked of a [`NodeDirectory`].
//!
//! Opening anything on an instance takes a grant; it names the node too, so that a stream cannot be
//! pointed elsewhere.

pub mod agent;
pub mod directory;
mod problem;
pub mod samples;
mod stream;

use std::sync::Arc;

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::{BootId, InstanceId, NodeId};
use tianqi_common::wire::CloseCode;
use tianqi_common::wire::desired::{NodeDesired, NodeSettings};
use tianqi_common::wire::frame::FrameError;
use tianqi_common::wire::inventory::NodeInventory;
use tianqi_common::wire::observed::NodeObserved;
use tianqi_common::wire::stream::{StreamOpen, StreamRefusal};

use crate::authz::Grant;
use crate::authz::policy::Permission;
use crate::authz::resource::InstanceRef;

pub use agent::listener::{LinkConfig, LinkParts, LinkServer, StartError};
pub use directory::{Admission, DirectoryError, JoinAttempt, JoinDenied, NodeDirectory, Refusal};
pub use stream::{WorkReader, WorkStream, WorkWriter};

use agent::registry::Registry;

/// Reaches agents. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Link {
    registry: Arc<Registry>,
}

/// Something that happened between the controller and one agent.
#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// An agent is served. Its desired state and settings must be published again.
    Connected {
        /// Which node.
        node: NodeId,
        /// Which start of its agent.
        boot: BootId,
        /// When that start began, by the node's clock.
        started_at: UnixMillis,
        /// Version of the agent's program.
        program: String,
        /// The node's clock minus the controller's, in milliseconds.
        skew_ms: i64,
        /// Where it dialled from.
        address: std::net::SocketAddr,
    },
    /// A connection ended. A newer one of the same node may stand: see [`Link::is_connected`].
    Disconnected {
        /// Which node.
        node: NodeId,
        /// Which start of its agent.
        boot: BootId,
        /// Which leg failed, in words.
        reason: String,
        /// When the agent was last heard: now, or some seconds ago when it fell silent.
        heard_at: UnixMillis,
    },
    /// What the machine is.
    Inventory(NodeId, Box<NodeInventory>),
    /// What is on the node.
    Observed(NodeId, Box<NodeObserved>),
}

/// Why an agent could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The node's agent is not connected.
    #[error("the agent of node {0} is not connected")]
    NotConnected(NodeId),
    /// The instance is on no node.
    #[error("instance {0} is not placed on a node")]
    NotPlaced(InstanceId),
    /// The request names another instance than the grant, or none.
    #[error("the stream does not belong to instance {0}")]
    WrongTarget(InstanceId),
    /// The agent said no.
    #[error("{message}")]
    Refused {
        /// Why.
        code: StreamRefusal,
        /// The agent's sentence.
        message: String,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer within {0} s")]
    TimedOut(u64),
    /// The connection ended.
    #[error("the connection to the agent ended")]
    Lost(#[source] std::io::Error),
    /// The agent broke the protocol, or the message is too large.
    #[error("the agent and the controller do not understand each other")]
    Frame(#[source] FrameError),
}

impl Link {
    /// Opens a stream into the instance that `grant` names.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub async fn open<P: Permission>(
        &self,
        grant: &Grant<InstanceRef, P>,
        open: StreamOpen,
    ) -> Result<WorkStream, LinkError> {
        let instance = grant.resource();
        if open.instance() != Some(instance.id) {
            return Err(LinkError::WrongTarget(instance.id));
        }
        let node = instance.node.ok_or(LinkError::NotPlaced(instance.id))?;
        self.open_on_node(node, open).await
    }

    /// Opens a stream on a node itself: pulls and checks, for the loop and the node's page.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub(crate) async fn open_on_node(
        &self,
        node: NodeId,
        open: StreamOpen,
    ) -> Result<WorkStream, LinkError> {
        let connection = self.registry.get(node).ok_or(LinkError::NotConnected(node))?;
        connection.open(open).await
    }

    /// Says what should be on a node; the newest one counts. Returns whether its agent is connected:
    /// when it is not, publish again at [`AgentEvent::Connected`].
    pub fn publish(&self, node: NodeId, desired: NodeDesired) -> bool {
        self.registry.get(node).is_some_and(|connection| connection.publish(desired))
    }

    /// Hands a node its settings; the newest ones count. Returns whether its agent is connected.
    pub fn settings(&self, node: NodeId, settings: NodeSettings) -> bool {
        self.registry.get(node).is_some_and(|connection| connection.settings(settings))
    }

    /// Asks a node's agent to report at once. Returns whether it is connected.
    pub fn report(&self, node: NodeId) -> bool {
        self.registry.get(node).is_some_and(|connection| connection.report())
    }

    /// Says goodbye to a node's agent and closes its connection. Returns whether there was one.
    pub fn close(&self, node: NodeId, code: CloseCode, message: &str) -> bool {
        let connection = self.registry.get(node);
        connection.is_some_and(|connection| connection.say_goodbye(code, message))
    }

    /// Whether a node's agent is connected.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.registry.get(node).is_some()
    }

    /// Returns the nodes whose agents are connected, in no order.
    #[must_use]
    pub fn connected_nodes(&self) -> Vec<NodeId> {
        self.registry.nodes()
    }
}

//! "Something changed": how rooms wake each other without calling each other.

use tianqi_common::id::{ForwardId, InstanceId, NodeId, UserId};
use tokio::sync::broadcast;

/// What changed. It carries ids, not contents: whoever hears it reads the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An instance's row changed.
    Instance(InstanceId),
    /// A node's row, its cards or its connection changed.
    Node(NodeId),
    /// An admin drains a node: what runs there must be stopped.
    Drain(NodeId),
    /// An image or a spec changed.
    Catalogue,
    /// What a role allows changed: whoever holds a grant looks at it again.
    Roles,
    /// An account lost a right: its sessions, streams and grants must be looked at again.
    Revoked(UserId),
    /// A forward's row changed.
    Forward(ForwardId),
}

/// Events that a slow listener may fall behind before it is told that it missed some. A listener
/// that missed some must treat everything as changed.
const BACKLOG: usize = 4_096;

/// Where events are sent and heard.
#[derive(Clone, Debug)]
pub struct Events {
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// Starts without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }

    /// Tells every listener. Call it after the transaction is committed.
    pub fn send(&self, event: Event) {
        // An error means that nobody listens, which is fine.
        let _ = self.sender.send(event);
    }

    /// Starts listening.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

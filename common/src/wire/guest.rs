//! Between an agent and the guest in a container: who dials, and what for.
//!
//! The agent listens on a socket in a folder of the instance, bound read-only into its container at
//! [`RUN`]. The guest dials: one connection says [`GuestHello::Control`] and stays; over it the agent
//! asks for streams with [`ToGuest::Stream`], and for each the guest dials once more and repeats the
//! token. On such a stream the agent sends the [`StreamOpen`](super::stream::StreamOpen) that the
//! controller sent, and the guest answers as an agent does.
//!
//! The container's user owns the guest: an agent takes everything from it as a stranger's word.

use serde::{Deserialize, Serialize};

/// Where the folder with the socket stands in a container.
pub const RUN: &str = "/.tianqi/run";
/// The socket's name in that folder.
pub const SOCKET: &str = "agent.sock";
/// What this build's guest understands; an agent serves itself through Docker beside a lower one.
pub const GUEST_VERSION: u16 = 1;
/// What `tianqi-guest tcp` says first when its connection stands: an engine's exec shows only output.
pub const CONNECTED: u8 = 0x06;

/// Names one stream that was asked for; random, good for one use.
pub type StreamToken = [u8; 16];

/// The first frame of every connection that a guest makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestHello {
    /// The connection over which the agent asks.
    Control {
        /// The guest's [`GUEST_VERSION`].
        version: u16,
    },
    /// The stream that was asked for.
    Stream {
        /// The token that asked.
        token: StreamToken,
    },
}

/// What an agent says on the control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Dial once more, for a stream.
    Stream {
        /// What to say first on it.
        token: StreamToken,
    },
}

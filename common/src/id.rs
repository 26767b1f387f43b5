//! Identifiers: one newtype each, so that a node's id can never stand where an instance's belongs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Makes a new id (UUID version 7, so that ids sort by age).
            #[must_use]
            #[allow(clippy::new_without_default, reason = "every call gives another id")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id! {
    /// A container that a user owns.
    InstanceId
}
id! {
    /// A machine with an agent.
    NodeId
}
id! {
    /// An account.
    UserId
}
id! {
    /// An entry of the image list.
    ImageId
}
id! {
    /// A size on offer.
    SpecId
}
id! {
    /// One start of an agent; the newest of two connections with the same node id wins.
    BootId
}
id! {
    /// A terminal that is kept for somebody to come back to.
    TerminalId
}
id! {
    /// A port that leads somewhere.
    ForwardId
}

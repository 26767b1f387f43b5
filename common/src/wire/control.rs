//! Messages on the control stream after the hello.

use serde::{Deserialize, Serialize};

use super::desired::{NodeDesired, NodeSettings};
use super::inventory::NodeInventory;
use super::observed::NodeObserved;

/// Controller to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Everything that should be on the node. Always complete; the newest one counts.
    Desired(NodeDesired),
    /// Answer to [`ToController::Renew`].
    Renewed {
        /// The new certificate, PEM.
        certificate_pem: String,
        /// The CA certificates to trust from now on, PEM, newest first.
        ca_pem: String,
    },
    /// Answer to [`ToController::Renew`] that could not be granted; the agent asks again later.
    RenewRefused {
        /// One sentence.
        message: String,
    },
    /// What was set on the node's page; replaces what came before.
    Settings(NodeSettings),
    /// Why the connection is about to end.
    Goodbye {
        /// A stable word: `superseded`, `removed`, `shutdown`.
        code: String,
        /// One sentence for the agent's log.
        message: String,
    },
    /// Asks for [`ToController::Observed`] and [`ToController::Inventory`] at once.
    Report,
}

/// Agent to controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToController {
    /// What the machine is. Sent after the hello and whenever it changes.
    Inventory(Box<NodeInventory>),
    /// What is on the node. Always complete; sent when it changes and every 30 s.
    Observed(NodeObserved),
    /// Asks for a new certificate on the running connection.
    Renew {
        /// A certificate request; only its public key is used.
        csr_pem: String,
    },
}

//! What people are told when an agent could not be reached.

use tianqi_common::wire::stream::StreamRefusal;

use super::LinkError;
use crate::core::error::Problem;

impl From<LinkError> for Problem {
    fn from(error: LinkError) -> Self {
        let detail = error.to_string();
        match error {
            LinkError::NotConnected(_) => {
                Self::unavailable("node_offline", "its node does not answer now; try again later")
            }
            LinkError::NotPlaced(_) => {
                Self::conflict("not_placed", "it is not on a node yet; wait until it runs")
            }
            LinkError::WrongTarget(_) => Self::internal(&error),
            LinkError::Refused { code, .. } => refused(code, detail),
            LinkError::TimedOut(_) | LinkError::Lost(_) | LinkError::Frame(_) => {
                Self::unavailable("node_lost", detail)
            }
        }
    }
}

fn refused(code: StreamRefusal, detail: String) -> Problem {
    match code {
        StreamRefusal::NoContainer => Problem::conflict("no_container", detail),
        StreamRefusal::NotRunning => Problem::conflict("not_running", detail),
        StreamRefusal::TooMany => Problem::too_many("too_many_streams", detail),
        StreamRefusal::Unsupported => Problem::conflict("unsupported", detail),
        StreamRefusal::Docker => Problem::unavailable("docker_failed", detail),
        StreamRefusal::BadRequest => Problem::invalid("bad_stream", detail),
        StreamRefusal::Gone => Problem::conflict("terminal_gone", detail),
        StreamRefusal::ConnectFailed => Problem::unavailable("connect_failed", detail),
    }
}

//! What an agent is told: built from the row, tried on every save, pushed when it connects.

use std::time::Duration;

use tianqi_common::id::NodeId;
use tianqi_common::wire::desired::NodeSettings;
use tianqi_common::wire::stream::{CheckReport, StreamOpen};

use super::pem::DockerTls;
use super::store::nodes;
use super::view::SettingsCheck;
use crate::core::error::{Chain, Result};
use crate::features::Ctx;
use crate::link::LinkError;

/// How long an agent may try settings; an engine that drops packets takes that long to fail.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// Builds the settings of a node; nothing when there is no such node.
///
/// # Errors
///
/// `internal` (500) when the row or its PEMs cannot be read.
pub async fn of_node(ctx: &Ctx, node: NodeId) -> Result<Option<NodeSettings>> {
    let Some(row) = nodes::for_settings(&ctx.db, node).await? else { return Ok(None) };
    let tls = DockerTls::open(&ctx.seal, node, row.sealed_docker_tls.as_deref())?;
    Ok(Some(NodeSettings {
        hami_dir: row.hami_dir,
        docker_endpoint: row.docker_endpoint,
        docker_tls_ca: tls.ca,
        docker_tls_cert: tls.cert,
        docker_tls_key: tls.key,
    }))
}

/// Hands the node's settings to its agent, when it is connected.
pub async fn push(ctx: &Ctx, node: NodeId) {
    match of_node(ctx, node).await {
        Ok(Some(settings)) => {
            ctx.link.settings(node, settings);
        }
        Ok(None) => {}
        Err(problem) => {
            tracing::error!(node.id = %node, "the settings of node {node} could not be read: {}", problem.detail);
        }
    }
}

/// Lets the agent try settings without keeping them.
pub async fn check(ctx: &Ctx, node: NodeId, settings: NodeSettings) -> SettingsCheck {
    let unavailable = |unavailable: String| SettingsCheck::Unavailable { unavailable };
    let tried = async {
        let mut stream = ctx.link.open_on_node(node, StreamOpen::Check(settings)).await?;
        stream.reader.next::<CheckReport>().await
    };
    match tokio::time::timeout(CHECK_TIMEOUT, tried).await {
        Ok(Ok(Some(report))) => report.into(),
        Ok(Ok(None)) => unavailable("the agent ended the check without an answer".to_owned()),
        Ok(Err(LinkError::NotConnected(_))) => {
            unavailable("the agent is offline; the settings are tried when it connects".to_owned())
        }
        Ok(Err(error)) => unavailable(Chain(&error).to_string()),
        Err(_) => unavailable(format!("the agent did not answer within {CHECK_TIMEOUT:?}")),
    }
}

//! Trying the settings of a node's page without keeping them.

use futures_util::future::BoxFuture;
use tianqi_common::wire::desired::NodeSettings;
use tianqi_common::wire::frame::{self, Limit};
use tianqi_common::wire::stream::CheckReport;
use tokio::io::AsyncWrite;

use super::{StreamError, accept};

/// Tries settings; the composition root knows what they change.
pub trait SettingsCheck: Send + Sync + 'static {
    /// Returns what the settings would give.
    fn check(&self, settings: NodeSettings) -> BoxFuture<'_, CheckReport>;
}

pub(super) async fn serve<W: AsyncWrite + Unpin>(
    check: &dyn SettingsCheck,
    settings: NodeSettings,
    writer: &mut W,
) -> Result<(), StreamError> {
    accept(writer).await?;
    let report = check.check(settings).await;
    Ok(frame::write(writer, &report, Limit::STREAM).await?)
}

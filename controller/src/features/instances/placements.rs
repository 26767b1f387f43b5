//! Where a request would go, and why not elsewhere: the same answer that the create would get.

use serde::Deserialize;
use serde_json::Value as Json;
use tianqi_common::id::NodeId;
use tianqi_scheduler::{Snapshot, explain};
use utoipa::IntoParams;
use uuid::Uuid;

use super::{catalogue, fleet};
use crate::authz::policy::PlacementsRead;
use crate::authz::{Anything, Grant};
use crate::core::error::{Problem, Result};
use crate::features::Ctx;

/// A request to look at.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PlacementQuery {
    /// The spec.
    pub spec_id: Uuid,
    /// The image.
    pub image_id: Uuid,
    /// The node; any when left out.
    pub node_id: Option<Uuid>,
}

/// Looks at every node for a request.
///
/// # Errors
///
/// As for a create with the same image and spec.
pub async fn candidates(
    ctx: &Ctx,
    grant: &Grant<Anything, PlacementsRead>,
    query: &PlacementQuery,
) -> Result<Json> {
    let chosen = catalogue::chosen(&ctx.db, query.image_id, query.spec_id, grant.actor()).await?;
    let snapshot = Snapshot::new(fleet::all_nodes(&ctx.db).await?);
    let request = chosen.spec.request(query.node_id.map(NodeId), &chosen.image_address);
    let explanation = explain(&snapshot, &request);
    serde_json::to_value(explanation).map_err(|error| Problem::internal(&error))
}

//! Where a request would go, and why not elsewhere: the same answer that the create would get.

use serde::Deserialize;
use serde_json::{Value as Json, json};
use tianqi_common::id::NodeId;
use tianqi_scheduler::{Snapshot, explain};
use utoipa::IntoParams;
use uuid::Uuid;

use super::quota::Wanted;
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

/// Looks at every node for a request. Under `refused` it says why the create would be refused although
/// it fits, or null.
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
    let mut answer =
        serde_json::to_value(explanation).map_err(|error| Problem::internal(&error))?;
    let wanted = Wanted::by_new(grant.actor().id, &chosen.spec);
    let refused = wanted.foreseen(&ctx.db).await?;
    answer["refused"] = json!(refused.map(|problem| {
        json!({ "code": problem.code, "detail": problem.detail, "data": problem.data })
    }));
    Ok(answer)
}

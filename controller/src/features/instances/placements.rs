//! Where a request would go, and why not elsewhere: the same answer that the create would get.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tianqi_common::id::NodeId;
use tianqi_scheduler::{Explanation, Snapshot, explain};
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

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    explanation: Explanation,
    refused: Option<Refused>,
}

/// Why the create would be refused, as its problem would say.
#[derive(Serialize)]
struct Refused {
    code: &'static str,
    detail: String,
    data: Option<Json>,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { code: problem.code, detail: problem.detail, data: problem.data }
    }
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
    let wanted = Wanted::by_new(grant.actor().id, &chosen.spec);
    let answer = Answer {
        explanation: explain(&snapshot, &request),
        refused: wanted.foreseen(&ctx.db).await?.map(Refused::from),
    };
    serde_json::to_value(answer).map_err(|error| Problem::internal(&error))
}

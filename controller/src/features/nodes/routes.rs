//! Paths of nodes, their cards, and join tokens.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::actions::{self, Drain, GpuPatch};
use super::model::{NodeFilter, NodePatch};
use super::tokens::{self, CreateJoinToken, JoinTokenView, NewJoinToken};
use super::view::{DrainedNode, GpuView, NodeView, SavedNode};
use crate::authz::policy::{JoinTokensWrite, NodesRead, NodesWrite};
use crate::authz::resource::{JoinTokenRef, NodeRef};
use crate::authz::{Anything, Grant};
use crate::core::error::{ProblemBody, Result};
use crate::core::http::{Body, Query};
use crate::core::page::{Page, PageQuery};
use crate::features::Ctx;

/// A card in a path. The node's id beside it is read by the grant.
#[derive(Debug, Deserialize)]
struct GpuPath {
    uuid: String,
}

/// Every path of this room.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(list_nodes))
        .routes(routes!(get_node, update_node, delete_node))
        .routes(routes!(cordon_node))
        .routes(routes!(uncordon_node))
        .routes(routes!(drain_node))
        .routes(routes!(list_node_gpus))
        .routes(routes!(update_node_gpu))
        .routes(routes!(list_join_tokens, create_join_token))
        .routes(routes!(delete_join_token))
}

/// Lists nodes.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(NodeFilter, PageQuery),
    responses((status = 200, body = Page<NodeView>), (status = "default", body = ProblemBody)))]
async fn list_nodes(
    State(ctx): State<Ctx>,
    grant: Grant<Anything, NodesRead>,
    Query(filter): Query<NodeFilter>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<NodeView>>> {
    actions::list(&ctx, &grant, &filter, &page).await.map(Json)
}

/// Reads one node with its inventory.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = NodeView), (status = "default", body = ProblemBody)))]
async fn get_node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesRead>,
) -> Result<Json<NodeView>> {
    actions::get(&ctx, &grant).await.map(Json)
}

/// Changes a node. HAMi and Docker settings are tried on the node, and the result is shown.
#[utoipa::path(patch, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path)),
    request_body = NodePatch,
    responses((status = 200, body = SavedNode), (status = "default", body = ProblemBody)))]
async fn update_node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesWrite>,
    Body(patch): Body<NodePatch>,
) -> Result<Json<SavedNode>> {
    actions::update(&ctx, &grant, &patch).await.map(Json)
}

/// Removes a node without instances and revokes its certificates.
#[utoipa::path(delete, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = ProblemBody)))]
async fn delete_node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesWrite>,
) -> Result<StatusCode> {
    actions::delete(&ctx, &grant).await.map(|()| StatusCode::NO_CONTENT)
}

/// Holds new work back from a node.
#[utoipa::path(post, path = "/nodes/{id}/cordon", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = NodeView), (status = "default", body = ProblemBody)))]
async fn cordon_node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesWrite>,
) -> Result<Json<NodeView>> {
    actions::set_cordoned(&ctx, &grant, true).await.map(Json)
}

/// Lets new work onto a node again.
#[utoipa::path(post, path = "/nodes/{id}/uncordon", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = NodeView), (status = "default", body = ProblemBody)))]
async fn uncordon_node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesWrite>,
) -> Result<Json<NodeView>> {
    actions::set_cordoned(&ctx, &grant, false).await.map(Json)
}

/// Cordons a node and, when asked to, has the instances on it stopped. Nothing is deleted.
#[utoipa::path(post, path = "/nodes/{id}/drain", tag = "nodes", params(("id" = String, Path)),
    request_body = Drain,
    responses((status = 202, body = DrainedNode), (status = "default", body = ProblemBody)))]
async fn drain_node(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesWrite>,
    Body(drain): Body<Drain>,
) -> Result<(StatusCode, Json<DrainedNode>)> {
    let drained = actions::drain(&ctx, &grant, drain).await?;
    Ok((StatusCode::ACCEPTED, Json(drained)))
}

/// Lists the cards of a node with what is granted of them.
#[utoipa::path(get, path = "/nodes/{id}/gpus", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = Vec<GpuView>), (status = "default", body = ProblemBody)))]
async fn list_node_gpus(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesRead>,
) -> Result<Json<Vec<GpuView>>> {
    actions::gpus(&ctx, &grant).await.map(Json)
}

/// Says how a card may be used from now on. Instances that hold it keep it.
#[utoipa::path(patch, path = "/nodes/{id}/gpus/{uuid}", tag = "nodes",
    params(("id" = String, Path), ("uuid" = String, Path)), request_body = GpuPatch,
    responses((status = 200, body = GpuView), (status = "default", body = ProblemBody)))]
async fn update_node_gpu(
    State(ctx): State<Ctx>,
    grant: Grant<NodeRef, NodesWrite>,
    Path(path): Path<GpuPath>,
    Body(patch): Body<GpuPatch>,
) -> Result<Json<GpuView>> {
    actions::set_gpu(&ctx, &grant, &path.uuid, patch).await.map(Json)
}

/// Lists join tokens, without their secrets.
#[utoipa::path(get, path = "/join-tokens", tag = "nodes", params(PageQuery),
    responses((status = 200, body = Page<JoinTokenView>), (status = "default", body = ProblemBody)))]
async fn list_join_tokens(
    State(ctx): State<Ctx>,
    _grant: Grant<Anything, JoinTokensWrite>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<JoinTokenView>>> {
    tokens::list(&ctx, &page).await.map(Json)
}

/// Makes a join token. The token is shown this once.
#[utoipa::path(post, path = "/join-tokens", tag = "nodes", request_body = CreateJoinToken,
    responses((status = 201, body = NewJoinToken), (status = "default", body = ProblemBody)))]
async fn create_join_token(
    State(ctx): State<Ctx>,
    grant: Grant<Anything, JoinTokensWrite>,
    Body(wanted): Body<CreateJoinToken>,
) -> Result<(StatusCode, Json<NewJoinToken>)> {
    let token = tokens::create(&ctx, &grant, &wanted).await?;
    Ok((StatusCode::CREATED, Json(token)))
}

/// Withdraws a join token. Nodes that joined by it stay.
#[utoipa::path(delete, path = "/join-tokens/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = ProblemBody)))]
async fn delete_join_token(
    State(ctx): State<Ctx>,
    grant: Grant<JoinTokenRef, JoinTokensWrite>,
) -> Result<StatusCode> {
    tokens::delete(&ctx, &grant).await.map(|()| StatusCode::NO_CONTENT)
}

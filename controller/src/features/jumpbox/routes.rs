//! `/instances/{id}/ssh`.

use axum::Json;
use axum::extract::State;
use axum::http::header::HOST;
use axum::http::{HeaderMap, Uri};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::guide::{Place, Way};
use crate::authz::Grant;
use crate::authz::policy::InstancesSsh;
use crate::authz::resource::InstanceRef;
use crate::core::error::{Problem, ProblemBody, Result};
use crate::features::Ctx;

/// The room's paths.
pub fn router() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(ssh))
}

/// How the caller comes into an instance by SSH: lines to paste.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct SshAccess {
    /// The jumpbox's host.
    host: String,
    /// Its port.
    port: u16,
    /// Whom to log in as: the caller's account, `+`, and the instance.
    user: String,
    /// A shell.
    ssh: String,
    /// Copies `FILE` into the instance.
    scp: String,
    /// Files both ways.
    sftp: String,
    /// Through the jumpbox to the instance's own SSH server.
    jump: String,
    /// Port 8080 of the instance as port 8080 of one's own machine.
    forward: String,
    /// A block for `~/.ssh/config`.
    config: String,
    /// Lines for `~/.ssh/known_hosts`: the jumpbox's key and the instance's.
    known_hosts: String,
    /// The jumpbox's host key as OpenSSH shows it when it asks.
    host_key_fingerprint: String,
    /// The host key of the instance's own SSH server.
    instance_host_key_fingerprint: String,
}

/// Says how the caller comes into an instance by SSH, with lines to paste. The host is
/// `jumpbox.public_address`, or else the one that this request was sent to.
#[utoipa::path(get, path = "/instances/{id}/ssh", tag = "instances", params(("id" = uuid::Uuid, Path)), responses(
    (status = 200, body = SshAccess),
    (status = "default", body = ProblemBody, content_type = "application/problem+json"),
))]
async fn ssh(
    grant: Grant<InstanceRef, InstancesSsh>,
    State(ctx): State<Ctx>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<SshAccess>> {
    let (actor, instance) = (grant.actor(), grant.resource());
    let bound = ctx.entrance.port().zip(ctx.entrance.keys(instance.id));
    let Some((port, [jumpbox, inner])) = bound else {
        let detail = "SSH is off in the configuration (jumpbox.enabled)";
        return Err(Problem::conflict("ssh_off", detail));
    };
    let place = place(&ctx, &uri, &headers, port)?;
    let is_own = instance.owner == actor.id;
    let target = if is_own { instance.name.clone() } else { instance.id.to_string() };
    let way = Way { place: &place, account: &actor.name, target: &target, name: &instance.name };
    Ok(Json(SshAccess {
        user: way.login(),
        ssh: way.ssh(),
        scp: way.scp(),
        sftp: way.sftp(),
        jump: way.jump(),
        forward: way.forward(),
        config: way.config(),
        known_hosts: way.known_hosts(&jumpbox.line, &inner.line),
        host_key_fingerprint: jumpbox.fingerprint,
        instance_host_key_fingerprint: inner.fingerprint,
        port: place.port,
        host: place.host,
    }))
}

/// Where people come in: as configured, or by the host that this request names and the port in use.
fn place(ctx: &Ctx, uri: &Uri, headers: &HeaderMap, port: u16) -> Result<Place> {
    let public = ctx.config.jumpbox.public_address.as_deref();
    if let Some(place) = public.and_then(Place::public) {
        return Ok(place);
    }
    // HTTP/2 names the host in the address, HTTP/1.1 in a header.
    let header = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(|authority| authority.as_str()).or(header);
    let place = host.and_then(|host| Place::parse(host, port)).map(|place| Place { port, ..place });
    place.ok_or_else(|| {
        let detail = "the request names no host; set jumpbox.public_address in the configuration";
        Problem::bad_request("no_host", detail)
    })
}

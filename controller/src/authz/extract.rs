//! Grants in the signatures of handlers.

use axum::extract::{FromRef, FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::resource::Resource;
use super::{Authz, Grant, Permission, actor};
use crate::core::audit::{self, Entry, Outcome};
use crate::core::error::{Problem, Result};

impl<S, R, P> FromRequestParts<S> for Grant<R, P>
where
    S: Send + Sync,
    R: Resource,
    P: Permission,
    Authz: FromRef<S>,
{
    type Rejection = Problem;

    /// Authenticates, finds the resource by the path's `id`, and decides.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let authz = Authz::from_ref(state);
        let actor = actor::authenticate(&authz, parts).await?;
        let params = RawPathParams::from_request_parts(parts, state).await;
        let id = params.ok().and_then(|params| {
            params.iter().find(|(name, _)| *name == "id").map(|(_, id)| id.to_owned())
        });
        let doer = actor.doer();
        let resource = R::find(&authz.db, id.as_deref()).await?;
        let decided = Self::decide(actor, resource);
        if let Err(problem) = &decided {
            let entry = Entry {
                doer: &doer,
                action: P::NAME,
                target_kind: "",
                target_id: id.unwrap_or_default(),
                outcome: Outcome::Refused,
                detail: serde_json::json!({ "code": problem.code }),
            };
            audit::record_alone(&authz.db, authz.clock.now(), &entry).await?;
        }
        decided
    }
}

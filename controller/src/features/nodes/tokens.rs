//! Join tokens: made, listed, withdrawn. The secret is shown once and only its hash is kept.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tianqi_common::clock::UnixMillis;
use tianqi_common::wire::join::JoinToken;
use utoipa::ToSchema;
use uuid::Uuid;

use super::store::join::{self, NewToken, TokenRow};
use crate::authz::policy::JoinTokensWrite;
use crate::authz::resource::JoinTokenRef;
use crate::authz::{Anything, Grant};
use crate::config::Config;
use crate::core::audit::{self, Entry, Outcome};
use crate::core::error::{Problem, Result};
use crate::core::page::{Page, PageQuery};
use crate::core::text;
use crate::core::timestamp::Timestamp;
use crate::features::Ctx;

const TTL_DEFAULT: u64 = 3_600;
const TTL_LEAST: u64 = 60;
const TTL_MOST: u64 = 30 * 24 * 3_600;
const USES_MOST: u32 = 1_000;
const DESCRIPTION_MAX: usize = 500;

/// A join token that is wanted.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// What it is for; at most 500 characters.
    #[serde(default)]
    pub description: String,
    /// Seconds that it lives: 60 to 2592000 (30 days); 3600 when left out.
    pub ttl_seconds: Option<u64>,
    /// How many machines may join by it: 1 to 1000; 1 when left out.
    pub max_uses: Option<u32>,
}

/// A new join token. The token is shown this once.
#[derive(Serialize, ToSchema)]
pub struct NewJoinToken {
    /// Its id.
    pub id: Uuid,
    /// The token, for `tianqi-agent join --token`.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The command to run on the machine, as root.
    pub command: String,
}

impl std::fmt::Debug for NewJoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewJoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether a join token can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinTokenState {
    /// It can.
    Usable,
    /// As many machines joined as may.
    UsedUp,
    /// Its lifetime is over.
    Expired,
}

/// A join token, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct JoinTokenView {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub description: String,
    /// How many machines may join by it.
    pub max_uses: i64,
    /// How many did.
    pub uses: i64,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whether it can be used.
    pub state: JoinTokenState,
    /// The account that made it.
    pub created_by: Uuid,
    /// That account's name; null when it is gone.
    pub created_by_name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl JoinTokenView {
    fn new(row: TokenRow, now: UnixMillis) -> Self {
        let state = if row.expires_at <= now.0 {
            JoinTokenState::Expired
        } else if row.uses >= row.max_uses {
            JoinTokenState::UsedUp
        } else {
            JoinTokenState::Usable
        };
        Self {
            id: row.id,
            description: row.description,
            max_uses: row.max_uses,
            uses: row.uses,
            expires_at: Timestamp::from_stored(row.expires_at),
            state,
            created_by: row.created_by,
            created_by_name: row.created_by_name,
            created_at: Timestamp::from_stored(row.created_at),
        }
    }
}

fn check(wanted: &CreateJoinToken) -> Result<(u64, u32)> {
    let ttl = wanted.ttl_seconds.unwrap_or(TTL_DEFAULT);
    if !(TTL_LEAST..=TTL_MOST).contains(&ttl) {
        let detail = format!("ttl_seconds is {TTL_LEAST} to {TTL_MOST} (30 days), not {ttl}");
        return Err(Problem::invalid("bad_field", detail));
    }
    let uses = wanted.max_uses.unwrap_or(1);
    if !(1..=USES_MOST).contains(&uses) {
        let detail = format!("max_uses is 1 to {USES_MOST}, not {uses}");
        return Err(Problem::invalid("bad_field", detail));
    }
    text::line("description", &wanted.description, 0, DESCRIPTION_MAX)?;
    Ok((ttl, uses))
}

/// Makes a token.
///
/// # Errors
///
/// `bad_field` (422) with what is allowed.
pub async fn create(
    ctx: &Ctx,
    grant: &Grant<Anything, JoinTokensWrite>,
    wanted: &CreateJoinToken,
) -> Result<NewJoinToken> {
    let (ttl, max_uses) = check(wanted)?;
    let now = ctx.clock.now();
    let expires_at = now.plus(std::time::Duration::from_secs(ttl));
    let fingerprint = ctx.ca.fingerprint(now).map_err(|error| Problem::internal(&error))?;
    let mut random = [0; 32];
    rand::rng().fill_bytes(&mut random);
    let secret = URL_SAFE_NO_PAD.encode(random);
    let token = NewToken {
        id: Uuid::now_v7(),
        description: &wanted.description,
        secret_hash: Sha256::digest(secret.as_bytes()).into(),
        max_uses,
        expires_at,
        created_by: grant.actor().id,
    };
    let detail = json!({
        "description": token.description, "ttl_seconds": ttl, "max_uses": max_uses,
    });
    let mut tx = ctx.db.begin().await?;
    join::insert_token(&mut tx, now, &token).await?;
    let entry = Entry {
        doer: &grant.actor().doer(),
        action: "join_tokens:create",
        target_kind: "join_token",
        target_id: token.id.to_string(),
        outcome: Outcome::Done,
        detail,
    };
    audit::record(&mut tx, now, &entry).await?;
    tx.commit().await?;
    let id = token.id;
    let token = JoinToken { secret, fingerprint }.to_string();
    let controller = controller_address(&ctx.config);
    let command = format!("tianqi-agent join --controller {controller} --token {token}");
    Ok(NewJoinToken { id, token, expires_at: expires_at.into(), command })
}

/// Returns the `HOST:PORT` that agents dial, as far as the configuration tells.
fn controller_address(config: &Config) -> String {
    if let Some(address) = &config.agents.public_address {
        return address.clone();
    }
    let listen = config.agents.listen;
    if !listen.ip().is_unspecified() && listen.port() != 0 {
        return listen.to_string();
    }
    let host = config.http.public_url.as_deref().and_then(|url| url.split_once("://"));
    let host = host.and_then(|(_, rest)| rest.split(['/', '?', '#']).next()).map(without_port);
    format!("{}:{}", host.unwrap_or("CONTROLLER_ADDRESS"), listen.port())
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Lists tokens, without their secrets.
///
/// # Errors
///
/// `bad_page`, `bad_sort` (422).
pub async fn list(ctx: &Ctx, page: &PageQuery) -> Result<Page<JoinTokenView>> {
    let paging = page.check(join::TOKEN_SORT, "-created_at", "t.id")?;
    let page = join::tokens(&ctx.db, &paging).await?;
    let now = ctx.clock.now();
    let items = page.items.into_iter().map(|row| JoinTokenView::new(row, now)).collect();
    Ok(Page { items, total: page.total, page: page.page, page_size: page.page_size })
}

/// Withdraws a token. Nodes that joined by it stay.
///
/// # Errors
///
/// `internal` (500) when the database fails.
pub async fn delete(ctx: &Ctx, grant: &Grant<JoinTokenRef, JoinTokensWrite>) -> Result<()> {
    let id = grant.resource().id;
    let mut tx = ctx.db.begin().await?;
    join::delete_token(&mut tx, id).await?;
    let entry = Entry {
        doer: &grant.actor().doer(),
        action: "join_tokens:delete",
        target_kind: "join_token",
        target_id: id.to_string(),
        outcome: Outcome::Done,
        detail: json!({}),
    };
    audit::record(&mut tx, ctx.clock.now(), &entry).await?;
    tx.commit().await?;
    Ok(())
}

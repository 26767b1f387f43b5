//! Answers what the link asks about nodes: who may connect, who may join, what was refused.

use std::net::IpAddr;

use serde_json::json;
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use tianqi_common::wire::join::JoinRefusal;
use uuid::Uuid;

use super::store::join::{self, NewNode, UsableToken};
use super::store::nodes;
use crate::core::audit::{self, Doer, Entry, Outcome, Via};
use crate::core::ca::{AgentCertificate, RENEWABLE_AFTER_END};
use crate::core::db::{Db, DbError, Tx};
use crate::core::error::Chain;
use crate::core::event::{Event, Events};
use crate::features::{Clock, Ctx};
use crate::link::{Admission, DirectoryError, JoinAttempt, JoinDenied, NodeDirectory, Refusal};

/// Times a join is tried again when another one took its name, its key or its lock.
const ATTEMPTS: u32 = 8;
/// Tries after which a name is made unique by the node's id instead of a number.
const NUMBERED_ATTEMPTS: u32 = 3;

/// The nodes, for the link.
#[derive(Clone, Debug)]
pub struct Directory {
    db: Db,
    clock: Clock,
    events: Events,
}

/// Why one try of a join ended.
enum Ended {
    Refused(JoinRefusal, String),
    Db(DbError),
}

impl From<DbError> for Ended {
    fn from(error: DbError) -> Self {
        Self::Db(error)
    }
}

fn failed(error: DbError) -> DirectoryError {
    DirectoryError(Box::new(error))
}

impl Directory {
    /// Answers from the process's database.
    #[must_use]
    pub fn new(ctx: &Ctx) -> Self {
        Self { db: ctx.db.clone(), clock: ctx.clock.clone(), events: ctx.events.clone() }
    }

    async fn try_join(&self, attempt: &JoinAttempt, tries: u32) -> Result<NodeId, Ended> {
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        let token = join::lock_token(&mut tx, attempt.secret_hash).await?;
        let token = check_lifetime(token, now)?;
        let known = join::node_of_key(&mut tx, attempt.key_hash).await?;
        if let Some(known) = known.as_ref().filter(|known| known.token_id == token.id) {
            return Ok(NodeId(known.node_id));
        }
        if token.uses >= token.max_uses {
            let message = format!(
                "this join token was used {} of {} times; make a new one",
                token.uses, token.max_uses
            );
            return Err(Ended::Refused(JoinRefusal::UsedUp, message));
        }
        join::count_use(&mut tx, token.id).await?;
        let (node, name) = match known {
            Some(known) => (NodeId(known.node_id), None),
            None => {
                make_node(&mut tx, now, attempt, tries).await.map(|(id, name)| (id, Some(name)))?
            }
        };
        join::remember_key(&mut tx, now, attempt.key_hash, node, token.id).await?;
        record_join(&mut tx, now, attempt, node, name.as_deref(), token.id).await?;
        tx.commit().await?;
        self.events.send(Event::Node(node));
        Ok(node)
    }
}

fn check_lifetime(token: Option<UsableToken>, now: UnixMillis) -> Result<UsableToken, Ended> {
    let Some(token) = token else {
        let message =
            "this controller does not know the join token; copy it whole, or make a new one";
        return Err(Ended::Refused(JoinRefusal::UnknownToken, message.to_owned()));
    };
    if token.expires_at <= now.0 {
        let ago = now.since(UnixMillis(token.expires_at)).as_secs();
        let message = format!("this join token expired {ago} s ago; make a new one");
        return Err(Ended::Refused(JoinRefusal::Expired, message));
    }
    Ok(token)
}

async fn make_node(
    tx: &mut Tx,
    now: UnixMillis,
    attempt: &JoinAttempt,
    tries: u32,
) -> Result<(NodeId, String), DbError> {
    let id = NodeId::new();
    let wanted = if attempt.hostname.is_empty() { "node" } else { &attempt.hostname };
    let taken = join::names_like(tx, wanted).await?;
    let name = free_name(wanted, &taken, (tries >= NUMBERED_ATTEMPTS).then_some(id));
    let ip = attempt.address.ip().to_canonical();
    let address = ip.to_string();
    let (public_ip, private_ip) =
        if is_private(ip) { ("", address.as_str()) } else { (address.as_str(), "") };
    let clock_skew_ms = attempt.skew_ms;
    let node = NewNode { id, name: &name, public_ip, private_ip, clock_skew_ms };
    join::insert_node(tx, now, &node).await?;
    Ok((id, name))
}

/// Returns `wanted`, or the first of `wanted-2`, `wanted-3` … that is free. When others keep taking
/// the same number at the same time, the end of the node's own id settles it.
fn free_name(wanted: &str, taken: &[String], id: Option<NodeId>) -> String {
    let is_free = |name: &str| !taken.iter().any(|other| other == name);
    if is_free(wanted) && id.is_none() {
        return wanted.to_owned();
    }
    if let Some(id) = id {
        let digits = id.0.simple().to_string();
        return format!("{wanted}-{}", digits.get(20..).unwrap_or(&digits));
    }
    (2_u64..).map(|n| format!("{wanted}-{n}")).find(|name| is_free(name)).unwrap_or_default()
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

async fn record_join(
    tx: &mut Tx,
    now: UnixMillis,
    attempt: &JoinAttempt,
    node: NodeId,
    name: Option<&str>,
    token: Uuid,
) -> Result<(), DbError> {
    let entry = Entry {
        doer: &Doer::anonymous(attempt.address.ip().to_canonical(), Via::Agent),
        action: "nodes:join",
        target_kind: "node",
        target_id: node.to_string(),
        outcome: Outcome::Done,
        detail: json!({ "hostname": attempt.hostname, "name": name, "join_token": token }),
    };
    audit::record(tx, now, &entry).await
}

impl NodeDirectory for Directory {
    async fn admit(&self, node: NodeId, serial: &str) -> Result<Admission, DirectoryError> {
        let row = join::certificate(&self.db, node, serial).await.map_err(failed)?;
        Ok(match row {
            None => Admission::Unknown,
            Some(row) if row.revoked_at.is_some() || row.node_id.is_none() => Admission::Removed,
            Some(_) => Admission::Admitted,
        })
    }

    async fn join(&self, attempt: JoinAttempt) -> Result<NodeId, JoinDenied> {
        let mut tries = 0;
        loop {
            match self.try_join(&attempt, tries).await {
                Ok(node) => return Ok(node),
                Err(Ended::Refused(code, message)) => {
                    return Err(JoinDenied::Refused(code, message));
                }
                Err(Ended::Db(error)) => {
                    let may_pass = error.is_retryable() || matches!(error, DbError::Duplicate(_));
                    tries += 1;
                    if tries == ATTEMPTS || !may_pass {
                        return Err(JoinDenied::Failed(failed(error)));
                    }
                }
            }
        }
    }

    async fn record_certificate(
        &self,
        node: NodeId,
        certificate: &AgentCertificate,
    ) -> Result<(), DirectoryError> {
        let now = self.clock.now();
        let kept = i64::try_from(RENEWABLE_AFTER_END.as_millis()).unwrap_or(i64::MAX);
        let forget_before = UnixMillis(now.0.saturating_sub(kept));
        let made = (certificate.serial.as_str(), certificate.not_before, certificate.not_after);
        let recorded = async {
            let mut tx = self.db.begin().await?;
            // Locked, so that a removal at the same time either revokes this one too or comes first.
            if !nodes::lock(&mut tx, node).await? {
                return Ok(false);
            }
            join::insert_certificate(&mut tx, now, node, made, forget_before).await?;
            tx.commit().await.map(|()| true)
        };
        match recorded.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(DirectoryError(format!("node {node} was removed").into())),
            Err(error) => Err(failed(error)),
        }
    }

    async fn record_refusal(&self, refusal: Refusal) {
        let target = refusal.node.map(|node| node.to_string()).unwrap_or_default();
        let entry = Entry {
            doer: &Doer::anonymous(refusal.address.ip().to_canonical(), Via::Agent),
            action: if refusal.node.is_some() { "nodes:connect" } else { "nodes:join" },
            target_kind: "node",
            target_id: target,
            outcome: Outcome::Refused,
            detail: json!({ "code": refusal.code, "message": refusal.message }),
        };
        if let Err(error) = audit::record_alone(&self.db, self.clock.now(), &entry).await {
            tracing::error!(error = %Chain(&error), "a refusal could not be put on the audit trail");
        }
    }
}

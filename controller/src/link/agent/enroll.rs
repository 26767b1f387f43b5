//! From a join token to a certificate, and from a certificate to the next.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::Connection;
use sha2::{Digest, Sha256};
use tianqi_common::clock::UnixMillis;
use tianqi_common::id::NodeId;
use tianqi_common::wire::CloseCode;
use tianqi_common::wire::control::ToAgent;
use tianqi_common::wire::frame::{self, FrameError, Limit};
use tianqi_common::wire::hello::{decode_with_version, split_version, with_version};
use tianqi_common::wire::join::{JoinRefusal, JoinReply, JoinRequest, MAX_CLOCK_SKEW_S};

use super::handshake::{close, identity, part};
use super::listener::{PATIENCE, Shared};
use crate::core::ca::{AgentCertificate, AgentIdentity, AgentRequest, RENEWABLE_AFTER_END};
use crate::link::directory::{Admission, JoinAttempt, JoinDenied, NodeDirectory, Refusal};

/// Longest name of a machine, in characters; longer ones are cut.
const HOSTNAME_MAX: usize = 63;

/// A refusal on its way to the machine.
struct Refused {
    code: JoinRefusal,
    message: String,
    node: Option<NodeId>,
}

impl Refused {
    fn new(code: JoinRefusal, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), node: None }
    }

    /// The machine is told to try again; the cause is logged here.
    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a machine could not be enrolled");
        Self::new(JoinRefusal::Internal, "the controller failed; try again, then read its log")
    }
}

/// Serves one connection on the join ALPN: one request, one reply.
pub(super) async fn serve<D: NodeDirectory>(shared: &Shared<D>, quic: Connection) {
    let address = quic.remote_address();
    if !shared.joins.allow(address.ip(), shared.clock.monotonic()) {
        return close(
            &quic,
            CloseCode::Shutdown,
            "too many joins from this address; wait a minute",
        );
    }
    match tokio::time::timeout(PATIENCE, exchange(shared, &quic)).await {
        Ok(Ok(())) => close(&quic, CloseCode::Shutdown, "done"),
        Ok(Err(error)) => {
            tracing::info!(error = %error, "a join from {address} broke off");
            close(&quic, CloseCode::Protocol, &error.to_string());
        }
        Err(_) => close(&quic, CloseCode::Protocol, "no request in time"),
    }
}

async fn exchange<D: NodeDirectory>(
    shared: &Shared<D>,
    quic: &Connection,
) -> Result<(), FrameError> {
    let failed = |error: quinn::ConnectionError| FrameError::Io(error.into());
    let (mut send, mut recv) = quic.accept_bi().await.map_err(failed)?;
    let payload = frame::read_payload(&mut recv, Limit::HELLO).await?;
    let payload = payload.ok_or(FrameError::Truncated)?;
    let (theirs, _) = split_version(&payload)?;
    let answer = if shared.version.agree(theirs).is_some() {
        let (_, request) = decode_with_version::<JoinRequest>(&payload)?;
        enroll(shared, request, quic).await
    } else {
        let ours = shared.version;
        let message = format!(
            "the agent speaks protocol {theirs}, this controller {ours}; install the agent that \
             came with this controller"
        );
        Err(Refused::new(JoinRefusal::Version, message))
    };
    let reply = match answer {
        Ok((node, certificate)) => {
            let ca_pem = shared.ca.trusted_pem();
            JoinReply::Accepted { node, certificate_pem: certificate.pem, ca_pem }
        }
        Err(refused) => {
            record(shared, quic.remote_address(), &refused).await;
            JoinReply::Refused { code: refused.code, message: refused.message }
        }
    };
    let payload = with_version(shared.version, &reply)?;
    frame::write_payload(&mut send, &payload, Limit::HELLO).await?;
    part(&mut send).await;
    Ok(())
}

async fn record<D: NodeDirectory>(shared: &Shared<D>, address: SocketAddr, refused: &Refused) {
    let code = match refused.code {
        JoinRefusal::UnknownToken => "unknown_token",
        JoinRefusal::UsedUp => "used_up",
        JoinRefusal::Expired => "expired",
        JoinRefusal::Version => "version",
        JoinRefusal::ClockSkew => "clock_skew",
        JoinRefusal::BadRequest => "bad_request",
        JoinRefusal::Removed => "removed",
        JoinRefusal::Internal => "internal",
    };
    tracing::info!("a machine at {address} was refused: {}", refused.message);
    let message = refused.message.clone();
    shared.directory.record_refusal(Refusal { address, code, message, node: refused.node }).await;
}

async fn enroll<D: NodeDirectory>(
    shared: &Shared<D>,
    request: JoinRequest,
    quic: &Connection,
) -> Result<(NodeId, AgentCertificate), Refused> {
    let now = shared.clock.now();
    let address = quic.remote_address();
    match request {
        JoinRequest::Join { secret, csr_pem, hostname, now: theirs } => {
            let skew_ms = check_clock(now, theirs)?;
            let request = parse(&csr_pem)?;
            let attempt = JoinAttempt {
                secret_hash: Sha256::digest(secret.as_bytes()).into(),
                hostname: clean(&hostname),
                key_hash: request.key_hash(),
                address,
                skew_ms,
            };
            let node = shared.directory.join(attempt).await.map_err(|denied| match denied {
                JoinDenied::Refused(code, message) => Refused::new(code, message),
                JoinDenied::Failed(error) => Refused::internal(&error),
            })?;
            Ok((node, issue(shared, node, request).await?))
        }
        JoinRequest::Renew { csr_pem, now: theirs } => {
            let identity = identity(quic).ok_or_else(|| {
                let message = "a renewal needs the old certificate; join with a token instead";
                Refused::new(JoinRefusal::BadRequest, message)
            })?;
            let node = identity.node;
            let renewed = async {
                check_clock(now, theirs)?;
                check_renewable(shared, &identity, now).await?;
                issue(shared, node, parse(&csr_pem)?).await
            };
            match renewed.await {
                Ok(certificate) => Ok((node, certificate)),
                Err(refused) => Err(Refused { node: Some(node), ..refused }),
            }
        }
    }
}

/// Keeps letters, digits, `-`, `_` and `.` of what a machine calls itself.
fn clean(hostname: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    hostname.chars().filter(allowed).take(HOSTNAME_MAX).collect()
}

fn check_clock(ours: UnixMillis, theirs: UnixMillis) -> Result<i64, Refused> {
    let skew_ms = theirs.0.saturating_sub(ours.0);
    if skew_ms.unsigned_abs() <= MAX_CLOCK_SKEW_S * 1_000 {
        return Ok(skew_ms);
    }
    let side = if skew_ms > 0 { "ahead of" } else { "behind" };
    let message = format!(
        "the machine's clock is {} s {side} the controller's, at most {MAX_CLOCK_SKEW_S} s are \
         allowed; set the clocks (timedatectl set-ntp true)",
        skew_ms.unsigned_abs() / 1_000
    );
    Err(Refused::new(JoinRefusal::ClockSkew, message))
}

fn parse(csr_pem: &str) -> Result<AgentRequest, Refused> {
    AgentRequest::parse(csr_pem).map_err(|error| {
        let message = format!("{error}; install the agent that came with this controller");
        Refused::new(JoinRefusal::BadRequest, message)
    })
}

async fn check_renewable<D: NodeDirectory>(
    shared: &Shared<D>,
    identity: &AgentIdentity,
    now: UnixMillis,
) -> Result<(), Refused> {
    let removed = |message: &str| Err(Refused::new(JoinRefusal::Removed, message));
    if now.since(identity.not_after) > RENEWABLE_AFTER_END {
        return removed("the certificate expired more than 180 days ago; join with a new token");
    }
    match shared.directory.admit(identity.node, &identity.serial).await {
        Ok(Admission::Admitted) => Ok(()),
        Ok(Admission::Removed) => removed("the node was removed; join with a new token"),
        Ok(Admission::Unknown) => removed("this controller does not know the node"),
        Err(error) => Err(Refused::internal(&error)),
    }
}

async fn issue<D: NodeDirectory>(
    shared: &Shared<D>,
    node: NodeId,
    request: AgentRequest,
) -> Result<AgentCertificate, Refused> {
    let now = shared.clock.now();
    let certificate =
        shared.ca.sign_agent(request, node, now).map_err(|error| Refused::internal(&error))?;
    let recorded = shared.directory.record_certificate(node, &certificate).await;
    recorded.map_err(|error| Refused::internal(&error))?;
    Ok(certificate)
}

/// Renewals on a running connection, with a pause between them.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    last: Option<Duration>,
}

impl Renewals {
    /// Answers one request. A certificate that was just renewed is not renewed again, so that an
    /// agent cannot fill the table.
    pub(super) async fn renew<D: NodeDirectory>(
        &mut self,
        shared: &Shared<D>,
        node: NodeId,
        serial: &str,
        csr_pem: &str,
    ) -> ToAgent {
        let pause = shared.ca.lifetimes().agent / 100;
        let now = shared.clock.monotonic();
        if self.last.is_some_and(|last| now.saturating_sub(last) < pause) {
            let message = format!("renewed less than {} s ago", pause.as_secs());
            return ToAgent::RenewRefused { message };
        }
        self.last = Some(now);
        let identity = AgentIdentity {
            node,
            serial: serial.to_owned(),
            // The connection stands, so the certificate was good when it began.
            not_after: shared.clock.now(),
        };
        let renewed = async {
            check_renewable(shared, &identity, shared.clock.now()).await?;
            issue(shared, node, parse(csr_pem)?).await
        };
        match renewed.await {
            Ok(certificate) => ToAgent::Renewed {
                certificate_pem: certificate.pem,
                ca_pem: shared.ca.trusted_pem(),
            },
            Err(refused) => ToAgent::RenewRefused { message: refused.message },
        }
    }
}

//! Composition root: opens things, mounts every room, owns the order of shutdown.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use tianqi_common::clock::SharedClock;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::admin;
use crate::authz::{Authz, session, token};
use crate::config::Config;
use crate::core::audit::{Chain as AuditChain, Look};
use crate::core::ca::{self, Lifetimes};
use crate::core::db::Db;
use crate::core::error::Chain;
use crate::core::event::Events;
use crate::core::http::proxy::TrustedProxies;
use crate::core::http::rate::Limiter;
use crate::core::http::server::{self, PortLimits};
use crate::core::http::{BODY_LIMIT, Frame, frame_request, no_such_method, no_such_path};
use crate::core::idempotency;
use crate::core::job::Jobs;
use crate::core::seal::{Seal, rotate};
use crate::core::tls;
use crate::features::forwards::live::Ports;
use crate::features::jumpbox::Entrance;
use crate::features::telemetry::live::Live;
use crate::features::{self, Clock, Ctx};
use crate::link::{Link, LinkConfig, LinkParts, samples};
use crate::reconcile;

/// Seven minutes after every full hour, when nothing else is due.
const HOURLY: &str = "0 7 * * * *";
/// How long open requests may take to end once the process was asked to.
const DRAIN: Duration = Duration::from_secs(10);

/// Reports of agents that wait; when it is full, agents wait.
const AGENT_EVENTS: usize = 1_024;
/// Batches of samples that wait; when it is full, the oldest is dropped.
const SAMPLES: usize = 256;

/// The API's description before the rooms add their paths.
#[derive(OpenApi)]
#[openapi(info(
    title = "Tianqi",
    description = "GPU computers as one pool: instances, nodes, images, specs.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct ApiDoc;

/// A controller that serves.
#[derive(Debug)]
pub struct Running {
    /// Where console and API listen.
    pub http: SocketAddr,
    /// Where agents connect (UDP).
    pub agents: SocketAddr,
    /// Where people come in by SSH; nothing when it is turned off.
    pub ssh: Option<SocketAddr>,
    /// What the rooms reach; tests and the admin socket use it.
    pub ctx: Ctx,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// Opens everything and begins to serve.
///
/// # Errors
///
/// When the data directory, the database, a key or a port cannot be used; the message says which.
pub async fn start(config: Config, clock: SharedClock) -> Result<Running> {
    config.check()?;
    make_data_dir(&config.data_dir)?;
    let ctx = open(config, clock).await?;
    let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
    let jobs = Jobs::start().await?;
    let agents = serve_agents(&ctx, &jobs, &cancel, &tasks).await?;
    forget_old_rows(&ctx, &jobs).await?;
    tasks.spawn(features::forwards::run(ctx.clone(), cancel.clone()));
    tasks.spawn(ctx.chain.clone().run(ctx.events.clone(), cancel.clone()));
    features::terminal::begin(&ctx).await?;
    tasks.spawn(features::terminal::run(ctx.clone(), cancel.clone()));

    let http = serve_api(&ctx, &cancel, &tasks).await?;
    let ssh = serve_ssh(&ctx, &cancel, &tasks).await?;
    tasks.spawn(admin::listen(ctx.clone(), cancel.clone())?);
    let ending = cancel.clone();
    tasks.spawn(async move {
        ending.cancelled().await;
        jobs.stop().await;
    });
    let by_ssh = ssh.map_or("off".to_owned(), |ssh| format!("on {ssh}"));
    tracing::info!("console and API on {http}, agents on udp {agents}, SSH {by_ssh}");
    Ok(Running { http, agents, ssh, ctx, cancel, tasks })
}

impl Running {
    /// Returns when the process was asked to stop by [`Running::stop_soon`].
    pub async fn stopping(&self) {
        self.cancel.cancelled().await;
    }

    /// Asks everything to end without waiting for it.
    pub fn stop_soon(&self) {
        self.cancel.cancel();
    }

    /// Ends everything: first what takes in work, then what does it, then the database.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests were still open after {DRAIN:?} and were cut off");
        }
        if let Err(error) = self.ctx.chain.seal(Look::Recent).await {
            tracing::warn!(error = %Chain(&error), "the last rows of the audit are sealed at the next start");
        }
        self.ctx.db.close().await;
    }
}

/// Listens for agents. What they report goes to the nodes' rows first, then to the loop.
async fn serve_agents(
    ctx: &Ctx,
    jobs: &Jobs,
    cancel: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<SocketAddr> {
    let (events, heard) = mpsc::channel(AGENT_EVENTS);
    let forward = reconcile::start(ctx, jobs, tasks, cancel).await?;
    let (samples, ingest) = samples::queue(SAMPLES);
    tasks.spawn(features::telemetry::live::ingest(ctx.clone(), ingest, cancel.clone()));
    let server = ctx.link.start(LinkParts {
        config: LinkConfig::at(ctx.config.agents.listen),
        ca: ctx.ca.clone(),
        directory: Arc::new(features::nodes::Directory::new(ctx)),
        clock: ctx.clock.0.clone(),
        events,
        samples,
    })?;
    let address = server.address();
    tasks.spawn(features::nodes::run(ctx.clone(), heard, forward, cancel.clone()));
    let stop = cancel.clone().cancelled_owned();
    tasks.spawn(async move {
        stop.await;
        server.stop().await;
    });
    Ok(address)
}

/// Once an hour, forgets sessions and API tokens that have ended, keys of requests that nobody repeats
/// any more, and rows of the audit that are old enough.
async fn forget_old_rows(ctx: &Ctx, jobs: &Jobs) -> Result<()> {
    let ctx = ctx.clone();
    let work = move || {
        let ctx = ctx.clone();
        async move {
            let (now, rules) = (ctx.clock.now(), ctx.authz.sessions);
            let sessions = session::forget_ended(&ctx.db, rules, now).await;
            let tokens = token::forget_expired(&ctx.db, now).await;
            let keys = idempotency::forget_old(&ctx.db, now).await;
            match sessions.and_then(|sessions| Ok(sessions + tokens? + keys?)) {
                Ok(forgotten) => tracing::debug!("{forgotten} old rows forgotten"),
                Err(error) => tracing::warn!(error = %Chain(&error), "old rows stay for now"),
            }
            match ctx.chain.forget_old(ctx.config.audit.retention_days).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!("{removed} old rows of the audit removed"),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "old rows of the audit stay for now");
                }
            }
        }
    };
    Ok(jobs.add("forget-old-rows", HOURLY, work).await?)
}

/// Listens for people and programs, with TLS when the configuration names a certificate.
async fn serve_api(
    ctx: &Ctx,
    cancel: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<SocketAddr> {
    let http = &ctx.config.http;
    let listener = TcpListener::bind(http.listen)
        .await
        .with_context(|| format!("http.listen: cannot listen on {}", http.listen))?;
    let address = listener.local_addr()?;
    let files = match (&http.tls_cert, &http.tls_key) {
        (Some(certificate), Some(key)) => Some(tls::Files::read(certificate, key)?),
        _ => None,
    };
    let current = files.as_ref().map(tls::Files::current);
    if let Some(files) = files {
        tasks.spawn(files.watch(cancel.clone()));
    }
    let limits = PortLimits {
        head_time: Duration::from_secs(http.head_seconds.into()),
        connections: usize::try_from(http.connections)?,
        connections_per_address: usize::try_from(http.connections_per_address)?,
        proxies: TrustedProxies(http.trusted_proxies.clone()),
    };
    tasks.spawn(server::serve(listener, current, router(ctx), limits, cancel.clone()));
    Ok(address)
}

/// Listens for people who come in by SSH, unless the configuration turns it off.
async fn serve_ssh(
    ctx: &Ctx,
    cancel: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Option<SocketAddr>> {
    let Some(jumpbox) = features::jumpbox::bind(ctx).await? else { return Ok(None) };
    let address = jumpbox.address();
    tasks.spawn(jumpbox.serve(cancel.clone()));
    Ok(Some(address))
}

fn make_data_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("data_dir: cannot make {}", path.display()))
}

async fn open(config: Config, clock: SharedClock) -> Result<Ctx> {
    let db = Db::open(&config.database_url(), config.database.max_connections)
        .await
        .context("database.url: the database cannot be opened")?;
    let ctx = assemble(db, config, clock).await?;
    ctx.authz.ensure_admin(&ctx.config.data_dir, Config::admin_password()).await?;
    Ok(ctx)
}

/// Opens the keys and puts together what the rooms reach.
///
/// # Errors
///
/// When the master key or the agents' authority cannot be opened.
pub(crate) async fn assemble(db: Db, config: Config, clock: SharedClock) -> Result<Ctx> {
    let seal = Seal::open_or_create(&config.data_dir.join("master.key"))?;
    if let Err(error) = rotate::resume(&db, &seal, features::SEALED).await {
        tracing::error!(error = %Chain(&error), "the master key is still being exchanged");
    }
    let authz = Authz::start(db.clone(), clock.clone(), &config);
    let agent = Duration::from_secs(u64::from(config.agents.certificate_days) * 24 * 3_600);
    let lifetimes = Lifetimes { agent, ..Lifetimes::default() };
    let ca = ca::store::open(&db, &seal, lifetimes, clock.now()).await?;
    let seal = Arc::new(seal);
    let chain = AuditChain::new(db.clone(), seal.clone(), clock.clone(), &config.data_dir);
    Ok(Ctx {
        db,
        clock: Clock(clock),
        events: Events::new(),
        seal,
        config: Arc::new(config),
        authz,
        chain,
        link: Link::default(),
        live: Live::default(),
        ports: Ports::default(),
        entrance: Entrance::default(),
        ca: Arc::new(ca),
    })
}

/// Every room of the API, one line each.
fn rooms() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .merge(features::audit::router())
        .merge(features::forwards::router())
        .merge(features::images::router())
        .merge(features::instances::router())
        .merge(features::jumpbox::router())
        .merge(features::nodes::router())
        .merge(features::quotas::router())
        .merge(features::roles::router())
        .merge(features::specs::router())
        .merge(features::telemetry::router())
        .merge(features::terminal::router())
        .merge(features::users::router())
}

/// Returns the API's description as JSON.
///
/// # Errors
///
/// When it cannot be written as JSON.
pub fn openapi() -> Result<String> {
    let (_, description) = split();
    Ok(description.to_pretty_json()?)
}

fn split() -> (Router<Ctx>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(ApiDoc::openapi()).nest("/api/v1", rooms()).split_for_parts()
}

/// Makes the whole HTTP service; tests call it without a port.
pub fn router(ctx: &Ctx) -> Router {
    let (api, description) = split();
    let public_origin = ctx.config.public_origin();
    let frame = Frame {
        proxies: TrustedProxies(ctx.config.http.trusted_proxies.clone()),
        is_public_secure: public_origin.is_some_and(|origin| origin.starts_with("https:")),
        time: Duration::from_secs(ctx.config.http.request_seconds.into()),
        addresses: Limiter::new(ctx.config.limits.address()),
        clock: ctx.clock.0.clone(),
        seal: ctx.seal.clone(),
    };
    api.merge(features::system::router(description))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn_with_state(frame, frame_request))
        .with_state(ctx.clone())
}

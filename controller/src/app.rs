//! Composition root: opens things, mounts every room, owns the order of shutdown.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::extract::connect_info::Connected;
use axum::middleware::from_fn_with_state;
use axum::serve::{IncomingStream, Listener, ListenerExt};
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
use crate::core::ca::{self, Lifetimes};
use crate::core::db::Db;
use crate::core::error::Chain;
use crate::core::event::Events;
use crate::core::http::{BODY_LIMIT, TrustedProxies, frame_request, no_such_method, no_such_path};
use crate::core::idempotency;
use crate::core::job::Jobs;
use crate::core::seal::Seal;
use crate::core::tls::{self, TlsListener};
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

    let listener = TcpListener::bind(ctx.config.http.listen)
        .await
        .with_context(|| format!("http.listen: cannot listen on {}", ctx.config.http.listen))?;
    let http = listener.local_addr()?;
    let tls = match (&ctx.config.http.tls_cert, &ctx.config.http.tls_key) {
        (Some(certificate), Some(key)) => Some(tls::read(certificate, key)?),
        _ => None,
    };
    let stop = cancel.clone().cancelled_owned();
    match tls {
        Some(acceptor) => {
            let listener = TlsListener::new(listener, acceptor)?;
            tasks.spawn(serve_api(listener.tap_io(|_| ()), router(&ctx), stop));
        }
        None => {
            // Keystrokes are small: they must not wait to be sent together.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            tasks.spawn(serve_api(listener, router(&ctx), stop));
        }
    }
    tasks.spawn(admin::listen(ctx.clone(), cancel.clone())?);
    let ending = cancel.clone();
    tasks.spawn(async move {
        ending.cancelled().await;
        jobs.stop().await;
    });
    tracing::info!("console and API on {http}, agents on udp {agents}");
    Ok(Running { http, agents, ctx, cancel, tasks })
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

/// Once an hour, forgets sessions and API tokens that have ended and keys of requests that nobody repeats any more.
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
        }
    };
    Ok(jobs.add("forget-old-rows", HOURLY, work).await?)
}

async fn serve_api<L>(listener: L, router: Router, stop: impl Future<Output = ()> + Send + 'static)
where
    L: Listener<Addr = SocketAddr>,
    SocketAddr: for<'a> Connected<IncomingStream<'a, L>>,
{
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the API stopped serving");
    }
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
    let authz = Authz::start(db.clone(), clock.clone(), &config);
    let agent = Duration::from_secs(u64::from(config.agents.certificate_days) * 24 * 3_600);
    let lifetimes = Lifetimes { agent, ..Lifetimes::default() };
    let ca = ca::store::open(&db, &seal, lifetimes, clock.now()).await?;
    Ok(Ctx {
        db,
        clock: Clock(clock),
        events: Events::new(),
        seal: Arc::new(seal),
        config: Arc::new(config),
        authz,
        link: Link::default(),
        live: Live::default(),
        ca: Arc::new(ca),
    })
}

/// Every room of the API, one line each.
fn rooms() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .merge(features::audit::router())
        .merge(features::images::router())
        .merge(features::instances::router())
        .merge(features::nodes::router())
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
    let proxies = TrustedProxies(ctx.config.http.trusted_proxies.clone());
    api.merge(features::system::router(description))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn_with_state(proxies, frame_request))
        .with_state(ctx.clone())
}

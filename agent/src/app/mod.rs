//! Composition root: opens things, connects the parts, owns the order of shutdown.

mod engine;
mod feed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tianqi_common::clock::SharedClock;
use tianqi_common::wire::VERSION;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::docker::walls::Iptables;
use crate::docker::{DockerHandle, NetworkSpec};
use crate::doctor;
use crate::enroll::IdentityStore;
use crate::gpu::collector::NvmlConfig;
use crate::gpu::hami::HamiInjector;
use crate::gpu::simulate::Simulation;
use crate::gpu::{GpuProbe, start_probe};
use crate::guest::{self, Guests};
use crate::inventory;
use crate::link::{self, LinkParts};
use crate::reconcile::ledger::Ledger;
use crate::reconcile::{self, Reconciler};
use crate::streams::Streams;
use crate::telemetry::sample::INTERVAL;
use crate::telemetry::{SampleQueue, Sampler};

/// How long parts may take to end once the process was asked to.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the agent until the process is told to stop (SIGTERM, SIGINT).
///
/// # Errors
///
/// When this machine has not joined, or the data directory or a key of the configuration cannot be
/// used. A Docker engine, driver or controller that is away is no error.
pub async fn run(config: Config, clock: SharedClock) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
    start(config, clock, &cancel, &tasks)?;
    notify(&[NotifyState::Ready]);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping; the instances run on");
    cancel.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("some work was still under way after {DRAIN:?} and was cut off");
    }
    Ok(())
}

/// What several parts share.
struct Machine {
    docker: DockerHandle,
    probe: Arc<dyn GpuProbe>,
    hami: Arc<HamiInjector>,
}

fn start(
    config: Config,
    clock: SharedClock,
    cancel: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<()> {
    let identity = IdentityStore::open(&config.data_dir)?;
    let node = identity.current().node;
    let page = engine::kept(&config.data_dir);
    let machine = open(&config, &page, &node.to_string(), clock.clone())?;
    let ledger = Ledger::open(&config.data_dir, clock.now()).context("data_dir")?;
    let config = Arc::new(config);

    let (desired, desired_in) = watch::channel(None);
    let (settings, settings_in) = watch::channel(None);
    let (seen, seen_in) = watch::channel(Default::default());
    let (observed, observed_in) = watch::channel(None);
    let (machine_facts, machine_facts_in) = watch::channel(None);
    let (docker_root, docker_root_in) = watch::channel(PathBuf::from(inventory::DOCKER_ROOT));
    let (targets, targets_in) = watch::channel(Vec::new());
    let (batches, batches_in) = mpsc::channel(link::SAMPLE_QUEUE);
    let pulled = Arc::new(Notify::new());
    let Machine { docker, probe, hami } = machine;

    let reconciler = Reconciler::new(
        docker.clone(),
        ledger,
        hami.clone(),
        Arc::new(Iptables),
        clock.clone(),
        loop_settings(&config)?,
    );
    tasks.spawn(reconciler.run(desired_in, pulled.clone(), seen, cancel.clone()));

    tasks.spawn(until(cancel, feed::observed(seen_in.clone(), observed)));
    tasks.spawn(until(cancel, feed::targets(docker.clone(), seen_in.clone(), targets)));
    let looking = feed::inventory(
        docker.clone(),
        probe.clone(),
        hami.clone(),
        seen_in.clone(),
        machine_facts,
        docker_root,
    );
    tasks.spawn(until(cancel, looking));
    let following = engine::follow(config.clone(), docker.clone(), hami, settings_in, page);
    tasks.spawn(until(cancel, following));

    let samples = Arc::new(SampleQueue::default());
    let sampler = Sampler::new(probe, clock.clone(), targets_in, docker_root_in);
    tasks.spawn(sampler.run(INTERVAL, samples.clone(), cancel.clone()));
    let cancelled = cancel.clone();
    tasks.spawn(async move { samples.forward(batches, cancelled).await });

    let guests = Guests::new(guest_folders(&config)?, docker.clone(), clock.clone());
    tasks.spawn(until(cancel, guests.clone().follow(seen_in)));
    let check = Arc::new(engine::Trial { config });
    let streams = Streams::new(docker, guests, pulled, check, clock.clone());
    let parts = LinkParts {
        identity,
        clock,
        desired,
        settings,
        observed: observed_in,
        inventory: machine_facts_in,
        samples: batches_in,
        streams,
        version: VERSION,
    };
    tasks.spawn(link::run(parts, cancel.clone()));
    tracing::info!(node.id = %node, "the agent of node {node} runs");
    Ok(())
}

/// Runs `future` until `cancel`.
fn until(
    cancel: &CancellationToken,
    future: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let cancelled = cancel.clone();
    async move {
        let _ = cancelled.run_until_cancelled(future).await;
    }
}

fn open(
    config: &Config,
    page: &tianqi_common::wire::desired::NodeSettings,
    seed: &str,
    clock: SharedClock,
) -> Result<Machine> {
    let engine = engine::engine(config, page).context("docker.endpoint")?;
    let docker = DockerHandle::new(Arc::new(engine));
    let simulation = simulation(config)?;
    let nvml = NvmlConfig { library: config.gpu.nvml_library.clone(), ..NvmlConfig::default() };
    let probe = start_probe(simulation.as_ref(), seed, nvml, clock);
    let hami = HamiInjector::new(config.data_dir.clone(), engine::hami_dir(config, page));
    Ok(Machine { docker, probe, hami: Arc::new(hami) })
}

fn simulation(config: &Config) -> Result<Option<Simulation>> {
    if config.gpu.simulate.is_empty() {
        return Ok(None);
    }
    config.gpu.simulate.parse().map(Some).context("gpu.simulate")
}

fn loop_settings(config: &Config) -> Result<reconcile::Settings> {
    let network = NetworkSpec {
        name: config.network.name.clone(),
        bridge: config.network.bridge.clone(),
        subnet: config.network.subnet.clone(),
    };
    // The guest is installed beside the agent.
    let guest = std::env::current_exe().ok().map(|agent| agent.with_file_name("tianqi-guest"));
    let guest_folders = guest_folders(config)?;
    Ok(reconcile::Settings { network, guest, guest_folders, ..reconcile::Settings::default() })
}

/// Returns where the guests' sockets are, as an engine wants it told.
fn guest_folders(config: &Config) -> Result<PathBuf> {
    Ok(std::path::absolute(&config.data_dir).context("data_dir")?.join(guest::FOLDER))
}

/// Looks at everything a node needs and returns one line for each, and whether nothing is missing.
///
/// # Errors
///
/// When a key of the configuration cannot be used.
pub async fn examine(config: &Config, clock: SharedClock) -> Result<Vec<doctor::Line>> {
    let page = engine::kept(&config.data_dir);
    let Machine { docker, probe, hami } = open(config, &page, "doctor", clock)?;
    Ok(doctor::run(&*docker.current(), &*probe, &hami, &config.data_dir).await)
}

/// Checks what the configuration's types alone cannot.
///
/// # Errors
///
/// When a key cannot work; the message names it.
pub fn check(config: &Config) -> Result<()> {
    simulation(config)?;
    engine::engine(config, &Default::default()).context("docker.endpoint")?;
    Ok(())
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

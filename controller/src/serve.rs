//! Running the controller as a process: log, signals, readiness, restart after a restore.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tianqi_common::clock::SystemClock;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::app;
use crate::config::{Config, LogFormat};

/// Serves until the process is told to stop (SIGTERM, SIGINT).
///
/// # Errors
///
/// When something cannot be opened; the message says which key of the configuration.
pub fn run(config: &Config) -> Result<()> {
    start_log(config)?;
    // An error means that a provider is installed already, which is the same one: there is only one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let clock = SystemClock::shared();
    runtime.block_on(async {
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        loop {
            crate::admin::backup::finish_restore(config, clock.now()).await?;
            let running = app::start(config.clone(), clock.clone()).await?;
            notify(&[NotifyState::Ready]);
            let is_asked_to_end = tokio::select! {
                _ = term.recv() => true,
                _ = int.recv() => true,
                () = running.stopping() => false,
            };
            notify(&[NotifyState::Stopping]);
            running.stop().await;
            if is_asked_to_end {
                return Ok(());
            }
            tracing::info!("starting again");
        }
    })
}

/// Prints one text to standard output.
pub fn say(text: &str) {
    // Nobody is left to tell when standard output is gone.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

fn start_log(config: &Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log.level)
        .with_context(|| format!("log.level: {:?} is not a filter", config.log.level))?;
    let is_terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal);
    match config.log.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

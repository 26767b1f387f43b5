//! `tianqi-agent`: arguments, configuration, run, exit code.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tianqi_agent::config::{Config, LogFormat};
use tianqi_agent::doctor::Verdict;
use tianqi_agent::enroll::{self, Join};
use tianqi_agent::{app, inventory};
use tianqi_common::clock::SystemClock;
use tianqi_common::wire::VERSION;
use tianqi_common::wire::join::JoinToken;
use tracing_subscriber::EnvFilter;

/// One per GPU node: Docker, cards, slices and the streams of a controller.
#[derive(Parser)]
#[command(name = "tianqi-agent", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, global = true, env = "TIANQI_CONFIG")]
    config: Option<PathBuf>,
    /// Where identity, ledger and regions are; goes before the configuration.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make this machine a node of a controller.
    Join {
        /// HOST:PORT of the controller (UDP, usually port 8891).
        #[arg(long)]
        controller: String,
        /// The join token that an admin made.
        #[arg(long, env = "TIANQI_JOIN_TOKEN", hide_env_values = true)]
        token: JoinToken,
        /// Take the place of the identity that this machine has.
        #[arg(long)]
        force: bool,
    },
    /// Run the agent.
    Run {
        /// Imaginary cards instead of real ones, such as 2xNVIDIA-L40:46068.
        #[arg(long)]
        simulate_gpus: Option<String>,
    },
    /// Look at everything a node needs and print one line for each.
    Doctor,
    /// Check the configuration and say what is wrong with it.
    CheckConfig,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line, with the causes that are not said already.
            eprintln!("tianqi-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let file = arguments.config.clone().unwrap_or_else(|| PathBuf::from("/etc/tianqi/agent.toml"));
    let mut config = Config::load(&file, arguments.config.is_some())?;
    if let Some(data_dir) = arguments.data_dir {
        config.data_dir = std::path::absolute(data_dir).context("--data-dir")?;
    }
    if let Command::Run { simulate_gpus: Some(cards) } = &arguments.command {
        config.gpu.simulate.clone_from(cards);
    }
    app::check(&config)?;
    start_log(&config)?;
    // An error means that a provider is installed already, which is the same one: there is only one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let clock = SystemClock::shared();
    match arguments.command {
        Command::Join { controller, token, force } => {
            let hostname = inventory::hostname();
            let data_dir = config.data_dir;
            let wanted = Join { controller, token, data_dir, force, hostname, version: VERSION };
            let identity = runtime.block_on(enroll::join(&wanted, clock))?;
            say(&format!("this machine is node {} of {}", identity.node, identity.controller));
        }
        Command::Run { .. } => runtime.block_on(app::run(config, clock))?,
        Command::Doctor => {
            let lines = runtime.block_on(app::examine(&config, clock))?;
            lines.iter().for_each(|line| say(&line.to_string()));
            if lines.iter().any(|line| line.verdict == Verdict::Fail) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::CheckConfig => say(&format!("{} is fine", file.display())),
    }
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) {
    // Nobody is left to tell when standard output is gone.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn start_log(config: &Config) -> Result<()> {
    let filter = EnvFilter::try_new(&config.log.level)
        .with_context(|| format!("log.level: {:?} is not a filter", config.log.level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

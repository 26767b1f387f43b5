//! `tianqi-controller`: arguments, configuration, run, exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tianqi_controller::config::Config;
use tianqi_controller::{admin, app, serve};

/// The centre of Tianqi.
#[derive(Parser)]
#[command(name = "tianqi-controller", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, global = true, env = "TIANQI_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller.
    Serve,
    /// Check the configuration and say what is wrong with it.
    CheckConfig,
    /// Print the API's description (OpenAPI 3.1).
    Openapi,
    #[command(flatten)]
    Admin(admin::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tianqi-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let file =
        arguments.config.clone().unwrap_or_else(|| PathBuf::from("/etc/tianqi/controller.toml"));
    let config = Config::load(&file, arguments.config.is_some())?;
    match arguments.command {
        Command::Serve => serve::run(&config).map(|()| ExitCode::SUCCESS),
        Command::CheckConfig => {
            serve::say(&format!("{} is fine", file.display()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Openapi => {
            serve::say(&app::openapi()?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Admin(command) => admin::client::run(&config, command),
    }
}

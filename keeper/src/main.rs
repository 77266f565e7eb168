//! `tamdao-keeper`: reads the command line and the configuration, and hands over to the library.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tamdao_keeper::config::{Config, DEFAULT_PATH};
use tamdao_keeper::daemon;

/// `EX_CONFIG` of sysexits, as the agent has it.
const EXIT_CONFIG: u8 = 78;

/// Guards this host's guests on shared pools: renews storage leases, feeds the watchdog.
#[derive(Parser)]
#[command(name = "tamdao-keeper", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration, say what is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tamdao-keeper: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match daemon::run(&config) {
        Ok(never) => match never {},
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tamdao-keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

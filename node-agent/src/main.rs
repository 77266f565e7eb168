//! `tamdao-agent`: reads the command line and the configuration, and hands over to the library. Deliberately
//! absent: anything that could be tested without a process.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tamdao_node_agent::agent::{self, Outside};
use tamdao_node_agent::config::{Acceleration, Config, DEFAULT_PATH, EXIT_CONFIG, LogFormat};
use tamdao_node_agent::hypervisor::libvirt::{AccelerationChoice, Libvirt, LibvirtConfig};
use tamdao_node_agent::token::Token;
use tamdao_node_agent::{enroll, host, metrics};
use tokio_util::sync::CancellationToken;

/// Runs guests on this host as the cluster's leader wants them.
#[derive(Parser)]
#[command(name = "tamdao-agent", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration, say what is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent (the default).
    Run,
    /// Make this host a node of a cluster.
    Join {
        /// The token that `tamdao node join-token create` gave out.
        #[arg(long, env = "TAMDAO_JOIN_TOKEN", hide_env_values = true)]
        token: String,
        /// A controller, host:port; may be given more than once. Default: those of the configuration.
        #[arg(long)]
        controller: Vec<String>,
        /// The node's name, over that of the configuration.
        #[arg(long)]
        name: Option<String>,
    },
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Some(Command::Version)) {
        let _ = writeln!(std::io::stdout(), "tamdao-agent {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tamdao-agent: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    match start(config, arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tamdao-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config, command: Option<Command>) -> anyhow::Result<()> {
    log(config.log_format);
    // Two crates could bring two providers; the process has one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Some(Command::Join { token, controller, name }) => {
            runtime.block_on(join(config, &token, controller, name))
        }
        _ => runtime.block_on(run(config)),
    }
}

fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
}

async fn join(
    mut config: Config,
    token: &str,
    controllers: Vec<String>,
    name: Option<String>,
) -> anyhow::Result<()> {
    let token = Token::parse(token)?;
    if let Some(name) = name {
        config.rename(name).map_err(|message| anyhow::anyhow!("--name: {message}"))?;
    }
    let controllers = if controllers.is_empty() { config.controllers.clone() } else { controllers };
    anyhow::ensure!(!controllers.is_empty(), "name a controller by --controller or in the configuration");
    let host_uuid = host::uuid(&config.libvirt_uri).await?;
    let member = enroll::join(&config, &token, &controllers, &host_uuid).await?;
    let _ = writeln!(std::io::stdout(), "joined cluster {} as node {}", member.cluster_id, member.name);
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let acceleration = match config.acceleration {
        Acceleration::Auto => AccelerationChoice::Auto,
        Acceleration::Kvm => AccelerationChoice::Kvm,
        Acceleration::Qemu => AccelerationChoice::Emulation,
    };
    let libvirt = LibvirtConfig { uri: config.libvirt_uri.clone(), acceleration, ..LibvirtConfig::default() };
    let hypervisor = Arc::new(Libvirt::open(libvirt).await.context("libvirt")?);
    let stop = CancellationToken::new();
    tokio::spawn(on_signal(stop.clone()));
    // The host's id does not change; without libvirt it is asked for until libvirt is there.
    let host_uuid = loop {
        match host::uuid(&config.libvirt_uri).await {
            Ok(uuid) => break uuid,
            Err(error) => tracing::warn!(error = %error, "waiting for libvirt"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(std::time::Duration::from_secs(2)) => {}
        }
    };
    let recorder = Some(metrics::recorder()?);
    Ok(agent::run(&config, Outside { hypervisor, host_uuid, recorder }, stop).await?)
}

async fn on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    stop.cancel();
}

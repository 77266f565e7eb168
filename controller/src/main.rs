//! The program `tamdao-controller`: found a cluster, join one, run.
//!
//! Its invariant: nothing is opened or bound before the configuration is known to be good. It writes to the terminal
//! only what the operator asked for; everything else is a log line. Deliberately absent: everything that the library
//! can do.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tamdao_backup::Identities;
use tamdao_controller::assembly::Controller;
use tamdao_controller::clock::{Clock, SystemClock};
use tamdao_controller::config::{Config, LogFormat};
use tamdao_controller::identity::{self, Identity};
use tamdao_controller::recover::{self, Found};
use tamdao_controller::{drill, join, restore};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// glibc's allocator keeps for itself what many threads have freed in turns, and is slower at it (decision 0062).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A bad configuration, so that a service manager does not try again (sysexits' EX_USAGE).
const BAD_CONFIG: u8 = 64;

/// A controller of a Tam Đảo cloud.
#[derive(Parser)]
#[command(
    name = "tamdao-controller",
    version,
    about,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Found a new cluster with this controller as its first.
    Init {
        #[command(flatten)]
        file: ConfigFile,
        /// What people call the cluster.
        #[arg(long, value_name = "NAME", default_value = "tamdao")]
        cluster_name: String,
    },
    /// Make a cluster's first controller from a backup. It recovers: it does nothing to any VM before every node has
    /// been heard and `tamdao recovery end` was run.
    Restore {
        #[command(flatten)]
        file: ConfigFile,
        /// The backup.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The secret key that it was encrypted to, as age-keygen writes it.
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
    },
    /// Restore a backup into a scratch directory, look at what comes of it, remove it, and say in JSON what was found:
    /// what `tamdao backup drill` asks for. It needs neither a configuration nor a controller that runs.
    Drill {
        /// The backup, if it does not come on standard input.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// The secret key that it was encrypted to, as age-keygen writes it.
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
        /// The directory below which it works.
        #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
        scratch: PathBuf,
    },
    /// Make the first controller of a new group out of the last survivor of one that lost its majority for good. Without
    /// the word that the others are lost it only shows what there is. The new group recovers: it does nothing to any VM
    /// before every node has been heard and `tamdao recovery end` was run.
    Recover {
        #[command(flatten)]
        file: ConfigFile,
        /// All other controllers are lost for good, and none of them will ever be started again. What they have and this
        /// one has not is lost.
        #[arg(long)]
        i_have_lost_all_other_controllers: bool,
    },
    /// Join a cluster that there is.
    Join {
        #[command(flatten)]
        file: ConfigFile,
        /// What `tamdao controller add` showed; by the environment it stays out of the process list.
        #[arg(long, value_name = "TOKEN", env = "TAMDAO_JOIN_TOKEN", hide_env_values = true)]
        token: String,
        /// Any controller of the cluster.
        #[arg(long, value_name = "HOST:PORT")]
        controller: String,
    },
    /// Run the controller; also what happens without a command.
    Run(Run),
    /// Show the version.
    Version,
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/tamdao/controller.toml")]
    config: PathBuf,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    file: ConfigFile,
    /// Only check the configuration.
    #[arg(long)]
    check_config: bool,
    /// Log as JSON, whatever the configuration says.
    #[arg(long)]
    json_logs: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments.command.unwrap_or(Command::Run(arguments.run))) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Version => say(concat!("tamdao-controller ", env!("CARGO_PKG_VERSION"))),
        Command::Init { file, cluster_name } => {
            let Some(config) = load(&file.config) else { return Ok(ExitCode::from(BAD_CONFIG)) };
            init(&config, &file.config, &cluster_name)?;
        }
        Command::Restore { file, from, identity } => {
            let Some(config) = load(&file.config) else { return Ok(ExitCode::from(BAD_CONFIG)) };
            restore(&config, &file.config, &from, &identity)?;
        }
        Command::Drill { from, identity, scratch } => {
            if !drill(from.as_deref(), &identity, &scratch)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Recover { file, i_have_lost_all_other_controllers } => {
            let Some(config) = load(&file.config) else { return Ok(ExitCode::from(BAD_CONFIG)) };
            recover(&config, &file.config, i_have_lost_all_other_controllers)?;
        }
        Command::Join { file, token, controller } => {
            let Some(config) = load(&file.config) else { return Ok(ExitCode::from(BAD_CONFIG)) };
            let joined = runtime()?.block_on(join::join(&config, &token, &controller))?;
            say(&format!("joined cluster {} as {} ({})", joined.cluster, config.name, joined.id));
            say(&format!("next: tamdao-controller run --config {}", file.config.display()));
        }
        Command::Run(run) => {
            let Some(config) = load(&run.file.config) else { return Ok(ExitCode::from(BAD_CONFIG)) };
            if run.check_config {
                say(&format!("{} is good", run.file.config.display()));
            } else {
                start_log(&config, run.json_logs)?;
                runtime()?.block_on(serve(&config))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration, or None after its faults were told.
fn load(path: &std::path::Path) -> Option<Config> {
    Config::load(path).inspect_err(|error| complain(&format!("error: {error}"))).ok()
}

fn init(config: &Config, path: &std::path::Path, cluster_name: &str) -> anyhow::Result<()> {
    let (identity, token) = identity::found(config, cluster_name, SystemClock.now())?;
    let directory = config.data_dir.display();
    say(&format!("cluster {cluster_name} ({}) is founded", identity.cluster));
    say(&format!("CA:          {directory}/ca.pem"));
    say(&format!("admin token: {}", token.expose()));
    say(&format!("             it is also in {directory}/admin-token and nowhere else; keep it safe"));
    say(&format!("next: tamdao-controller run --config {}", path.display()));
    Ok(())
}

fn restore(
    config: &Config,
    path: &std::path::Path,
    from: &std::path::Path,
    identity: &std::path::Path,
) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(identity).with_context(|| identity.display().to_string())?;
    let identities = Identities::parse(&text).with_context(|| identity.display().to_string())?;
    let file = std::fs::read(from).with_context(|| from.display().to_string())?;
    let restored = restore::restore(config, &file, &identities, SystemClock.now())
        .with_context(|| from.display().to_string())?;
    let (about, directory) = (&restored.head.about, config.data_dir.display());
    let (name, cluster) = (&about.cluster_name, restored.identity.cluster);
    say(&format!("cluster {name} is restored as {cluster}, with {} records", restored.head.records));
    say(&format!(
        "it was {} at revision {}; revisions count from {} on",
        about.cluster, about.revision, restored.base
    ));
    say(&format!("admin token: {}", restored.token.expose()));
    say(&format!(
        "             it is also in {directory}/admin-token; tokens of the backup work too, also those revoked since"
    ));
    say("the cloud recovers: no VM is started, moved or deleted before `tamdao recovery end`");
    say("never start a controller of the lost cluster again");
    say(&format!("next: tamdao-controller run --config {}", path.display()));
    Ok(())
}

/// A signal is heeded only when nothing is left: the scratch directory holds the cluster key.
fn drill(
    from: Option<&std::path::Path>,
    identity: &std::path::Path,
    base: &std::path::Path,
) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(identity).with_context(|| identity.display().to_string())?;
    let identities = Identities::parse(&text).with_context(|| identity.display().to_string())?;
    let file = match from {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
        None => {
            let mut file = Vec::new();
            std::io::stdin().read_to_end(&mut file).context("the backup on standard input")?;
            file
        }
    };
    let base = base.to_owned();
    let drilled = runtime()?.block_on(async move {
        let _terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
        let _interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be heard")?;
        let work = move || drill::drill(&file, &identities, &base, SystemClock.now());
        Ok::<_, anyhow::Error>(tokio::task::spawn_blocking(work).await.context("the drill ended early")??)
    })?;
    say(&serde_json::to_string(&drilled).context("what came of it")?);
    Ok(drilled.faults.is_empty())
}

fn recover(config: &Config, path: &std::path::Path, lost: bool) -> anyhow::Result<()> {
    let directory = config.data_dir.display();
    let next = format!("next: tamdao-controller run --config {}", path.display());
    let survivor = match recover::look(config).with_context(|| directory.to_string())? {
        Found::Survivor(survivor) => survivor,
        Found::Completed(cluster) => {
            say(&format!("a recovery had broken off and is completed: the cluster is {cluster} now"));
            say(&next);
            return Ok(());
        }
    };
    survivor.describe().iter().for_each(|line| say(line));
    if !lost {
        say(
            "nothing was changed. Compare with every other controller whose data directory can be read, and recover the",
        );
        say(
            "one with the highest term, of those the one with the highest entry. Only if the majority is lost for good:",
        );
        say("  tamdao-controller recover --config FILE --i-have-lost-all-other-controllers");
        return Ok(());
    }
    let recovered = survivor.recover(SystemClock.now()).with_context(|| directory.to_string())?;
    say(&format!("the cluster is {} now, with this controller as its only one", recovered.identity.cluster));
    say(&format!(
        "revisions count from {} on; the old group's data are in {}",
        recovered.base,
        recovered.old.display()
    ));
    say("the cloud recovers: no VM is started, moved or deleted before `tamdao recovery end`");
    say("never start another controller of the old group again; empty its data directory and add it anew");
    say(&next);
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // The libraries that ask for the process's provider find the one that everything else uses.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")
}

fn start_log(config: &Config, json: bool) -> anyhow::Result<()> {
    let filter: EnvFilter = config.log.level.parse().context("log.level")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match json || config.log.format == LogFormat::Json {
        true => log.json().flatten_event(true).try_init(),
        false => log.with_ansi(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    // Taken first, so that a signal during a long start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be heard")?;
    let identity = Identity::of(config)?;
    let controller = Controller::start(config, identity).await?;
    tracing::info!(controller = %config.name, address = %controller.address, version = env!("CARGO_PKG_VERSION"), "serving");
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = controller.ended() => Some(reason),
    };
    tracing::info!("stopping");
    controller.stop().await;
    tracing::info!("stopped");
    match ended {
        // With an error, so that whoever started it starts it again.
        Some(reason) => anyhow::bail!("the store had stopped and can be opened again: {reason}"),
        None => Ok(()),
    }
}

/// Writes for the operator. Nobody is left to complain to when the terminal is gone.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

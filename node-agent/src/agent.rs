//! The agent put together: ledger, cache, loop, session, renewal and monitoring, and their end.
//!
//! Invariant: ending the agent ends no guest; a goodbye that nothing runs is said only when the last step has
//! ended, the hypervisor shows no guest of ours and the storage leases are given back. Deliberately absent: which hypervisor, which is the caller's.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Config, Spoofing};
use crate::dial::Dial;
use crate::enroll::{self, Membership};
use crate::guard::Guard;
use crate::hypervisor::Hypervisor;
use crate::image::{ImageCache, ImageError};
use crate::keeper::Keeper;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::{self, MetricsError};
use crate::moves::{self, Moves};
use crate::node::Node;
use crate::operate::Operator;
use crate::pki::{Files, PkiError};
use crate::session::Session;

/// How often the inventory is taken.
const INVENTORY_PERIOD: Duration = Duration::from_secs(60);
/// How often it is tried while the hypervisor does not answer.
const INVENTORY_RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("{}: {source}", path.display())]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("{address}, for moves: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("no controller is known: name one in `controllers`, or join")]
    NoController,
}

/// What the agent is given from outside.
pub struct Outside {
    pub hypervisor: Arc<dyn Hypervisor>,
    /// libvirt's host UUID.
    pub host_uuid: String,
    /// `None` serves no metrics.
    pub recorder: Option<PrometheusHandle>,
}

/// Runs the agent until `stop`.
///
/// # Errors
/// It has not joined, its files cannot be used, or the metrics' address cannot be bound.
pub async fn run(config: &Config, outside: Outside, stop: CancellationToken) -> Result<(), AgentError> {
    let io = |path: &std::path::Path| {
        let path = path.to_owned();
        move |source| AgentError::Io { path, source }
    };
    let dial = Dial::new(Files::from(config));
    dial.files().load()?;
    Operator::prepare(&config.data_dir).map_err(io(&config.data_dir))?;
    let ledger = Arc::new(Ledger::open(&config.data_dir)?);
    let images = Arc::new(ImageCache::open(&config.data_dir.join("images"), config.image_cache_mib)?);
    let boot_id = std::fs::read_to_string(&config.boot_id_file).map_err(io(&config.boot_id_file))?;
    let boot_id = boot_id.trim().to_owned();
    let member = Membership::load(config);
    let mut configured = config.controllers.clone();
    let told = member.iter().flat_map(|member| member.controllers.clone());
    configured.extend(told.filter(|one| !config.controllers.contains(one)));
    if configured.is_empty() && ledger.state().controllers.is_empty() {
        return Err(AgentError::NoController);
    }
    let keeper = Keeper {
        socket: config.keeper_socket.clone(),
        node: member.as_ref().and_then(|member| uuid::Uuid::try_parse(&member.node_id).ok()),
        lease_ms: config.storage_lease_ms,
    };
    let name = member.map_or_else(|| config.name.clone(), |member| member.name);
    tracing::info!(node = name, version = env!("CARGO_PKG_VERSION"), "agent begins");

    let (reports, reported) = watch::channel(None);
    let (up, is_up) = watch::channel(false);
    let (taken, inventory) = watch::channel(None);
    let (events, heard) = mpsc::channel(64);
    let (readings, read) = mpsc::channel(64);
    let (answered, answers) = watch::channel(None);
    let bandwidth = u64::from(config.moves_bandwidth_mib) << 20;
    let carried = Arc::new(Moves::new(Files::from(config), &config.libvirt_uri, bandwidth));
    let listener = match config.moves_listen {
        Some(address) => {
            let listening = |source| AgentError::Listen { address, source };
            Some(tokio::net::TcpListener::bind(address).await.map_err(listening)?)
        }
        None => None,
    };
    let operator = Arc::new(Operator {
        data_dir: config.data_dir.clone(),
        boot_id: boot_id.clone(),
        hypervisor: outside.hypervisor.clone(),
        ledger: ledger.clone(),
        images: images.clone(),
        keeper,
        guard: Guard::new(config.spoofing == Spoofing::Block),
        dial: dial.clone(),
        moves: carried.clone(),
        filtering: tokio::sync::Mutex::new(()),
        sources: std::sync::Mutex::default(),
    });
    let moves_port =
        listener.as_ref().and_then(|listener| listener.local_addr().ok()).map_or(0, |at| at.port());
    let session = Session {
        dial: dial.clone(),
        ledger: ledger.clone(),
        hypervisor: outside.hypervisor.clone(),
        data_dir: config.data_dir.clone(),
        boot_id,
        host_uuid: outside.host_uuid,
        address: config.address.clone(),
        moves_port,
        progress: carried.progress(),
        moves: carried,
        configured: configured.clone(),
        reports: reported.clone(),
        inventory,
        readings: read,
        answered,
        number: 0,
        events,
        up,
    };
    let _inventory = AbortOnDropHandle::new(tokio::spawn(take_inventory(outside.hypervisor.clone(), taken)));
    let fresh = enroll::keep_fresh(dial, ledger, configured.clone(), name);
    let _fresh = AbortOnDropHandle::new(tokio::spawn(fresh));
    let (goodbye, said) = oneshot::channel();
    let session = AbortOnDropHandle::new(tokio::spawn(session.run(said)));
    let serving = async {
        match (config.metrics_listen, outside.recorder) {
            (Some(address), Some(recorder)) => {
                let hypervisor = outside.hypervisor.clone();
                let sources = metrics::Sources { hypervisor, images, reports: reported, up: is_up, recorder };
                metrics::serve(address, sources).await
            }
            _ => std::future::pending().await,
        }
    };
    let serving_moves = listener.map(|listener| moves::serve(operator.clone(), listener));
    let _moves = serving_moves.map(|serving| AbortOnDropHandle::new(tokio::spawn(serving)));
    let node = Node::new(operator, configured, config.boots_at_once, reports, readings, answers);
    let nothing_runs = tokio::select! {
        nothing_runs = node.run(heard, stop) => nothing_runs,
        failed = serving => return Ok(failed?),
    };
    tracing::info!(nothing_runs, "agent ends, guests run on");
    let _ = goodbye.send(nothing_runs);
    let _ = tokio::time::timeout(Duration::from_secs(3), session).await;
    Ok(())
}

async fn take_inventory(
    hypervisor: Arc<dyn Hypervisor>,
    taken: watch::Sender<Option<tamdao_proto::v1::Inventory>>,
) {
    loop {
        let pause = match hypervisor.inventory().await {
            Ok(new) => {
                taken.send_if_modified(|old| {
                    let news = old.as_ref() != Some(&new);
                    *old = Some(new);
                    news
                });
                INVENTORY_PERIOD
            }
            Err(error) => {
                tracing::debug!(error = %error, "inventory not taken");
                INVENTORY_RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

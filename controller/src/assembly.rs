//! A controller, put together: what is opened in which order, and what ends with it.
//!
//! The order: the port is bound first, since a taken port is the commonest mistake; then the store, the cache that
//! follows it, the writer, the faces, and at last the candidate for office. The end goes the other way round.

use std::sync::Arc;

use tamdao_model::Meta;
use tamdao_model::cluster::{Cluster, Controller as Record};
use tamdao_model::event::Severity;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_store::backend::etcd::{self, EtcdConfig, EtcdStore};
use tamdao_store::backend::memory::MemoryStore;
use tamdao_store::backend::raft::{OpenError, RaftConfig, RaftStore};
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Election, Kv, Membership, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::admission::Writer;
use crate::api::Api;
use crate::auth::{Gate, Strangers};
use crate::backups::Backups;
use crate::bmc::Redfish;
use crate::clock::{Clock, SystemClock};
use crate::config::{Backend, Config};
use crate::engine::Follower;
use crate::enroll::Enroll;
use crate::forward::{Forward, Leader};
use crate::identity::{self, Identity, IdentityError, Renewer};
use crate::images::{self, ImageError, Images};
use crate::journals::Journals;
use crate::metrics::{self, Readiness};
use crate::office;
use crate::oidc::Issuer;
use crate::peers::Peers;
use crate::pki::PkiError;
use crate::reconcile::courier::Courier;
use crate::reconcile::journalist::Journalist;
use crate::reconcile::{Board, drive};
use crate::refusal::Refusal;
use crate::serve::{self, Faces, Listener, Local, ServeError};
use crate::sessions::{AgentApi, Sessions};
use crate::shared::{Me, Shared};
use crate::trail::Trail;

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the store cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error("the images cannot be opened: {0}")]
    Images(#[from] ImageError),
    #[error("the identity provider cannot be asked: {0}")]
    Issuer(#[from] reqwest::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// A running controller.
pub struct Controller {
    pub shared: Arc<Shared>,
    /// The public port as bound.
    pub address: std::net::SocketAddr,
    raft: Option<RaftStore>,
    etcd: Option<EtcdStore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The store in its three parts.
struct Store {
    kv: Arc<dyn Kv>,
    election: Arc<dyn Election>,
    membership: Option<Arc<dyn Membership>>,
    raft: Option<RaftStore>,
    etcd: Option<EtcdStore>,
    member: u64,
}

impl Controller {
    /// Starts everything and returns when the port is served.
    ///
    /// # Errors
    /// What cannot be opened, bound or read; nothing is left running then.
    pub async fn start(config: &Config, identity: Identity) -> Result<Self, StartError> {
        let credentials = identity.credentials()?;
        let listener = Listener::bind(config.listen, &credentials).await?;
        let address = listener.address();
        let peers = Peers::new(&credentials)?;
        let store = open_store(config, &identity, &peers).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (cache, feed) = Cache::new(store.kv.clone());
        let (office_sender, office) = watch::channel(None);
        let (writer, desk) = Writer::new(store.kv.clone(), cache.clone(), clock.clone(), office.clone());
        let me = Me {
            id: identity.id,
            name: identity.name.clone(),
            address: config.address.clone(),
            member: store.member,
        };
        let leader = {
            let (kv, office, address) = (store.kv.clone(), office.clone(), me.address.clone());
            move || Leader::known(&*kv, &office, &address)
        };
        let forward = Forward::new(leader.clone(), peers.clone());
        let journals = Arc::new(Journals::default());
        let trail = Arc::new(Trail::new(me.id, config.data_dir.join("journal")));
        let images = Arc::new(Images::open(images::Setup {
            directory: config.data_dir.join("images"),
            me: me.id,
            limits: config.images.clone(),
            cache: cache.clone(),
            writer: writer.clone(),
            peers: peers.clone(),
            forward: forward.clone(),
        })?);
        let shared = Arc::new(Shared {
            me,
            kv: store.kv,
            membership: store.membership,
            cache: cache.clone(),
            writer,
            clock: clock.clone(),
            office,
            key: identity.key.clone(),
            sessions: Arc::new(Sessions::new(config.session_timeout, config.steady)),
            journals: journals.clone(),
            trail: trail.clone(),
            backups: Backups::new(config.backup.clone()),
            bmc: Arc::new(Redfish::default()),
            images: images.clone(),
            engine: Follower::default(),
            strangers: Strangers::default(),
            board: Board::default(),
        });
        let issuer = config.oidc.clone().map(Issuer::new).transpose()?.map(Arc::new);
        let readiness = Readiness::new(cache.clone(), shared.kv.clone(), shared.writer.clone(), leader);
        let router = serve::router(
            Faces {
                api: Api::new(shared.clone()),
                agents: AgentApi::new(shared.clone()),
                enroll: Enroll::new(
                    cache.clone(),
                    shared.writer.clone(),
                    clock.clone(),
                    identity.key.clone(),
                ),
                store: store.raft.as_ref().map(|raft| Routes::new(raft.service())).unwrap_or_default(),
                images: images.clone(),
                journals,
                writer: shared.writer.clone(),
                gate: Gate::new(
                    cache.clone(),
                    clock.clone(),
                    trail,
                    shared.strangers.clone(),
                    config.allowances,
                )
                .with_people_of(issuer.clone()),
                forward: forward.clone(),
                readiness: readiness.clone(),
            },
            &stop,
        )?;
        metrics::describe();
        // Whoever wants in by this is in need already: a cloud without it runs on, and says so.
        match Local::bind(&config.data_dir) {
            Ok(local) => drop(tasks.spawn(local.run(router.clone(), stop.clone()))),
            Err(error) => tracing::error!(%error, "there is no socket for a local admin"),
        }
        tasks.spawn(listener.run(router, stop.clone()));
        serve::plain(config.metrics.listen, metrics::routes(readiness), stop.clone()).await?;
        tasks.spawn({
            let stop = stop.clone();
            async move {
                tokio::select! {
                    error = feed.run() => tracing::error!(%error, "the cache has stopped: restart after the cause is gone"),
                    () = stop.cancelled() => {}
                }
            }
        });
        tasks.spawn({
            let stop = stop.clone();
            async move {
                tokio::select! {
                    () = desk.run() => {}
                    () = stop.cancelled() => {}
                }
            }
        });
        tasks.spawn(images::replicate(images.clone(), stop.clone()));
        tasks.spawn(images::fetch(images, stop.clone()));
        tasks.spawn(office::run(shared.clone(), store.election, office_sender, stop.clone()));
        // Before the journalist, who may let old entries go.
        if let Some(settings) = config.syslog.clone() {
            let courier = Courier::new(settings, forward.clone(), &shared.trail);
            let (shared, stop) = (shared.clone(), stop.clone());
            tasks.spawn(async move {
                stop.run_until_cancelled(drive(courier, shared, None)).await;
            });
        }
        tasks.spawn({
            let journalist = Journalist::new(config.journal, forward.clone());
            let (shared, stop) = (shared.clone(), stop.clone());
            async move {
                stop.run_until_cancelled(drive(journalist, shared, None)).await;
            }
        });
        if let Some(issuer) = issuer {
            tasks.spawn(issuer.run(stop.clone()));
        }
        tasks.spawn(introduce(shared.clone(), identity.clone(), stop.clone()));
        let hosts = identity::hosts(config);
        let renewer = Renewer { identity, hosts, credentials, cache, clock };
        tasks.spawn(renewer.run(stop.clone()));
        tasks.close();
        Ok(Self { shared, address, raft: store.raft, etcd: store.etcd, tasks, stop })
    }

    /// Waits until the store has stopped by itself and a new start may help; returns why it stopped.
    pub async fn ended(&self) -> String {
        match &self.raft {
            Some(raft) => raft.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Stops: a leader hands over first, then running requests get a grace period, then the files are closed.
    pub async fn stop(self) {
        if self.shared.leads() {
            self.hand_over().await;
        }
        self.stop.cancel();
        self.tasks.wait().await;
        if let Some(raft) = self.raft {
            raft.shutdown().await;
        }
        if let Some(etcd) = self.etcd {
            etcd.shutdown().await;
        }
    }

    /// Makes another controller the leader, so that writes are not blocked for an election's time.
    async fn hand_over(&self) {
        let Some(membership) = &self.shared.membership else { return };
        let others = self.shared.kv.status().members.into_iter().filter(|member| member.voter);
        for other in others.filter(|member| member.id != self.shared.me.member) {
            match membership.transfer_leadership(other.id).await {
                Ok(()) => return,
                Err(error) => tracing::info!(%error, member = other.id, "leadership not handed over"),
            }
        }
    }
}

async fn open_store(config: &Config, identity: &Identity, peers: &Peers) -> Result<Store, StartError> {
    match &config.store.backend {
        Backend::Memory => {
            let store = Arc::new(MemoryStore::new(identity.name.as_str()));
            Ok(Store {
                kv: store.clone(),
                election: store,
                membership: None,
                raft: None,
                etcd: None,
                member: 0,
            })
        }
        Backend::Etcd(settings) => open_etcd(settings, config, identity),
        Backend::Raft => {
            let settings = RaftConfig {
                heartbeat: config.store.heartbeat,
                election_min: config.store.election_min,
                election_max: config.store.election_max,
                ..RaftConfig::new(
                    config.data_dir.join(identity::RAFT),
                    identity.name.as_str(),
                    &config.address,
                )
            };
            let raft = RaftStore::open(settings, Arc::new(peers.clone())).await?;
            match identity.seed {
                Some(_) => raft.init(identity.cluster.0).await?,
                None => raft.join(identity.cluster.0).await?,
            }
            let member = raft.id();
            let handle = Arc::new(raft.clone());
            Ok(Store {
                kv: handle.clone(),
                election: handle.clone(),
                membership: Some(handle),
                raft: Some(raft),
                etcd: None,
                member,
            })
        }
    }
}

fn open_etcd(settings: &EtcdConfig, config: &Config, identity: &Identity) -> Result<Store, StartError> {
    let member = identity::member(config)?;
    let me = etcd::Me {
        cloud: identity.cluster.0,
        found: identity.seed.is_some(),
        id: member,
        name: identity.name.to_string(),
        address: config.address.clone(),
    };
    let etcd = EtcdStore::open(settings.clone(), me)?;
    let handle = Arc::new(etcd.clone());
    Ok(Store {
        kv: handle.clone(),
        election: handle.clone(),
        membership: Some(handle),
        raft: None,
        etcd: Some(etcd),
        member,
    })
}

/// Writes the cluster's first records, if this controller founded it, and keeps its own record true.
async fn introduce(shared: Arc<Shared>, mut identity: Identity, stop: CancellationToken) {
    let mut office = shared.office.clone();
    loop {
        let leads = tokio::select! {
            leads = office.wait_for(Option::is_some) => leads.is_ok(),
            () = stop.cancelled() => return,
        };
        if !leads {
            return;
        }
        match found(&shared, identity.seed.clone()).await {
            Ok(()) => match identity.founded() {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "the seed cannot be removed"),
            },
            Err(refusal) => tracing::warn!(error = %refusal, "the first records are not written yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.clock.sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
}

async fn found(shared: &Shared, seed: Option<Cluster>) -> Result<(), Refusal> {
    let me = shared.me.clone();
    let decided = shared.writer.submit(move |draft, moment| {
        if let Some(seed) = seed.clone().filter(|_| draft.view().cluster().is_none()) {
            draft.put(seed);
        }
        let cluster = draft.view().cluster().map(|cluster| cluster.id);
        if let Some(cluster) = cluster.filter(|_| draft.view().scheduling_policy().is_none()) {
            draft.create(SchedulingPolicy::of(cluster, moment.now));
        }
        let mut record = match draft.view().controllers.get(me.id) {
            Some(row) => (*row.value).clone(),
            None => {
                let meta = Meta::new(me.id, me.name.clone(), moment.now);
                let record = Record {
                    meta,
                    address: String::new(),
                    member: me.member,
                    version: String::new(),
                    level: 1,
                };
                crate::decide::event(
                    draft,
                    moment,
                    &record,
                    Severity::Info,
                    "Joined",
                    "leads its first store",
                    &me.name,
                );
                draft.create(record.clone());
                record
            }
        };
        let before = record.clone();
        record.address.clone_from(&me.address);
        record.version = env!("CARGO_PKG_VERSION").into();
        if record != before {
            draft.put(record);
        }
        Ok(())
    });
    decided.await.map(|_| ())
}

//! One simulated controller: the product's own desk, cache, sessions and loops over a store, a clock and streams that
//! the world moves. What is left out are its faces, images, journal and certificates.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use tamdao_controller::admission::Writer;
use tamdao_controller::clock::Clock;
use tamdao_controller::config::ImagesConfig;
use tamdao_controller::engine::Follower;
use tamdao_controller::forward::{Forward, Leader};
use tamdao_controller::images::{Images, Setup};
use tamdao_controller::journals::Journals;
use tamdao_controller::office;
use tamdao_controller::peers::Peers;
use tamdao_controller::pki::{self, Authority, ClusterKey, Credentials};
use tamdao_controller::reconcile::Board;
use tamdao_controller::sessions::{self, Sessions};
use tamdao_controller::shared::{Me, Shared};
use tamdao_controller::trail::Trail;
use tamdao_model::{ClusterId, ControllerId, Name, NodeId, TimeMs};
use tamdao_proto::agent::v1 as wire;
use tamdao_store::backend::memory::MemoryStore;
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Kv, Leadership, Revision};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use uuid::Uuid;

use crate::bmc::SimBmc;
use crate::store::{Outbox, SimKv};
use crate::tasks::{SimClock, Tasks};
use crate::{SESSION_TIMEOUT, STEADY};

/// The process of a controller. It dies as a whole.
pub struct Process {
    pub tasks: Tasks,
    pub shared: Arc<Shared>,
    pub local: MemoryStore,
    pub outbox: Outbox,
    pub bmc: SimBmc,
    office: Arc<watch::Sender<Option<Leadership>>>,
    /// Turns true when the office is lost; none while it has none.
    pub lost: Option<watch::Sender<bool>>,
    pub epoch: Option<Revision>,
}

/// Both ends of a session's stream, as the world holds them.
pub struct Stream {
    pub task: u64,
    pub to_controller: UnboundedSender<Result<wire::SessionRequest, Status>>,
    pub from_controller: mpsc::Receiver<Result<wire::SessionResponse, Status>>,
}

/// A controller as the machine that it runs on.
pub struct Controller {
    pub process: Option<Process>,
    pub clock: Arc<SimClock>,
    /// How fast its clock runs, parts per million of the true time.
    pub ppm: u64,
    /// Not run before this moment: it is stopped, or its machine is.
    pub paused_until: u64,
    /// Reaches the other controllers.
    pub connected: bool,
    /// A catch-up of what it has applied is under way.
    pub follows: bool,
}

impl Controller {
    pub fn new(ppm: u64, skew_ms: u64) -> Self {
        let clock = Arc::new(SimClock::new(skew_ms));
        Self { process: None, clock, ppm, paused_until: 0, connected: true, follows: false }
    }

    /// Its own time at a true moment.
    pub fn local_ms(&self, now_ms: u64) -> u64 {
        now_ms * self.ppm / 1_000_000
    }

    /// The true moment at which its clock has come so far.
    pub fn true_ms(&self, local_ms: u64) -> u64 {
        (local_ms * 1_000_000).div_ceil(self.ppm)
    }

    pub fn runs(&self, now_ms: u64) -> bool {
        self.process.is_some() && self.paused_until <= now_ms
    }

    pub fn leads(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.shared.leads())
    }

    /// When one of its timers is due, as a true moment.
    pub fn due(&self) -> Option<u64> {
        self.process.as_ref()?;
        Some(self.true_ms(self.clock.due()?).max(self.paused_until))
    }
}

impl Process {
    /// Starts a controller with what the store had at some moment.
    pub fn start(at: usize, truth: &MemoryStore, clock: Arc<SimClock>) -> Self {
        let name = format!("c{}", at + 1);
        let local = truth.follower(&name);
        let (outbox, bmc) = (Outbox::default(), SimBmc::default());
        let kv: Arc<dyn Kv> = Arc::new(SimKv { local: local.clone(), outbox: outbox.clone() });
        let clock: Arc<dyn Clock> = clock;
        let (cache, feed) = Cache::new(kv.clone());
        let (office, held) = watch::channel(None);
        let (writer, desk) = Writer::new(kv.clone(), cache.clone(), clock.clone(), held.clone());
        let me = Me {
            id: ControllerId(Uuid::from_u128(0x500 + at as u128)),
            name: Name::new(&name).expect("a letter and a number are a name"),
            address: format!("{name}:7001"),
            member: at as u64,
        };
        let (images, key) = idle();
        let shared = Arc::new(Shared {
            me,
            kv,
            membership: None,
            cache,
            writer,
            clock,
            office: held,
            key,
            sessions: Arc::new(Sessions::new(SESSION_TIMEOUT, STEADY)),
            journals: Arc::new(Journals::default()),
            // Nothing passes a gate here.
            trail: Arc::new(Trail::new(ControllerId(Uuid::from_u128(0x500 + at as u128)), PathBuf::new())),
            backups: Default::default(),
            bmc: Arc::new(bmc.clone()),
            images,
            engine: Follower::default(),
            strangers: Default::default(),
            board: Board::default(),
        });
        let mut tasks = Tasks::default();
        tasks.spawn(async move { drop(feed.run().await) });
        tasks.spawn(desk.run());
        Self { tasks, shared, local, outbox, bmc, office: Arc::new(office), lost: None, epoch: None }
    }

    /// Takes office, once it knows all that came before. What `office::run` does, on one task.
    pub fn take_office(&mut self, epoch: Revision) {
        let (lost, is_lost) = watch::channel(false);
        let leadership = Leadership::new(epoch, is_lost);
        (self.lost, self.epoch) = (Some(lost), Some(epoch));
        let (shared, office) = (self.shared.clone(), self.office.clone());
        self.tasks.spawn(async move {
            let known = tokio::select! {
                biased;
                known = shared.cache.at_least(epoch) => known.is_ok(),
                () = leadership.lost() => false,
            };
            if !known {
                return;
            }
            office.send_replace(Some(leadership.clone()));
            let mut duties = office::duties(&shared, &leadership);
            // Each time all of them are looked at, in one order: tokio's watch wakes its waiters in one that it draws.
            let ended = std::future::poll_fn(|context| {
                duties.retain_mut(|duty| duty.as_mut().poll(context).is_pending());
                if duties.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            });
            tokio::select! {
                biased;
                () = leadership.lost() => {}
                () = ended => {}
            }
            office.send_replace(None);
            shared.sessions.end_all();
        });
    }

    /// A stream from this node's agent has come.
    pub fn accept(&mut self, node: NodeId) -> Stream {
        let (to_controller, requests) = unbounded();
        let (to_agent, from_controller) = mpsc::channel(256);
        let task = self.tasks.spawn(sessions::hold(self.shared.clone(), node, requests, to_agent));
        Stream { task, to_controller, from_controller }
    }
}

/// What a controller is given and never asked for here; made once, since keys take their time.
fn idle() -> (Arc<Images>, ClusterKey) {
    static IDLE: OnceLock<(Arc<Images>, ClusterKey, tempfile::TempDir)> = OnceLock::new();
    let (images, key, _) = IDLE.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        make_idle().expect("keys and a directory for no images can be made")
    });
    (images.clone(), key.clone())
}

/// The key that seals every history's secrets.
pub fn key() -> ClusterKey {
    idle().1
}

fn make_idle() -> anyhow::Result<(Arc<Images>, ClusterKey, tempfile::TempDir)> {
    let directory = tempfile::tempdir()?;
    let (me, cluster, now) = (ControllerId(Uuid::nil()), ClusterId(Uuid::nil()), TimeMs(1_700_000_000_000));
    let authority = Authority::generate(cluster, now)?;
    let request = pki::request()?;
    let public_key = pki::public_key_of(&request.request)?;
    let certificate = authority.certify(&public_key, cluster, pki::Holder::Controller(me), &[], now)?;
    let peers = Peers::new(&Credentials::new(authority.pem(), &certificate, &request.key)?)?;
    let kv: Arc<dyn Kv> = Arc::new(MemoryStore::new("idle"));
    let (cache, _) = Cache::new(kv.clone());
    let (_, office) = watch::channel(None);
    let (writer, _) = Writer::new(kv, cache.clone(), Arc::new(SimClock::new(0)), office);
    let forward = Forward::new(|| Leader::Nobody, peers.clone());
    let limits = ImagesConfig { max_bytes: 1, max_virtual_mib: 1, ca_pem: String::new() };
    let images = Images::open(Setup {
        directory: directory.path().into(),
        me,
        limits,
        cache,
        writer,
        peers,
        forward,
    })?;
    Ok((Arc::new(images), ClusterKey::generate()?, directory))
}

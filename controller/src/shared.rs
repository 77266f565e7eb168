//! What every part of a controller is given: the handles by which it reads, writes, tells time and knows itself.

use std::sync::Arc;

use tamdao_model::{ControllerId, Name};
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Kv, Leadership, Membership};
use tokio::sync::watch;

use crate::admission::Writer;
use crate::auth::Strangers;
use crate::backups::Backups;
use crate::bmc::Bmc;
use crate::clock::Clock;
use crate::engine::Follower;
use crate::forward::Leader;
use crate::images::Images;
use crate::journals::Journals;
use crate::pki::ClusterKey;
use crate::reconcile::Board;
use crate::sessions::Sessions;
use crate::trail::Trail;

/// Who this controller is.
#[derive(Debug, Clone)]
pub struct Me {
    pub id: ControllerId,
    pub name: Name,
    /// host:port at which clients, agents and other controllers reach it.
    pub address: String,
    /// Its seat in the Raft group.
    pub member: u64,
}

/// The handles; all of them are shared, none is exclusive.
pub struct Shared {
    pub me: Me,
    pub kv: Arc<dyn Kv>,
    /// None where the store is not made of controllers.
    pub membership: Option<Arc<dyn Membership>>,
    pub cache: Cache,
    pub writer: Writer,
    pub clock: Arc<dyn Clock>,
    /// The office while this controller leads.
    pub office: watch::Receiver<Option<Leadership>>,
    /// Opens the sealed fields of records.
    pub key: ClusterKey,
    /// Agents that are heard here; only the leader hears any.
    pub sessions: Arc<Sessions>,
    /// How far the controllers' journals have come; only the leader is told.
    pub journals: Arc<Journals>,
    /// What goes into this controller's own journal beside the commits.
    pub trail: Arc<Trail>,
    /// Backups that the leader makes by itself.
    pub backups: Backups,
    /// Nodes' power.
    pub bmc: Arc<dyn Bmc>,
    /// The bytes of images.
    pub images: Arc<Images>,
    /// The placement engine, for those who decide by it and those who ask what it would do.
    pub engine: Follower,
    /// How the loops do.
    pub board: Board,
    /// Nodes heard here that no record knows, while the cloud recovers.
    pub strangers: Strangers,
}

impl Shared {
    /// Whether this controller leads now, as far as it knows.
    pub fn leads(&self) -> bool {
        self.office.borrow().as_ref().is_some_and(|office| !office.is_lost())
    }

    /// Where the leader is, as far as this controller knows.
    pub fn leader(&self) -> Leader {
        Leader::known(&*self.kv, &self.office, &self.me.address)
    }

    /// The leader's address, host:port, as far as this controller knows.
    pub fn leader_address(&self) -> Option<String> {
        self.kv.status().leader.map(|leader| leader.address)
    }
}

//! The agent's end of the node's keeper: leases on the shared pools that the node should hold, and guests that are
//! registered before they run. The keeper decides for itself when a guest has to die; nothing here can stop it.
//!
//! Invariant: what is said of the keeper is what it answered in this look, and no answer is "nothing is held"; but what it
//! had not seen reaped when it last answered is not taken for reaped.
//! Deliberately absent: starting the keeper, which outlives the agent and is the service manager's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tamdao_keeper::boot::BootMs;
use tamdao_keeper::client::{self, ClientError};
use tamdao_keeper::lease;
use tamdao_keeper::protocol::{NodeId, PoolId, PoolStatus, ProcessId, Request, Status, VmId};
use tamdao_proto::agent::v1 as wire;
use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("this node's id is not known, so it holds no storage lease: join it anew")]
    NoIdentity,
    #[error("the question was given up: {0}")]
    GivenUp(#[from] tokio::task::JoinError),
    #[error("the storage lease on pool {0} is not held")]
    NotHeld(Uuid),
}

impl KeeperError {
    /// One CamelCase word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Client(ClientError::Io(_) | ClientError::Unreadable(_)) | Self::GivenUp(_) => "KeeperAway",
            Self::Client(ClientError::Refused(_)) => "KeeperRefuses",
            Self::NoIdentity => "NoIdentity",
            Self::NotHeld(_) => "NoStorageLease",
        }
    }
}

type Result<T> = std::result::Result<T, KeeperError>;

/// A storage lease that is held and was renewed in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub lease_ms: u64,
    /// When this holding began, ms of CLOCK_BOOTTIME. As long as it is the same, the lease has not lapsed.
    pub held_since_ms: u64,
}

/// What the keeper said when it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeeperFact {
    /// Why it does not answer; then it is as if nothing were held and nobody guarded.
    pub away: Option<String>,
    pub version: String,
    /// Of the armed watchdog; none if nothing would stop this host.
    pub watchdog_timeout_ms: Option<u64>,
    pub leases: BTreeMap<Uuid, Lease>,
    /// Guests that it guards, with their incarnations.
    pub guests: BTreeMap<Uuid, u64>,
    /// Guests whose processes it has not seen reaped, those that it kills included, as it last said; none before it has
    /// said anything to this agent.
    pub unreaped: Option<BTreeSet<Uuid>>,
}

impl KeeperFact {
    /// What an answer says.
    #[must_use]
    pub fn read(status: &Status) -> Self {
        let leases = status.pools.iter().filter_map(|pool| {
            let since = pool.held_since.filter(|_| pool.fresh)?;
            Some((pool.pool.0, Lease { lease_ms: pool.lease_ms, held_since_ms: since.0 }))
        });
        let guests = status.guests.iter().filter(|guest| !guest.dying);
        Self {
            away: None,
            version: status.version.clone(),
            watchdog_timeout_ms: status.watchdog_timeout_ms,
            leases: leases.collect(),
            guests: guests.map(|guest| (guest.vm.0, guest.incarnation)).collect(),
            unreaped: Some(status.guests.iter().map(|guest| guest.vm.0).collect()),
        }
    }

    /// The same, after what was known before: a keeper that does not answer has not said that a guest is gone.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        if self.away.is_some() {
            self.unreaped.clone_from(&before.unreaped);
        }
        self
    }

    /// What the leader is told of a pool's lease.
    #[must_use]
    pub fn report_of(&self, pool: Uuid) -> Option<wire::LeaseReport> {
        let lease = self.leases.get(&pool)?;
        let watchdog_timeout_ms = self.watchdog_timeout_ms.unwrap_or(0);
        Some(wire::LeaseReport { lease_ms: lease.lease_ms, watchdog_timeout_ms })
    }
}

/// The keeper of this node.
#[derive(Clone, Debug)]
pub struct Keeper {
    pub socket: PathBuf,
    /// This node's own id, as the cluster knows it.
    pub node: Option<Uuid>,
    /// How long a storage lease is to be, ms.
    pub lease_ms: u64,
}

impl Keeper {
    /// Asks how it stands, and for a lease on each of these pools that it does not hold yet. With `keep` all other
    /// leases are given back.
    pub async fn look(&self, hold: BTreeMap<Uuid, PathBuf>, keep: Option<BTreeSet<Uuid>>) -> KeeperFact {
        let keeper = self.clone();
        let looked = tokio::task::spawn_blocking(move || keeper.look_now(&hold, keep.as_ref())).await;
        match looked.map_err(KeeperError::from).and_then(|looked| looked) {
            Ok(fact) => fact,
            Err(error) => KeeperFact { away: Some(error.to_string()), ..KeeperFact::default() },
        }
    }

    fn look_now(&self, hold: &BTreeMap<Uuid, PathBuf>, keep: Option<&BTreeSet<Uuid>>) -> Result<KeeperFact> {
        let status = client::status(&self.socket)?;
        let held =
            |id: &Uuid| status.pools.iter().any(|pool| pool.pool.0 == *id && pool.lease_ms == self.lease_ms);
        for (id, path) in hold.iter().filter(|(id, _)| !held(id)) {
            let node = self.node.ok_or(KeeperError::NoIdentity)?;
            let (pool, node, path) = (PoolId(*id), NodeId(node), path.clone());
            client::change(&self.socket, &Request::Hold { pool, node, path, lease_ms: self.lease_ms })?;
        }
        let left = |pool: &&PoolStatus| keep.is_some_and(|keep| !keep.contains(&pool.pool.0));
        for pool in status.pools.iter().filter(left) {
            // Refused while guests of the pool are there; a later look asks again.
            if let Err(error) = client::change(&self.socket, &Request::Release { pool: pool.pool }) {
                tracing::debug!(pool = %pool.pool, error = %error, "storage lease not given back");
            }
        }
        Ok(KeeperFact::read(&status))
    }

    /// Registers a guest's process, which runs already or has not run yet. With `under` it may begin only if these
    /// leases have been held without a break since then, ms of CLOCK_BOOTTIME; an agent that was stopped between its
    /// decision and this line is refused here.
    ///
    /// # Errors
    /// The keeper does not answer, or holds no such lease in time on one of the pools.
    pub async fn guard(
        &self,
        vm: Uuid,
        incarnation: u64,
        process: ProcessId,
        pools: BTreeSet<Uuid>,
        under: BTreeMap<Uuid, u64>,
    ) -> Result<()> {
        let socket = self.socket.clone();
        let request = Request::Guard {
            vm: VmId(vm),
            incarnation,
            process,
            pools: pools.into_iter().map(PoolId).collect(),
            under: under.into_iter().map(|(pool, since)| (PoolId(pool), BootMs(since))).collect(),
        };
        Ok(tokio::task::spawn_blocking(move || client::change(&socket, &request)).await??)
    }

    /// Gives all leases back. False if one is still held, which the keeper says while guests are there.
    pub async fn release_all(&self) -> bool {
        let keeper = self.clone();
        let released = async move {
            loop {
                let keeper = keeper.clone();
                let look = move || {
                    keeper.look_now(&BTreeMap::new(), Some(&BTreeSet::new()))?;
                    Ok::<_, KeeperError>(client::status(&keeper.socket)?)
                };
                match tokio::task::spawn_blocking(look).await {
                    Ok(Ok(status)) if !status.pools.is_empty() => {}
                    // Without a keeper nothing is held.
                    _ => return,
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), released).await.is_ok()
    }

    /// Reads another node's record past all caches, with how this node's own lease on the pool stands. Blocks for as
    /// long as the storage likes.
    #[must_use]
    pub fn read_lease(&self, path: &Path, pool: Uuid, node: Uuid) -> wire::LeaseReading {
        // Asked first: a renewal that it names was sent before the record was read.
        let own = client::status(&self.socket)
            .ok()
            .and_then(|status| status.pools.iter().find(|own| own.pool.0 == pool && own.fresh)?.renewed_at);
        let began = BootMs::now();
        let read = lease::read(path, NodeId(node));
        let ended = BootMs::now();
        let (record, error) = match read {
            Ok(Some(record)) => (
                Some(wire::LeaseRecord {
                    boot_id: record.boot_id.to_string(),
                    counter: record.counter,
                    lease_ms: record.lease_ms,
                    watchdog_timeout_ms: record.watchdog_timeout_ms.unwrap_or(0),
                    released: record.released,
                }),
                String::new(),
            ),
            Ok(None) => (None, "the node never wrote a record there".to_owned()),
            Err(error) => (None, error.to_string()),
        };
        wire::LeaseReading {
            pool_id: pool.to_string(),
            node_id: node.to_string(),
            began_ms: began.0,
            ended_ms: ended.0,
            own_renewed_ms: own.map_or(0, |at| at.0),
            record,
            error,
        }
    }
}

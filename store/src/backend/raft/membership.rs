//! The seats of the group: adding, removing and handing over, one change at a time.
//!
//! Its invariant: a controller votes only after it has caught up, and an id is never seated again
//! with other data, because it dies with its data directory. All of this is done by the leader; on
//! any other member it fails with the leader's address, since the calls that need it are made by
//! people, through the leader's API.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tamdao_proto::raft::v1 as wire;
use tokio::time::{Instant, timeout, timeout_at};

use super::RaftStore;
use super::network::within;
use super::node::{Backoff, Node};
use super::types::{Seat, Types, members};
use crate::kv::{Member, Membership, Result, StoreError};

type Change = ChangeMembers<u64, Seat>;
type Changed<T> = std::result::Result<T, RaftError<Types, ClientWriteError<Types>>>;

#[async_trait]
impl Membership for RaftStore {
    async fn members(&self) -> Result<Vec<Member>> {
        self.node.barrier().await?;
        Ok(self.node.seated())
    }

    async fn add_member(&self, member: Member) -> Result<()> {
        let node = &self.node;
        let _one_at_a_time = node.seats.lock().await;
        node.must_lead()?;
        let seated = node.seated();
        let clash = seated.iter().find(|other| {
            other.id != member.id && (other.name == member.name || other.address == member.address)
        });
        if let Some(other) = clash {
            let Member { id, name, address, .. } = other;
            return Err(StoreError::invalid(format!(
                "controller {id} is seated as {name} at {address}; remove it before its name or address is taken"
            )));
        }
        let deadline = Instant::now() + node.config.join_timeout;
        let seat = Seat { name: member.name, address: member.address };
        match seated.iter().find(|other| other.id == member.id) {
            Some(old) if old.name == seat.name && old.address == seat.address => {}
            Some(_) => {
                node.change(deadline, || Change::SetNodes([(member.id, seat.clone())].into()), true).await?
            }
            None => {}
        }
        if !node.seated().iter().any(|other| other.id == member.id && other.voter) {
            node.retry(deadline, || node.raft.add_learner(member.id, seat.clone(), false)).await?;
            node.learned(deadline, member.id).await?;
            node.change(deadline, || Change::AddVoterIds(BTreeSet::from([member.id])), true).await?;
        }
        tracing::info!(member = member.id, name = seat.name, "controller seated");
        Ok(())
    }

    async fn remove_member(&self, id: u64) -> Result<()> {
        let node = &self.node;
        let _one_at_a_time = node.seats.lock().await;
        node.must_lead()?;
        let seated = node.seated();
        let Some(member) = seated.iter().find(|member| member.id == id) else { return Ok(()) };
        if member.voter && seated.iter().filter(|member| member.voter).count() == 1 {
            return Err(StoreError::invalid("the last voter cannot be removed"));
        }
        let deadline = Instant::now() + node.config.join_timeout;
        let ids = BTreeSet::from([id]);
        if member.voter {
            node.change(deadline, || Change::RemoveVoters(ids.clone()), false).await?;
        } else {
            node.change(deadline, || Change::RemoveNodes(ids.clone()), false).await?;
        }
        tracing::info!(member = id, "controller removed");
        Ok(())
    }

    async fn transfer_leadership(&self, to: u64) -> Result<()> {
        let node = &self.node;
        node.must_lead()?;
        if to == node.id {
            return Ok(());
        }
        if !node.seated().iter().any(|member| member.id == to && member.voter) {
            return Err(StoreError::invalid(format!("controller {to} is not a voter")));
        }
        let stopped = |error| StoreError::unavailable(format!("{error}"));
        node.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
        let mut metrics = node.raft.metrics();
        let taken = async {
            while metrics.borrow_watched().current_leader != Some(to) {
                if metrics.changed().await.is_err() {
                    return Err(StoreError::unavailable("the store is stopped"));
                }
            }
            Ok(())
        };
        let patience = node.config.election_max * 4;
        let late = |_| StoreError::unavailable(format!("controller {to} did not take over in time"));
        timeout(patience, taken).await.map_err(late)?
    }
}

impl Node {
    pub(super) fn seated(&self) -> Vec<Member> {
        members(self.metrics().membership_config.membership())
    }

    fn must_lead(&self) -> Result<()> {
        if self.leads() {
            return Ok(());
        }
        let leader = self.leader().map(|leader| leader.address);
        Err(StoreError::Unavailable { reason: "only the leader changes the membership".into(), leader })
    }

    /// Waits until a learner holds all that is in the log now. The library's own wait is content
    /// with a learner that never answered, as long as the log is short; a vote for such a member
    /// could leave the group without a quorum, and without a way to take the seat back.
    async fn learned(&self, deadline: Instant, id: u64) -> Result<()> {
        let goal = self.metrics().last_log_index;
        let mut metrics = self.raft.metrics();
        let caught_up = async {
            loop {
                let matched = {
                    let now = metrics.borrow_watched();
                    let Some(replication) = now.replication.as_ref() else {
                        return Err(StoreError::unavailable("leadership was lost"));
                    };
                    replication.get(&id).and_then(|matched| matched.map(|entry| entry.index))
                };
                if matched >= goal {
                    return Ok(());
                }
                if metrics.changed().await.is_err() {
                    return Err(StoreError::unavailable("the store is stopped"));
                }
            }
        };
        let late =
            |_| StoreError::unavailable(format!("controller {id} does not catch up, it stays a learner"));
        timeout_at(deadline, caught_up).await.map_err(late)?
    }

    async fn change(&self, deadline: Instant, change: impl Fn() -> Change, retain: bool) -> Result<()> {
        self.retry(deadline, || self.raft.change_membership(change(), retain)).await
    }

    /// Tries until it is done, or surely cannot be, or the deadline makes it `Unknown`.
    async fn retry<T, F>(&self, deadline: Instant, attempt: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Changed<T>>,
    {
        let mut backoff = Backoff::new();
        loop {
            let error = match timeout_at(deadline, attempt()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(StoreError::Unknown),
            };
            let RaftError::APIError(error) = error else {
                return Err(StoreError::unavailable(error.to_string()));
            };
            match error {
                // An earlier change is still being committed, or this leader is fresh.
                ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ) => {}
                ClientWriteError::ChangeMembershipError(error) => {
                    return Err(StoreError::invalid(error.to_string()));
                }
                ClientWriteError::ForwardToLeader(to) if to.leader_id.is_none() => {}
                ClientWriteError::ForwardToLeader(to) => {
                    let leader = to.leader_node.map(|seat| seat.address);
                    return Err(StoreError::Unavailable { reason: "leadership was lost".into(), leader });
                }
                ClientWriteError::LogEntryDiscarded(_) => return Err(StoreError::Unknown),
                ClientWriteError::PreconditionFailed(error) => {
                    return Err(StoreError::unavailable(error.to_string()));
                }
            }
            backoff.wait().await;
        }
    }

    /// Records the present name and address of a member that is seated already.
    pub(super) async fn reseat(&self, member: Member) -> Result<()> {
        let _one_at_a_time = self.seats.lock().await;
        let Some(old) = self.seated().into_iter().find(|seated| seated.id == member.id) else {
            return Err(StoreError::invalid(format!("controller {} has no seat", member.id)));
        };
        if old.name == member.name && old.address == member.address {
            return Ok(());
        }
        let seat = Seat { name: member.name, address: member.address };
        tracing::info!(member = member.id, address = seat.address, "controller moved");
        let deadline = Instant::now() + self.config.commit_timeout;
        self.change(deadline, || Change::SetNodes(BTreeMap::from([(member.id, seat.clone())])), true).await
    }

    /// Whether the membership holds another name or address for this member than its configuration.
    pub(super) fn is_misplaced(&self) -> bool {
        self.seated().iter().any(|member| {
            member.id == self.id && (member.name != self.config.name || member.address != self.config.address)
        })
    }

    /// Tells the leader where this member is now. A moved member cannot be reached by the leader,
    /// so it asks everyone who leads.
    pub(super) async fn announce(&self) -> Result<()> {
        let me = Member {
            id: self.id,
            name: self.config.name.clone(),
            address: self.config.address.clone(),
            voter: false,
        };
        if self.leads() {
            return self.reseat(me).await;
        }
        let patience = self.config.commit_timeout;
        let others = self.seated().into_iter().filter(|member| member.id != self.id);
        for other in others {
            let Ok(mut client) = self.peers.client(&other.address) else { continue };
            let request = wire::AnnounceRequest {
                header: self.peers.header(other.id),
                seat: Some(wire::Seat { id: me.id, name: me.name.clone(), address: me.address.clone() }),
            };
            let answer = timeout(patience, client.announce(within(request, patience))).await;
            if let Ok(Ok(answer)) = answer
                && let Some(wire::announce_response::Outcome::Done(_)) = answer.into_inner().outcome
            {
                return Ok(());
            }
        }
        Err(StoreError::unavailable("no leader heard of the new address"))
    }
}

//! The doing of cold moves with disks: carries the files of a guest that is off, and takes in those of one that comes.
//!
//! Invariants: a guest is *gone* only after the target has answered for every file, and only if no domain of it is here;
//! whatever else happens, also a death of this agent, it is *kept*. A file that comes is taken only for a volume that was
//! made for this move, and only until the source has said that the guest is gone.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::AsyncRead;
use uuid::Uuid;

use super::moving::moving;
use super::{Context, OperateError, Operator, Result};
use crate::checkpoint::checkpoint;
use crate::desired::{VolumeIntent, WantedVm};
use crate::ledger::{Outgoing, Word};
use crate::moves::files::{Taking, data_bytes};
use crate::moves::{Arrival, MoveError};
use crate::volume::{Volume, check_unused, file_path};

impl Operator {
    /// Carries the files of a guest that is off. Whatever comes of it is written down and said before this returns well.
    pub(super) async fn send_files(&self, vm: Uuid, wanted: &WantedVm, context: &Context) -> Result<()> {
        let moving = moving(wanted)?;
        let id = moving.id;
        let files = files(wanted, context)?;
        for (_, path) in &files {
            check_unused(path).await?;
        }
        // Until the target is known to expect it nothing has begun, and this is tried again.
        self.moves.ask_paths(vm, moving).await?;
        let total = files.iter().map(|(_, path)| data_bytes(path)).sum();
        let carriage = self.moves.load(vm, id, total);
        checkpoint("move-loaded").await;
        let outgoing = Outgoing { id, word: Word::Sending, reason: String::new(), files: true };
        self.ledger.vm(vm, |record| record.outgoing = Some(outgoing)).await?;
        checkpoint("move-sending").await;
        tracing::info!(%vm, incarnation = wanted.incarnation, peer = %moving.peer, "disks are being carried");
        let carried = carriage.carry(moving, &files).await;
        checkpoint("move-sent").await;
        let reason = self.why_kept(vm, carried).await?;
        match &reason {
            None => self.let_go(vm, wanted, context.now_ms).await?,
            Some(reason) => self.keep(vm, wanted, reason).await?,
        }
        self.tell_of_sending(vm, moving, reason, carriage.sent()).await;
        Ok(())
    }

    /// Why a guest stays whose files were carried, if it does.
    async fn why_kept(
        &self,
        vm: Uuid,
        carried: std::result::Result<(), MoveError>,
    ) -> Result<Option<String>> {
        if let Err(error) = carried {
            return Ok(Some(error.to_string()));
        }
        // Nothing of ours starts it meanwhile; whoever did, its disks are not those that were carried.
        let seen = self.hypervisor.observe().await?;
        let here = seen.ours.iter().any(|domain| domain.vm == vm);
        Ok(here.then(|| "a domain of it has come into being while its disks were carried".to_owned()))
    }

    /// Lets one connection bring the file of a volume of a guest that comes.
    pub(crate) fn begin_taking(&self, vm: Uuid, arrival: &Arrival, volume: &str) -> Result<(Volume, Taking)> {
        let no = OperateError::Overtaken;
        let id = Uuid::try_parse(volume).map_err(|_| no("volume_id is not a UUID"))?;
        // First the right, then the question: who removes the file asks the other way round.
        let taking = Arc::clone(&self.moves).take(id).map_err(no)?;
        let state = self.ledger.state();
        let gone = state.vms.get(&vm).and_then(|record| record.incoming).is_some_and(|incoming| incoming.go);
        if gone || !self.moves.expects(vm, arrival.moving.id) || !self.is_ready_for(vm, arrival) {
            return Err(no("this node is not ready for it"));
        }
        let wanted = arrival.volumes.get(&id).filter(|wanted| wanted.intent == VolumeIntent::Receive);
        let wanted = wanted.ok_or(no("this disk is not expected here"))?.clone();
        let made = |record: &crate::ledger::VolumeRecord| {
            record.made && !record.deleted && record.copy >= wanted.copy
        };
        if !state.volumes.get(&id).is_some_and(made) {
            return Err(no("this disk is not made ready here"));
        }
        let pool = arrival.pools.get(&wanted.pool).cloned();
        Ok((Volume { id, wanted, pool: pool.ok_or(no("the pool's entry is gone"))? }, taking))
    }

    /// Receives a volume's file and puts it in its place.
    pub(crate) async fn take_in(
        &self,
        volume: &Volume,
        size_bytes: u64,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<()> {
        let image = match &volume.wanted.image {
            Some(digest) => Some(self.source(digest).await?),
            None => None,
        };
        Ok(volume.receive(stream, size_bytes, image.as_ref(), &self.ledger).await?)
    }
}

/// The files that only this node has, by volume.
fn files(wanted: &WantedVm, context: &Context) -> Result<Vec<(Uuid, PathBuf)>> {
    let local = wanted.local_volumes(&context.pools);
    let own = wanted.volumes.iter().filter(|(volume, _)| local.contains(volume));
    own.map(|(volume, pool)| {
        let pool = context.pools.get(pool).ok_or(OperateError::Overtaken("the pool's entry is gone"))?;
        Ok((*volume, file_path(&pool.path, *volume)))
    })
    .collect()
}

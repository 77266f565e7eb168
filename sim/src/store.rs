//! The store as one controller sees it: reads are its own and may be old; whatever needs the quorum is a letter that the
//! world carries, loses, keeps back or answers (`world`).

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tamdao_store::backend::memory::MemoryStore;
use tamdao_store::kv::{Batch, Entry, Key, Kv, Prefix, Read, Result, Revision, Status, StoreError, Txn};
use tokio::sync::oneshot;

/// What needs the quorum.
pub enum Letter {
    Commit {
        txn: Txn,
        reply: oneshot::Sender<Result<Revision>>,
    },
    /// Where the store stands; answered when this controller has come there.
    Barrier {
        reply: oneshot::Sender<Result<Revision>>,
    },
}

/// Letters that the world has not taken yet.
pub type Outbox = Arc<Mutex<Vec<Letter>>>;

/// See the module.
pub struct SimKv {
    pub local: MemoryStore,
    pub outbox: Outbox,
}

impl SimKv {
    fn post(&self, letter: Letter) {
        self.outbox.lock().expect("no holder of the lock panics").push(letter);
    }

    async fn fresh(&self, read: Read) -> Result<Read> {
        if read == Read::Linearizable {
            return Ok(Read::AtLeast(self.barrier().await?));
        }
        Ok(read)
    }
}

#[async_trait]
impl Kv for SimKv {
    async fn get(&self, key: &Key, read: Read) -> Result<Option<Entry>> {
        let read = self.fresh(read).await?;
        self.local.get(key, read).await
    }

    async fn list(&self, prefix: &Prefix, read: Read) -> Result<(Vec<Entry>, Revision)> {
        let read = self.fresh(read).await?;
        self.local.list(prefix, read).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision> {
        txn.validate()?;
        let (reply, answer) = oneshot::channel();
        self.post(Letter::Commit { txn, reply });
        answer.await.unwrap_or(Err(StoreError::Unknown))
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<BoxStream<'static, Result<Batch>>> {
        self.local.watch(prefix, after).await
    }

    async fn compact(&self, _: Revision) -> Result<()> {
        Ok(())
    }

    async fn barrier(&self) -> Result<Revision> {
        let (reply, answer) = oneshot::channel();
        self.post(Letter::Barrier { reply });
        answer.await.unwrap_or_else(|_| Err(StoreError::unavailable("no answer")))
    }

    async fn set_level(&self, level: u32) -> Result<u32> {
        Ok(level)
    }

    fn status(&self) -> Status {
        self.local.status()
    }
}

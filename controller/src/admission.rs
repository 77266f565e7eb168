//! The one writer: a queue that folds many decisions into one guarded transaction.
//!
//! Its invariant: while this controller leads, every change of records goes through this queue, in order, and each
//! decision sees all earlier ones. So hot records (an agency's usage, a node's assignment) do not thrash, and no
//! two requests can take the same name, address or capacity. The guards stay as the barrier against a leader that
//! does not know yet that it was deposed. A decision is a pure function of the draft: it may run again after a
//! conflict. Deliberately absent: I/O inside decisions, and priorities.

use std::sync::Arc;

use tamdao_model::TimeMs;
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Key, Kv, Leadership, Revision, StoreError};
use tamdao_store::typed::{self, Draft};
use tamdao_store::view::View;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::clock::Clock;
use crate::refusal::Refusal;

/// Decisions that wait at most; beyond it callers are told to come back.
const QUEUE: usize = 4_096;
/// Decisions folded into one transaction at most.
const FOLD: usize = 256;
/// How often a batch is decided anew after a conflict.
const ATTEMPTS: usize = 5;

/// What a decision needs of the world beside the draft: all clocks and chance of a decision are here.
pub struct Moment {
    pub now: TimeMs,
}

impl Moment {
    /// A fresh id.
    pub fn id<T: From<Uuid>>(&mut self) -> T {
        Uuid::new_v4().into()
    }
}

/// A decision and where its answer goes, whatever type that has.
trait Job: Send {
    fn decide(&mut self, draft: &mut Draft, moment: &mut Moment) -> Result<(), Refusal>;
    fn answer(self: Box<Self>, outcome: Result<Revision, Refusal>);
}

struct Decision<T, F> {
    decide: F,
    decided: Option<T>,
    reply: oneshot::Sender<Result<(T, Revision), Refusal>>,
}

impl<T, F> Job for Decision<T, F>
where
    T: Send,
    F: FnMut(&mut Draft, &mut Moment) -> Result<T, Refusal> + Send,
{
    fn decide(&mut self, draft: &mut Draft, moment: &mut Moment) -> Result<(), Refusal> {
        self.decided = Some((self.decide)(draft, moment)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<Revision, Refusal>) {
        let Self { decided, reply, .. } = *self;
        // A caller that has gone away no longer wants to know.
        let _ = reply
            .send(outcome.map(|revision| (decided.expect("answered well only after a decision"), revision)));
    }
}

/// The handle by which decisions are handed in; a clone is another handle.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
    cache: Cache,
    clock: Arc<dyn Clock>,
}

/// The queue's other end; [`Desk::run`] it as a task for the life of the controller.
pub struct Desk {
    queue: mpsc::Receiver<Box<dyn Job>>,
    kv: Arc<dyn Kv>,
    cache: Cache,
    clock: Arc<dyn Clock>,
    office: watch::Receiver<Option<Leadership>>,
}

impl Writer {
    /// A writer and its desk. `office` tells whether this controller leads.
    pub fn new(
        kv: Arc<dyn Kv>,
        cache: Cache,
        clock: Arc<dyn Clock>,
        office: watch::Receiver<Option<Leadership>>,
    ) -> (Self, Desk) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let writer = Self { queue, cache: cache.clone(), clock: clock.clone() };
        (writer, Desk { queue: receiver, kv, cache, clock, office })
    }

    /// Decides and commits. Returns what was decided and the revision that holds it. The decision may run several
    /// times and must therefore depend on its arguments only.
    ///
    /// # Errors
    /// The decision's own refusal; `Unavailable` when this controller does not lead, is overloaded or has no
    /// quorum; `Aborted` when the outcome is unknown.
    pub async fn submit<T, F>(&self, decide: F) -> Result<(T, Revision), Refusal>
    where
        T: Send + 'static,
        F: FnMut(&mut Draft, &mut Moment) -> Result<T, Refusal> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Box::new(Decision { decide, decided: None, reply })).map_err(
            |error| match error {
                mpsc::error::TrySendError::Full(_) => Refusal::unavailable("too many changes wait already"),
                mpsc::error::TrySendError::Closed(_) => Refusal::unavailable("the controller is stopping"),
            },
        )?;
        answer.await.map_err(|_| Refusal::unavailable("the controller is stopping"))?
    }

    /// How many decisions wait, beyond those that are being worked on.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Decides and changes nothing: what `validate_only` asks for.
    ///
    /// # Errors
    /// The decision's own refusal.
    pub fn preview<T>(
        &self,
        mut decide: impl FnMut(&mut Draft, &mut Moment) -> Result<T, Refusal>,
    ) -> Result<(T, View), Refusal> {
        let mut draft = Draft::new((*self.cache.view()).clone(), Uuid::new_v4());
        let value = decide(&mut draft, &mut Moment { now: self.clock.now() })?;
        Ok((value, draft.view().clone()))
    }
}

impl Desk {
    /// Works until all writers are gone.
    pub async fn run(mut self) {
        let mut waiting: Vec<Box<dyn Job>> = Vec::new();
        loop {
            if waiting.is_empty() {
                match self.queue.recv().await {
                    Some(job) => waiting.push(job),
                    None => return,
                }
            }
            while waiting.len() < FOLD {
                match self.queue.try_recv() {
                    Ok(job) => waiting.push(job),
                    Err(_) => break,
                }
            }
            let office = self.office.borrow().clone();
            match office {
                Some(office) if !office.is_lost() => self.work(&office, &mut waiting).await,
                _ => {
                    for job in waiting.drain(..) {
                        job.answer(Err(not_leading()));
                    }
                }
            }
        }
    }

    /// Takes as many of the waiting as fit one transaction, decides, commits and answers.
    async fn work(&self, office: &Leadership, waiting: &mut Vec<Box<dyn Job>>) {
        for _ in 0..ATTEMPTS {
            let (draft, refusals) = self.fold(waiting);
            let taken = refusals.len();
            let outcome = match draft.is_empty() {
                true => Ok(draft.view().revision),
                false => self.commit(office, draft).await,
            };
            let outcome = match outcome {
                // Somebody else has written, or the cache was behind: decide anew on what holds now.
                Err(StoreError::Conflict { key }) if key != Key::leader() => {
                    tracing::warn!(%key, "batch met a conflict");
                    if let Err(error) = self.catch_up().await {
                        return answer_all(waiting.drain(..taken), &Err(error.into()));
                    }
                    continue;
                }
                Err(StoreError::Conflict { .. }) => Err(not_leading()),
                other => other.map_err(Refusal::from),
            };
            for (job, refused) in waiting.drain(..taken).zip(refusals) {
                job.answer(match (&outcome, refused) {
                    // A refusal may rest on what the batch was about to write, so it stands only with the commit.
                    (Ok(_), Some(refusal)) => Err(refusal),
                    (outcome, _) => outcome.clone(),
                });
            }
            return;
        }
        let conflict = Refusal::from(StoreError::Conflict { key: Key::leader() });
        answer_all(waiting.drain(..), &Err(conflict));
    }

    /// Decides one job after the other on one draft; the answer has one entry for each job taken.
    fn fold(&self, waiting: &mut [Box<dyn Job>]) -> (Draft, Vec<Option<Refusal>>) {
        let mut draft = Draft::new((*self.cache.view()).clone(), Uuid::new_v4());
        let mut refusals = Vec::with_capacity(waiting.len());
        let mut moment = Moment { now: self.clock.now() };
        for job in waiting {
            let before = draft.clone();
            match job.decide(&mut draft, &mut moment) {
                Ok(()) if draft.fits() => refusals.push(None),
                Ok(()) => {
                    draft = before;
                    if refusals.is_empty() {
                        refusals.push(Some(Refusal::internal("one change is too large for a transaction")));
                    }
                    break;
                }
                Err(refusal) => {
                    draft = before;
                    refusals.push(Some(refusal));
                }
            }
        }
        (draft, refusals)
    }

    async fn commit(&self, office: &Leadership, draft: Draft) -> Result<Revision, StoreError> {
        let id = draft.id();
        let revision = typed::commit(&*self.kv, id, draft.into_txn([office.guard()])).await?;
        // The next batch must stand on this one.
        self.cache.at_least(revision).await?;
        Ok(revision)
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        let revision = self.kv.barrier().await?;
        self.cache.at_least(revision).await?;
        Ok(())
    }
}

fn answer_all(jobs: impl Iterator<Item = Box<dyn Job>>, outcome: &Result<Revision, Refusal>) {
    for job in jobs {
        job.answer(outcome.clone());
    }
}

fn not_leading() -> Refusal {
    Refusal::unavailable("this controller does not lead")
}

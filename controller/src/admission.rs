//! The one writer: a queue that folds many decisions into one guarded transaction.
//!
//! Its invariant: while this controller leads, every change of records goes through this queue, in order, and each
//! decision sees all earlier ones. So hot records (an agency's usage, a node's assignment) do not thrash, and no
//! two requests can take the same name, address or capacity. The guards stay as the barrier against a leader that
//! does not know yet that it was deposed. What was handed in under one office is refused under the next: it rests on
//! what was seen under the first. A decision is a pure function of the draft: it may run again after a conflict. While a transaction is on its way to the disks the next ones are decided on what it will have made, and
//! sent after it; each carries a guard that holds only if the one before it was committed (decision 0061).
//! Deliberately absent: I/O inside decisions, and priorities.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use tamdao_model::TimeMs;
use tamdao_seams::{Mutant, has};
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Guard, Key, Kv, Leadership, Revision, StoreError};
use tamdao_store::typed::{self, Draft};
use tamdao_store::view::View;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::audit::{self, Slip};
use crate::clock::Clock;
use crate::refusal::Refusal;

/// Decisions that wait at most; beyond it callers are told to come back.
const QUEUE: usize = 4_096;
/// Decisions folded into one transaction at most.
const FOLD: usize = 256;
/// Transactions that are sent and not yet known to be committed, at most.
const IN_THE_AIR: usize = 4;
/// How often batches are decided anew after a conflict, until one is committed.
const ATTEMPTS: usize = 5;

/// What a decision needs of the world beside the draft: all clocks and chance of a decision are here.
pub struct Moment {
    pub now: TimeMs,
}

impl Moment {
    /// A fresh id.
    pub fn id<T: From<Uuid>>(&mut self) -> T {
        tamdao_seams::fresh_id().into()
    }
}

/// A decision and where its answer goes, whatever type that has.
trait Job: Send {
    fn decide(&mut self, draft: &mut Draft, moment: &mut Moment) -> Result<(), Refusal>;
    fn answer(self: Box<Self>, outcome: Result<Revision, Refusal>);
}

/// A job, the office under which it was handed in, by its epoch, and the request that it carries out, if any.
struct Handed {
    job: Box<dyn Job>,
    under: Revision,
    slip: Option<Arc<Slip>>,
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
    queue: mpsc::Sender<Handed>,
    cache: Cache,
    clock: Arc<dyn Clock>,
    office: watch::Receiver<Option<Leadership>>,
}

/// The queue's other end; [`Desk::run`] it as a task for the life of the controller.
pub struct Desk {
    queue: mpsc::Receiver<Handed>,
    kv: Arc<dyn Kv>,
    cache: Cache,
    clock: Arc<dyn Clock>,
    office: watch::Receiver<Option<Leadership>>,
    /// Taken from the queue, not yet decided.
    waiting: VecDeque<Handed>,
    /// Since the last commit.
    conflicts: usize,
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
        let writer = Self { queue, cache: cache.clone(), clock: clock.clone(), office: office.clone() };
        let (waiting, conflicts) = (VecDeque::new(), 0);
        (writer, Desk { queue: receiver, kv, cache, clock, office, waiting, conflicts })
    }

    /// Decides and commits. Returns what was decided and the revision that holds it. The decision may run several
    /// times and must therefore depend on its arguments only. It stands in the queue, behind all that was handed in
    /// before, once this returns; what is awaited is the outcome only.
    ///
    /// # Errors
    /// The decision's own refusal; `Unavailable` when this controller does not lead, is overloaded or has no
    /// quorum; `Aborted` when the outcome is unknown.
    pub fn submit<T, F>(&self, decide: F) -> impl Future<Output = Result<(T, Revision), Refusal>> + use<T, F>
    where
        T: Send + 'static,
        F: FnMut(&mut Draft, &mut Moment) -> Result<T, Refusal> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Decision { decide, decided: None, reply });
        let queued = held(&self.office).ok_or_else(not_leading).and_then(|office| {
            let handed = Handed { job, under: office.epoch, slip: audit::slip() };
            self.queue.try_send(handed).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refusal::unavailable("too many changes wait already"),
                mpsc::error::TrySendError::Closed(_) => Refusal::unavailable("the controller is stopping"),
            })
        });
        async move {
            queued?;
            answer.await.map_err(|_| Refusal::unavailable("the controller is stopping"))?
        }
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
        let mut draft = Draft::new((*self.cache.view()).clone(), tamdao_seams::fresh_id());
        let value = decide(&mut draft, &mut Moment { now: self.clock.now() })?;
        Ok((value, draft.view().clone()))
    }
}

impl Desk {
    /// Works until all writers are gone.
    pub async fn run(mut self) {
        let mut air = Air::default();
        let mut open = None;
        loop {
            self.take_in();
            while let Some(batch) = self.fold(open.take(), &air) {
                // A batch that is not full waits for others while one is in the air: one fsync then serves more.
                if !(air.is_empty() || batch.full && air.len() < IN_THE_AIR) {
                    open = Some(batch);
                    break;
                }
                self.launch(batch, &mut air);
            }
            let room = open.as_ref().is_none_or(|batch: &Batch| !batch.full);
            // In this order, so that equal histories give equal batches.
            tokio::select! {
                biased;
                outcome = air.land(), if !air.is_empty() => {
                    self.landed(outcome, &mut air, &mut open).await;
                }
                job = self.queue.recv(), if room => match job {
                    Some(job) => self.waiting.push_back(job),
                    None if air.is_empty() => return,
                    None => {
                        let outcome = air.land().await;
                        self.landed(outcome, &mut air, &mut open).await;
                    }
                }
            }
        }
    }

    /// Takes from the queue what is there, within bounds.
    fn take_in(&mut self) {
        while self.waiting.len() < FOLD {
            match self.queue.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(_) => return,
            }
        }
    }

    /// Decides what waits, one job after the other, on one draft until that is full. None if nothing is to be done.
    fn fold(&mut self, mut open: Option<Batch>, air: &Air) -> Option<Batch> {
        let office = held(&self.office);
        let epoch = office.as_ref().map(|office| office.epoch);
        if let Some(ended) = open.take_if(|batch| Some(batch.office.epoch) != epoch) {
            answer_all(ended.jobs, &Err(not_leading()));
        }
        let (standing, ended) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(|handed| Some(handed.under) == epoch);
        self.waiting = standing;
        ended.into_iter().for_each(|handed| handed.job.answer(Err(not_leading())));
        if open.is_none() && self.waiting.is_empty() {
            return None;
        }
        let mut batch = open.or_else(|| {
            let (view, chain) = air.ahead.clone().unzip();
            let view = view.unwrap_or_else(|| (*self.cache.view()).clone());
            let draft = Draft::new(view, tamdao_seams::fresh_id());
            Some(Batch { office: office?, draft, chain, jobs: Vec::new(), full: false })
        })?;
        let mut moment = Moment { now: self.clock.now() };
        while !batch.full
            && let Some(handed) = self.waiting.pop_front()
        {
            if let Err(handed) = batch.decide(handed, &mut moment) {
                self.waiting.push_front(handed);
            }
        }
        Some(batch)
    }

    /// Sends a batch to the store, without waiting for its commit.
    fn launch(&self, batch: Batch, air: &mut Air) {
        let Batch { office, draft, chain, jobs, full: _ } = batch;
        let (kv, cache, id) = (self.kv.clone(), self.cache.clone(), draft.id());
        let stands_on = draft.view().revision;
        let ahead = draft.ahead();
        let flight = match &ahead {
            // Nothing to write, but what was refused may rest on those before.
            None => futures::future::ready(Ok(stands_on)).boxed(),
            Some(_) => {
                let leads = (!has(Mutant::DeposedLeader)).then(|| office.guard());
                let txn = draft.into_txn(leads.into_iter().chain(chain));
                async move {
                    let revision = typed::commit(&*kv, id, txn).await?;
                    // Who is answered, and the batch after the last one, stand on this one.
                    cache.at_least(revision).await.map(|_| revision)
                }
                .boxed()
            }
        };
        air.outcomes.push_back(flight);
        air.jobs.push_back(jobs);
        air.ahead = ahead.or_else(|| air.ahead.take());
    }

    /// Answers the first batch in the air. If it failed, those behind it stood on nothing.
    async fn landed(&mut self, outcome: Outcome, air: &mut Air, open: &mut Option<Batch>) {
        if outcome.is_ok() {
            self.conflicts = 0;
            return air.answer(&outcome.map_err(Refusal::from));
        }
        let mut outcomes = vec![outcome];
        while !air.outcomes.is_empty() {
            outcomes.push(air.land().await);
        }
        // Each is committed only if the one before it was: so what stands before a success has succeeded, even if
        // its own reply was lost.
        if let Some(last) = outcomes.iter().rposition(Result::is_ok) {
            let revision = outcomes[last].clone();
            outcomes[..last]
                .iter_mut()
                .filter(|outcome| outcome.is_err())
                .for_each(|lost| *lost = revision.clone());
        }
        let mut again = Vec::new();
        for outcome in outcomes {
            match outcome {
                // Somebody else has written, or the batch before failed: decide anew on what holds now.
                Err(StoreError::Conflict { key }) if key != Key::leader() => {
                    tracing::warn!(%key, "batch met a conflict");
                    again.extend(air.jobs.pop_front().into_iter().flatten());
                }
                Err(StoreError::Conflict { .. }) => air.answer(&Err(not_leading())),
                other => air.answer(&other.map_err(Refusal::from)),
            }
        }
        *air = Air::default();
        again.extend(open.take().into_iter().flat_map(|batch| batch.jobs));
        self.conflicts += 1;
        let caught_up = match self.conflicts > ATTEMPTS {
            true => Err(StoreError::Conflict { key: Key::leader() }),
            false => catch_up(&*self.kv, &self.cache).await,
        };
        match caught_up {
            Ok(()) => again.into_iter().rev().for_each(|(handed, _)| self.waiting.push_front(handed)),
            Err(error) => {
                self.conflicts = 0;
                answer_all(again, &Err(error.into()));
            }
        }
    }
}

async fn catch_up(kv: &dyn Kv, cache: &Cache) -> Result<(), StoreError> {
    let revision = kv.barrier().await?;
    cache.at_least(revision).await?;
    Ok(())
}

/// Jobs decided on one draft under one office, each with its refusal if it got one.
struct Batch {
    office: Leadership,
    draft: Draft,
    /// Holds only if the batch that this one stands on is committed.
    chain: Option<Guard>,
    jobs: Vec<Decided>,
    full: bool,
}

type Decided = (Handed, Option<Refusal>);
type Outcome = Result<Revision, StoreError>;

impl Batch {
    /// Decides one more job; gives it back when it does not fit.
    fn decide(&mut self, mut handed: Handed, moment: &mut Moment) -> Result<(), Handed> {
        let before = self.draft.clone();
        let decided = handed.job.decide(&mut self.draft, moment);
        if let (Ok(()), Some(slip)) = (&decided, &handed.slip) {
            slip.draft(&before, &mut self.draft, moment);
        }
        let fits = self.draft.fits();
        if decided.is_err() || !fits {
            self.draft = before;
        }
        let refusal = match decided {
            Ok(()) if fits => None,
            Ok(()) if self.jobs.is_empty() => {
                Some(Refusal::internal("one change is too large for a transaction"))
            }
            Ok(()) => {
                self.full = true;
                return Err(handed);
            }
            Err(refusal) => Some(refusal),
        };
        self.jobs.push((handed, refusal));
        self.full |= self.jobs.len() >= FOLD;
        Ok(())
    }
}

/// Batches that are sent and not yet known to be committed, in order. Each stands on the one before it and is
/// guarded by it, so that they are committed in this order or not at all.
#[derive(Default)]
struct Air {
    outcomes: FuturesOrdered<BoxFuture<'static, Outcome>>,
    jobs: VecDeque<Vec<Decided>>,
    /// What the next batch stands on, and the guard that says so.
    ahead: Option<(View, Guard)>,
}

impl Air {
    fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// What became of the first; its jobs are still to be answered.
    async fn land(&mut self) -> Outcome {
        self.outcomes.next().await.unwrap_or(Err(StoreError::Unknown))
    }

    /// Answers the first. With the last one nothing is ahead of the cache any more.
    fn answer(&mut self, outcome: &Result<Revision, Refusal>) {
        answer_all(self.jobs.pop_front().into_iter().flatten(), outcome);
        if self.outcomes.is_empty() {
            self.ahead = None;
        }
    }
}

fn answer_all(jobs: impl IntoIterator<Item = Decided>, outcome: &Result<Revision, Refusal>) {
    for (handed, refused) in jobs {
        handed.job.answer(match (outcome, refused) {
            // A refusal may rest on what its batch was about to write, so it stands only with the commit.
            (Ok(_), Some(refusal)) => Err(refusal),
            (outcome, _) => outcome.clone(),
        });
    }
}

/// The office that this controller holds at this moment.
fn held(office: &watch::Receiver<Option<Leadership>>) -> Option<Leadership> {
    office.borrow().clone().filter(|office| !office.is_lost())
}

fn not_leading() -> Refusal {
    Refusal::unavailable("this controller does not lead")
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;

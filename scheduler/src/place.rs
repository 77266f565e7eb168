//! Where a VM goes. The answer is the node with the highest score among those that keep every rule, the lowest id
//! among equals; it is what looking at every node would give, found by looking at few. The method is best-first
//! branch and bound (Land and Doig 1960) over the blocks of the index: a block is opened only while its bound can
//! still beat the best node found. Deliberately absent: queues, retries and commits, which are the controller's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::sync::Arc;

use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};

use crate::cells::Cells;
use crate::filter::{Ask, TraitsAnswers};
use crate::index::{Amounts, Entry};
use crate::reason::{Reason, ReasonKind};
use crate::score::Points;
use crate::shape::VmShape;
use crate::view::{Row, View};

/// The place for one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub vm: VmId,
    pub node: NodeId,
    /// The NUMA cells that it holds there, if it asks for some.
    pub cells: Cells,
    /// What it holds there; what the node's assignment must say.
    pub reservation: Reservation,
    pub score: i64,
    /// In the order of [`crate::score::TABLE`].
    pub points: Points,
}

/// Why no node does. Each node is counted once, under its first reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejection {
    pub nodes: u32,
    pub by_reason: BTreeMap<ReasonKind, Tally>,
    /// The reason that is not any node's own, such as a full shared pool.
    pub cluster: Option<Reason>,
}

/// How many nodes one reason rules out, and the one that lacks least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub nodes: u32,
    pub nearest: NodeId,
    pub nearest_name: Arc<str>,
    pub reason: Reason,
}

/// The place for a VM, or why there is none. The view is not changed.
pub fn place(view: &View, vm: &VmShape) -> Result<Placement, Rejection> {
    let ask = Ask::new(view, vm);
    search(&ask).ok_or_else(|| rejection(&ask))
}

/// As [`place`], without working out why not.
pub fn find(view: &View, vm: &VmShape) -> Option<Placement> {
    search(&Ask::new(view, vm))
}

/// As [`place`], on these slots alone.
pub(crate) fn place_among(view: &View, vm: &VmShape, slots: &[u32]) -> Result<Placement, Rejection> {
    let ask = Ask::new(view, vm);
    let rows = || slots.iter().filter_map(|slot| view.row(*slot));
    let mut judge = Judge { ask: &ask, traits: TraitsAnswers::new(&ask), best: None };
    rows().for_each(|row| judge.consider(&row.entry));
    let found = judge.placement().filter(|_| ask.cluster_reason().is_none());
    found.ok_or_else(|| rejection_among(&ask, rows()))
}

/// A VM of a batch that has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRejection {
    /// Its position in the batch.
    pub index: usize,
    pub rejection: Rejection,
}

/// Places for all or for none, in the order of the batch; with places for all, the view has them assigned. Every
/// VM is placed by the rules among those before it, priority first, then large before small.
pub fn place_all(view: &mut View, batch: &[Arc<VmShape>]) -> Result<Vec<Placement>, BatchRejection> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|i| {
        let size = &batch[*i].reservation;
        (Reverse((batch[*i].priority, size.memory_mib, size.vcpus)), *i)
    });
    let mut fork = view.clone();
    let mut places = vec![None; batch.len()];
    for index in order {
        let vm = &batch[index];
        let placement = place(&fork, vm).map_err(|rejection| BatchRejection { index, rejection })?;
        assign(&mut fork, &placement, vm);
        places[index] = Some(placement);
    }
    *view = fork;
    Ok(places.into_iter().flatten().collect())
}

/// Places each VM that has a place and assigns it in the view. Higher priority goes first, then the order of the
/// batch; the answers are in the order of the batch.
pub fn place_each(view: &mut View, batch: &[Arc<VmShape>]) -> Vec<Result<Placement, Rejection>> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|i| (Reverse(batch[*i].priority), *i));
    let mut answers: Vec<_> = batch.iter().map(|_| Err(Rejection::default())).collect();
    for index in order {
        let vm = &batch[index];
        let answer = place(view, vm);
        if let Ok(placement) = &answer {
            assign(view, placement, vm);
        }
        answers[index] = answer;
    }
    answers
}

pub(crate) fn assign(view: &mut View, place: &Placement, vm: &Arc<VmShape>) {
    view.assign_to(place.node, place.cells, vm.clone())
        .expect("a place is never on an unknown node or where the VM already is");
}

/// The best node so far.
struct Best {
    score: i64,
    points: Points,
    entry: Entry,
}

impl Best {
    /// Whether a score on this node is better: higher, or equal with a lower id.
    fn is_beaten_by(&self, score: i64, id: NodeId) -> bool {
        (score, Reverse(id)) > (self.score, Reverse(self.entry.id))
    }
}

fn search(ask: &Ask) -> Option<Placement> {
    if ask.cluster_reason().is_some() {
        return None;
    }
    let mut judge = Judge { ask, traits: TraitsAnswers::new(ask), best: None };
    if let Some(slots) = ask.candidates() {
        for slot in slots {
            if let Some(row) = ask.view.row(slot) {
                judge.consider(&row.entry);
            }
        }
    } else {
        judge.search_blocks();
    }
    judge.placement()
}

struct Judge<'a> {
    ask: &'a Ask<'a>,
    traits: TraitsAnswers<'a>,
    best: Option<Best>,
}

impl Judge<'_> {
    fn placement(self) -> Option<Placement> {
        let best = self.best?;
        let row = self.ask.view.row(best.entry.slot)?;
        Some(Placement {
            vm: self.ask.vm.id,
            node: best.entry.id,
            cells: row.choose_cells(self.ask.vm),
            reservation: self.ask.vm.reservation_on(row.shape.emulation),
            score: best.score,
            points: best.points,
        })
    }

    fn search_blocks(&mut self) {
        let blocks = self.ask.view.index().blocks();
        let weights = self.ask.view.weights();
        let mut open = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            let bounds = &block.bounds;
            let fits = bounds.traits.is_none_or(|traits| self.traits.of(traits).0);
            if fits && self.ask.may_have_room(bounds) {
                let limit = weights.total(&self.ask.limit(bounds));
                open.push((limit, Reverse(bounds.id_min), at));
            }
        }
        // Among equal bounds the lowest id comes first, so that a tie ends the search early.
        let mut open = BinaryHeap::from(open);
        while let Some((limit, Reverse(id_min), at)) = open.pop() {
            if self.best.as_ref().is_some_and(|best| !best.is_beaten_by(limit, id_min)) {
                // Blocks with the same bound and a higher id, or a lower bound, cannot win either.
                return;
            }
            for entry in blocks[at].entries.iter() {
                self.consider(entry);
            }
        }
    }

    fn consider(&mut self, entry: &Entry) {
        let (fits, emulation) = self.traits.of(entry.traits);
        if !fits {
            return;
        }
        let need: Amounts = self.ask.need(entry, emulation);
        if !self.ask.entry_fits(entry, &need) {
            return;
        }
        let points = self.ask.points(entry, &need);
        let score = self.ask.view.weights().total(&points);
        if self.best.as_ref().is_none_or(|best| best.is_beaten_by(score, entry.id)) {
            self.best = Some(Best { score, points, entry: *entry });
        }
    }
}

/// The nodes on which a VM fits, best first as [`place`] would take them: the same search, which goes on.
pub(crate) struct Ranked<'a> {
    ask: &'a Ask<'a>,
    traits: TraitsAnswers<'a>,
    /// Blocks by their bounds and entries by their scores; of equals the lowest id comes first, and of a block and
    /// an entry the block, since it may hold what is equal.
    open: BinaryHeap<Open>,
}

/// Bound or score, lowest id, slot of an entry, position of a block.
type Open = (i64, Reverse<NodeId>, Reverse<Option<u32>>, usize);

impl<'a> Ranked<'a> {
    pub(crate) fn new(ask: &'a Ask<'a>) -> Self {
        let mut ranked = Self { ask, traits: TraitsAnswers::new(ask), open: BinaryHeap::new() };
        if ask.cluster_reason().is_some() {
            return ranked;
        }
        if let Some(slots) = ask.candidates() {
            for slot in slots {
                if let Some(row) = ask.view.row(slot) {
                    ranked.consider(&row.entry);
                }
            }
            return ranked;
        }
        let mut open = Vec::new();
        for (at, block) in ask.view.index().blocks().iter().enumerate() {
            let bounds = &block.bounds;
            if bounds.traits.is_none_or(|traits| ranked.traits.of(traits).0) && ask.may_have_room(bounds) {
                let limit = ask.view.weights().total(&ask.limit(bounds));
                open.push((limit, Reverse(bounds.id_min), Reverse(None), at));
            }
        }
        ranked.open = open.into();
        ranked
    }

    fn consider(&mut self, entry: &Entry) {
        let (fits, emulation) = self.traits.of(entry.traits);
        let need = self.ask.need(entry, emulation);
        if fits && self.ask.entry_fits(entry, &need) {
            let score = self.ask.view.weights().total(&self.ask.points(entry, &need));
            self.open.push((score, Reverse(entry.id), Reverse(Some(entry.slot)), 0));
        }
    }
}

impl Iterator for Ranked<'_> {
    /// Slot and score.
    type Item = (u32, i64);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((score, _, Reverse(slot), at)) = self.open.pop() {
            if let Some(slot) = slot {
                return Some((slot, score));
            }
            for entry in self.ask.view.index().blocks()[at].entries.iter() {
                self.consider(entry);
            }
        }
        None
    }
}

/// Counts the first reason of each node.
pub(crate) fn rejection(ask: &Ask) -> Rejection {
    rejection_among(ask, ask.view.rows_by_id())
}

fn rejection_among<'a>(ask: &Ask, rows: impl Iterator<Item = &'a Row>) -> Rejection {
    let counted = tally(rows.map(|row| (row, ask.reasons(row).next())));
    Rejection { cluster: ask.cluster_reason(), ..counted }
}

/// Counts nodes by the reason that rules each out.
pub(crate) fn tally<'a>(nodes: impl IntoIterator<Item = (&'a Row, Option<Reason>)>) -> Rejection {
    let mut rejection = Rejection::default();
    for (row, reason) in nodes {
        rejection.nodes += 1;
        let Some(reason) = reason else { continue };
        let tally = rejection.by_reason.entry(reason.kind()).or_insert_with(|| Tally {
            nodes: 0,
            nearest: row.shape.id,
            nearest_name: row.shape.name.clone(),
            reason: reason.clone(),
        });
        tally.nodes += 1;
        if reason.lack() < tally.reason.lack() {
            (tally.nearest, tally.nearest_name, tally.reason) =
                (row.shape.id, row.shape.name.clone(), reason);
        }
    }
    rejection
}

impl Rejection {
    /// One sentence. Names of nodes are for operators only.
    pub fn summary(&self, with_names: bool) -> String {
        let mut parts: Vec<String> = self.cluster.iter().map(ToString::to_string).collect();
        if parts.is_empty() {
            parts = self.by_reason.iter().map(|(kind, tally)| tally.summary(*kind, with_names)).collect();
        }
        let nodes = match self.nodes {
            0 => return "the cluster has no node".into(),
            1 => "the only node".into(),
            nodes => format!("any of {nodes} nodes"),
        };
        format!("no place on {nodes}: {}", parts.join("; "))
    }
}

impl Tally {
    fn summary(&self, kind: ReasonKind, with_names: bool) -> String {
        let words = format!("{} {}", self.nodes, kind.words());
        let reason = self.reason.to_string();
        match with_names {
            true if reason == kind.words() => format!("{words} ({})", self.nearest_name),
            true => format!("{words} (nearest {}: {reason})", self.nearest_name),
            false => words,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary(false))
    }
}

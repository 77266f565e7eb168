//! The hard rules, one file each, and the question that they are asked with. There is one copy of every rule: the
//! search, the explanation and the histogram all run these functions. Rules about what many nodes have in common
//! are asked once per set of traits. Deliberately absent: preferences (score) and judging a finished plan (check).

mod bridges;
mod capacity;
mod cells;
pub(crate) mod groups;
mod isolation;
mod labels;
mod machine;
mod pin;
mod pools;
mod presence;
mod state;

use tamdao_model::{NodeId, PoolId, VmId};

use crate::cells::CellAsk;
use crate::index::{Amounts, Bounds, DIMENSIONS, DISK, Entry, MEMORY};
use crate::reason::Reason;
use crate::score::{self, Facts, Limits, Points, Scarcity};
use crate::shape::VmShape;
use crate::traits::Traits;
use crate::view::{Row, View};
use groups::GroupAsk;

/// A rule about what nodes have in common.
type TraitsRule = fn(&Ask, &Traits) -> Option<Reason>;
/// A rule about one node.
type NodeRule = fn(&Ask, &Row) -> Option<Reason>;

/// In the order of the first reason that counts.
const TRAITS_RULES: [TraitsRule; 7] = [
    machine::firmware,
    machine::tpm,
    machine::platform,
    bridges::bridges,
    pools::present,
    state::ready,
    state::cordoned,
];
const TRAITS_RULES_LATE: [TraitsRule; 1] = [pools::ready];
const NODE_RULES_EARLY: [NodeRule; 3] = [pin::pin, labels::required, labels::forbidden];
const NODE_RULES: [NodeRule; 8] = [
    presence::absent,
    isolation::alone,
    groups::required,
    capacity::count,
    pools::room,
    capacity::vcpus,
    capacity::memory,
    cells::room,
];

/// One VM asked about one view, with what is worth working out once.
pub(crate) struct Ask<'a> {
    pub(crate) view: &'a View,
    pub(crate) vm: &'a VmShape,
    pub(crate) groups: Vec<GroupAsk<'a>>,
    /// The least and the most that it needs on any node.
    pub(crate) least: Amounts,
    pub(crate) most: Amounts,
    /// The least that it needs of cells on any node.
    cells: Option<CellAsk>,
    /// Nodes that hold the VM already.
    pub(crate) homes: &'a [u32],
    /// What rules about one node must look at beyond capacity.
    pub(crate) needs_row: bool,
    scores_groups: bool,
    support_days: Vec<u32>,
    scarcity: Scarcity,
    best_apart: i64,
    best_together: i64,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(view: &'a View, vm: &'a VmShape) -> Self {
        Self::among(view, vm, view.home_slots(vm.id), &|_, slot| Some(slot))
    }

    /// The VM has lost its own places, and each member of its groups is where `place_of` says.
    pub(crate) fn after_loss(
        view: &'a View,
        vm: &'a VmShape,
        place_of: &dyn Fn(VmId, u32) -> Option<u32>,
    ) -> Self {
        Self::among(view, vm, &[], place_of)
    }

    fn among(
        view: &'a View,
        vm: &'a VmShape,
        homes: &'a [u32],
        place_of: &dyn Fn(VmId, u32) -> Option<u32>,
    ) -> Self {
        let groups = groups::asks(view, vm, place_of);
        let local = |id: PoolId| view.pool(id).is_none_or(|pool| pool.shared.is_none());
        let disk = |all: bool| {
            let disks = vm.disks.iter().filter(|d| local(d.pool) && (all || d.on.is_none()));
            disks.map(|d| d.size_mib).sum::<u64>()
        };
        let vcpus = u64::from(vm.reservation.vcpus);
        let memory = vm.reservation.memory_mib;
        let needs_row = vm.pin.is_some()
            || !vm.labels.is_empty()
            || !vm.forbidden_labels.is_empty()
            || !vm.disks.is_empty()
            || !homes.is_empty()
            || vm.cells > 0
            || vm.isolation.is_some()
            || view.has_isolation()
            || groups.iter().any(|g| g.rule.required);
        let scores_groups = !groups.is_empty();
        let (best_apart, best_together) = groups::best(view, &groups);
        Self {
            view,
            vm,
            least: [vcpus, memory, disk(false)],
            most: [vcpus, memory + vm.emulation_extra_mib, disk(true)],
            cells: vm.cell_ask(false),
            homes,
            needs_row,
            scores_groups,
            support_days: view.support_days().collect(),
            scarcity: score::scarcity(view.index().sums()),
            best_apart,
            best_together,
            groups,
        }
    }

    /// Why no node can do, whatever its state.
    pub(crate) fn cluster_reason(&self) -> Option<Reason> {
        pin::known(self).or_else(|| pools::shared_room(self))
    }

    /// What the VM needs on a node.
    pub(crate) fn need(&self, entry: &Entry, emulation: bool) -> Amounts {
        self.need_on(entry.id, emulation)
    }

    pub(crate) fn need_on(&self, node: NodeId, emulation: bool) -> Amounts {
        let mut need = self.least;
        need[MEMORY] = self.vm.reservation_on(emulation).memory_mib;
        if self.most[DISK] != self.least[DISK] {
            let here = self.vm.disks.iter().filter(|d| d.on == Some(node));
            need[DISK] = self.most[DISK].saturating_sub(here.map(|d| d.size_mib).sum());
        }
        need
    }

    /// Whether nodes with these traits may do.
    pub(crate) fn traits_fit(&self, traits: &Traits) -> bool {
        TRAITS_RULES.iter().chain(&TRAITS_RULES_LATE).all(|rule| rule(self, traits).is_none())
    }

    /// Whether a node of fitting traits may do. Capacity is asked of the entry first, because it is at hand.
    pub(crate) fn entry_fits(&self, entry: &Entry, need: &Amounts) -> bool {
        let room = capacity::vcpus_of(entry, need).is_none()
            && capacity::memory_of(entry, need).is_none()
            && capacity::count_of(entry).is_none()
            && self.cells.is_none_or(|cells| cells.may_fit(&entry.cells));
        room && (!self.needs_row || self.view.row(entry.slot).is_some_and(|row| self.row_fits(row)))
    }

    /// Whether a row of fitting traits, which need not be the view's own, keeps every rule about one node.
    pub(crate) fn row_fits(&self, row: &Row) -> bool {
        NODE_RULES_EARLY.iter().chain(&NODE_RULES).all(|rule| rule(self, row).is_none())
    }

    /// Whether a rule about other VMs of the same node or of its groups may speak against a node with room.
    pub(crate) fn is_wary(&self) -> (bool, bool) {
        let isolated = self.vm.isolation.is_some() || self.view.has_isolation();
        (isolated, self.groups.iter().any(|g| g.rule.required))
    }

    /// Every rule that a node does not keep, structural ones first.
    pub(crate) fn reasons(&self, row: &Row) -> impl Iterator<Item = Reason> {
        let traits = self.view.traits().get(row.entry.traits);
        let of_traits = move |rules: &'static [TraitsRule]| {
            traits.into_iter().flat_map(move |traits| rules.iter().filter_map(move |rule| rule(self, traits)))
        };
        let of_node = move |rules: &'static [NodeRule]| rules.iter().filter_map(move |rule| rule(self, row));
        of_node(&NODE_RULES_EARLY)
            .chain(of_traits(&TRAITS_RULES))
            .chain(of_traits(&TRAITS_RULES_LATE))
            .chain(of_node(&NODE_RULES))
    }

    /// The points of a node on which the VM fits.
    pub(crate) fn points(&self, entry: &Entry, need: &Amounts) -> Points {
        let mut facts = Facts::new(entry, need, self.scarcity, self.support(entry.support));
        if self.scores_groups
            && let Some(row) = self.view.row(entry.slot)
        {
            (facts.apart, facts.together) = groups::points(self, row);
        }
        facts.points()
    }

    /// At least the points of every entry of a block on which the VM fits.
    pub(crate) fn limit(&self, bounds: &Bounds) -> Points {
        let support = self.support(bounds.support_max);
        let mut limits = Limits::new(bounds, &self.least, &self.most, &self.scarcity, support);
        limits.apart = self.best_apart;
        limits.together = self.best_together;
        limits.points()
    }

    /// Whether a block may hold a node with room.
    pub(crate) fn may_have_room(&self, bounds: &Bounds) -> bool {
        (0..DIMENSIONS).all(|d| bounds.free_max[d] >= self.least[d])
            && self.cells.is_none_or(|cells| cells.may_fit(&bounds.cells_max))
    }

    /// How late a day is among the days on which the cluster's support ends: the last has all points.
    fn support(&self, day: u32) -> i64 {
        let later = self.support_days.len().saturating_sub(1);
        if later == 0 {
            return score::POINTS;
        }
        let rank = self.support_days.partition_point(|d| *d < day);
        i64::try_from(rank.min(later)).unwrap_or(0) * score::POINTS / i64::try_from(later).unwrap_or(1)
    }

    /// The shortest list that every fitting node is on, if a rule gives one.
    pub(crate) fn candidates(&self) -> Option<Vec<u32>> {
        let pinned = self.vm.pin.map(|id| self.view.slot(id).into_iter().collect::<Vec<_>>());
        let labelled = || {
            let lists = self.vm.labels.iter().map(|(key, value)| self.view.labelled(key, value));
            // A label that no node has leaves no candidate.
            let shortest = lists.min_by_key(|list| list.map_or(0, |list| list.len()))?;
            Some(shortest.map(|list| list.iter().copied().collect()).unwrap_or_default())
        };
        pinned.or_else(|| [labelled(), groups::candidates(self)].into_iter().flatten().min_by_key(Vec::len))
    }
}

/// What the rules about traits say of each set, asked once.
pub(crate) struct TraitsAnswers<'a> {
    ask: &'a Ask<'a>,
    /// For each set, once asked: whether it fits, and whether it emulates.
    known: Vec<Option<(bool, bool)>>,
}

impl<'a> TraitsAnswers<'a> {
    pub(crate) fn new(ask: &'a Ask<'a>) -> Self {
        Self { ask, known: vec![None; ask.view.traits().len()] }
    }

    pub(crate) fn of(&mut self, number: u32) -> (bool, bool) {
        let ask = self.ask;
        let Some(known) = self.known.get_mut(number as usize) else { return (false, false) };
        *known.get_or_insert_with(|| {
            let traits = ask.view.traits().get(number);
            traits.map_or((false, false), |traits| (ask.traits_fit(traits), traits.emulation))
        })
    }
}

//! Placing under the failover guarantee: what would leave a protected VM without a place after a guarded loss is not
//! placed. Its invariant: with the answers carried out no guarded loss leaves out more VMs than it did before, so what
//! was broken from outside may stay so and holds nobody up who does not worsen it.
//!
//! The guarantee is asked of the engine as a whole, [`Guard::unborne`], for each half of a batch that breaks it; that is
//! exact and costs a plan for every guarded loss. Deliberately absent: how the engine proves it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tamdao_scheduler::place::{find, place_each};
use tamdao_scheduler::plan::Guard;
use tamdao_scheduler::survive::{Loss, Survival};
use tamdao_scheduler::{NodeShape, Placement, Rejection, View, VmShape};

/// Questions about the guarantee in one pass: a pass must stay short, and whom it did not come to is asked in the next.
const QUESTIONS: usize = 64;
/// Nodes tried for one VM, the best first.
const ALTERNATIVES: usize = 4;

/// What becomes of one VM of a batch.
#[derive(Debug, Clone)]
pub enum Answer {
    Placed(Placement),
    /// No node keeps every rule.
    Rejected(Rejection),
    /// With it this loss would leave out so many VMs.
    Unguarded {
        loss: Loss,
        left_out: usize,
    },
    /// Its turn did not come.
    Later,
}

/// Places each VM that has a place, in the order of the batch within a priority. The picture is not changed.
pub fn place(picture: &View, guard: &Guard, batch: &[Arc<VmShape>]) -> Vec<Answer> {
    let mut fork = picture.clone();
    if guard.is_empty() {
        return answers(place_each(&mut fork, batch));
    }
    let before = guard.unborne(picture).into_iter().map(|survival| (survival.loss, survival.left_out.len()));
    let mut turn = Turn { guard, before: before.collect(), questions: QUESTIONS };
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(batch[*i].priority), *i));
    let ordered: Vec<Arc<VmShape>> = order.iter().map(|i| batch[*i].clone()).collect();
    let mut all: Vec<Answer> = batch.iter().map(|_| Answer::Later).collect();
    for (i, answer) in order.into_iter().zip(turn.place(&mut fork, &ordered)) {
        all[i] = answer;
    }
    all
}

fn answers(placed: Vec<Result<Placement, Rejection>>) -> Vec<Answer> {
    placed.into_iter().map(|answer| answer.map_or_else(Answer::Rejected, Answer::Placed)).collect()
}

struct Turn<'a> {
    guard: &'a Guard,
    /// How many VMs each guarded loss leaves out already, where any.
    before: BTreeMap<Loss, usize>,
    questions: usize,
}

impl Turn<'_> {
    /// All at once if the guarantee bears it, else each half by itself.
    fn place(&mut self, view: &mut View, batch: &[Arc<VmShape>]) -> Vec<Answer> {
        let mut fork = view.clone();
        let placed = place_each(&mut fork, batch);
        if placed.iter().all(Result::is_err) {
            return answers(placed);
        }
        match self.worsened(&fork) {
            Some(None) => {
                *view = fork;
                answers(placed)
            }
            None => batch.iter().map(|_| Answer::Later).collect(),
            Some(Some(survival)) if batch.len() == 1 => vec![self.elsewhere(view, &batch[0], survival)],
            Some(Some(_)) => {
                let (first, second) = batch.split_at(batch.len() / 2);
                let mut all = self.place(view, first);
                all.extend(self.place(view, second));
                all
            }
        }
    }

    /// The next best nodes of a VM whose best one breaks the guarantee.
    fn elsewhere(&mut self, view: &mut View, vm: &Arc<VmShape>, first: Survival) -> Answer {
        // Nodes that were tried are left out by cordoning them, in a fork that is for choosing only.
        let mut choice = view.clone();
        for _ in 0..ALTERNATIVES {
            let Some(placement) = find(&choice, vm) else { break };
            let mut fork = view.clone();
            if fork.assign(placement.node, vm.clone()).is_err() {
                break;
            }
            match self.worsened(&fork) {
                Some(None) => {
                    *view = fork;
                    return Answer::Placed(placement);
                }
                None => return Answer::Later,
                Some(Some(_)) => {}
            }
            let Some(shape) = choice.node(placement.node).cloned() else { break };
            choice.set_node(NodeShape { cordoned: true, ..shape });
        }
        Answer::Unguarded { loss: first.loss, left_out: first.left_out.len() }
    }

    /// The first guarded loss that would leave out more VMs than before; none at all when there are no questions left.
    fn worsened(&mut self, view: &View) -> Option<Option<Survival>> {
        self.questions = self.questions.checked_sub(1)?;
        let mut unborne = self.guard.unborne(view).into_iter();
        Some(
            unborne.find(|survival| {
                survival.left_out.len() > self.before.get(&survival.loss).copied().unwrap_or(0)
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use tamdao_scheduler::text::Cluster;

    use super::*;

    /// What becomes of the wanted VMs of a cluster in the engine's text.
    fn told(guard: &Guard, cluster: &str) -> Vec<String> {
        let cluster = Cluster::parse(&format!("tamdao-cluster 1\n{cluster}")).unwrap();
        let view = cluster.view().unwrap();
        let name = |id| view.node(id).unwrap().name.to_string();
        let answers = place(&view, guard, &cluster.wants);
        let told = cluster.wants.iter().zip(answers).map(|(vm, answer)| {
            let what = match answer {
                Answer::Placed(placement) => name(placement.node),
                Answer::Rejected(rejection) => rejection.to_string(),
                Answer::Unguarded { loss: Loss::Node(node), left_out } => {
                    format!("{} leaves out {left_out}", name(node))
                }
                Answer::Unguarded { loss: Loss::Domain { key, value }, left_out } => {
                    format!("{key} {value} leaves out {left_out}")
                }
                Answer::Later => "later".into(),
            };
            format!("{}: {what}", vm.name)
        });
        told.collect()
    }

    /// Two nodes of 8 GiB hold half of it under the guarantee, and four VMs of 3 GiB without.
    const PAIR: &str = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
        want a vcpus=1 memory=3072 protected\nwant b vcpus=1 memory=3072 protected\n\
        want c vcpus=1 memory=3072 protected priority=9\nwant d vcpus=1 memory=3072 protected\n";

    #[test]
    fn what_fits_beside_the_guarantee_is_placed_by_priority_and_the_rest_is_told_why() {
        let open = told(&Guard::default(), PAIR);
        assert_eq!(open, ["a: n1", "b: n2", "c: n1", "d: n2"]);
        assert_eq!(
            told(&Guard::by_node(), PAIR),
            ["a: n1", "b: n1 leaves out 1", "c: n1", "d: n1 leaves out 1"]
        );
    }

    #[test]
    fn a_vm_that_is_not_protected_takes_no_held_room() {
        let full = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
            vm x on=n1 vcpus=1 memory=6144 protected\nwant a vcpus=1 memory=6144\nwant b vcpus=1 memory=1024\n";
        assert_eq!(told(&Guard::by_node(), full), ["a: n1 leaves out 1", "b: n1"]);
    }

    #[test]
    fn another_node_is_tried_when_the_best_would_break_it() {
        // Of the two empty nodes n1 is the first, and the only one that could take x after the loss of n2.
        let labelled = "node n1 vcpus=16 memory=8192 label.disk=ssd\nnode n2 vcpus=16 memory=8192 label.disk=ssd\n\
            node n3 vcpus=16 memory=8192\nvm x on=n2 vcpus=1 memory=6144 label.disk=ssd protected\n\
            want a vcpus=1 memory=4096\n";
        assert_eq!(told(&Guard::default(), labelled), ["a: n1"]);
        assert_eq!(told(&Guard::by_node(), labelled), ["a: n3"]);
    }

    #[test]
    fn a_rack_is_guarded_as_a_whole() {
        let racks = "node n1 vcpus=16 memory=4096 domain.rack=r1\nnode n2 vcpus=16 memory=4096 domain.rack=r1\n\
            node n3 vcpus=16 memory=4096 domain.rack=r2\n\
            vm x on=n1 vcpus=1 memory=3072 protected\nwant a vcpus=1 memory=2048 protected\n";
        let rack = Guard { nodes: false, keys: ["rack".to_owned()].into() };
        assert_eq!(told(&Guard::by_node(), racks), ["a: n2"]);
        assert_eq!(told(&rack, racks), ["a: rack r1 leaves out 1"]);
    }

    #[test]
    fn what_is_broken_already_holds_nobody_up_who_does_not_worsen_it() {
        let broken = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
            vm x on=n1 vcpus=1 memory=8192 protected\nvm y on=n2 vcpus=1 memory=1024\n\
            want a vcpus=1 memory=1024\nwant b vcpus=1 memory=1024 protected\n";
        assert_eq!(told(&Guard::by_node(), broken), ["a: n2", "b: n2 leaves out 1"]);
    }
}

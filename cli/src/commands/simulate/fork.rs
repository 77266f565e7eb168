//! The fork that a question is asked of: a cluster read from a file or from the live cluster, with the what-ifs done to
//! it in their order. Its invariant: the view is what the engine would see then, and the places that what-ifs led to are
//! the engine's own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;

use anyhow::Result;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::capacity::{Agency, Flavor};
use tamdao_scheduler::place::{Placement, Rejection, place, place_each};
use tamdao_scheduler::survive::{Loss, survive};
use tamdao_scheduler::text::Cluster;
use tamdao_scheduler::{View, VmShape};
use uuid::Uuid;

use super::what_if::{WhatIf, WhatIfError, unknown};
use crate::app::App;
use crate::args::ForkArgs;
use crate::commands::debug::live;
use crate::problem::Problem;
use crate::quantity::count;

/// A VM that asked for a place, and what it got.
pub struct Asked {
    pub vm: Arc<VmShape>,
    /// What many like it are called together: the flavor of VMs that were added.
    pub kind: Option<Arc<str>>,
    pub answer: Result<Placement, Rejection>,
}

/// See the module.
pub struct Fork {
    /// As it was before any what-if.
    pub before: View,
    pub view: View,
    pub flavors: Vec<Flavor>,
    pub agencies: Vec<Agency>,
    /// What asks for a place by the file, in its order.
    pub wants: Vec<Arc<VmShape>>,
    /// What asked for one because of a what-if.
    pub asked: Vec<Asked>,
    names: BTreeMap<VmId, Arc<str>>,
}

/// The cluster that is meant, with the what-ifs done.
pub async fn load(app: &App, args: &ForkArgs) -> Result<Fork> {
    let (text, source) = match &args.cluster {
        None => (live(app).await?, "the live cluster".to_owned()),
        Some(path) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            (text, "stdin".to_owned())
        }
        Some(path) => {
            let source = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|error| Problem::usage(format!("{source} cannot be read: {error}")))?;
            (text, source)
        }
    };
    let cluster = Cluster::parse(&text).map_err(|error| {
        Problem::usage(format!("{source}: {error}"))
            .hint("the format is described in docs/operations/cluster-text-format.md")
    })?;
    let mut fork = Fork::new(cluster).map_err(|error| Problem::usage(format!("{source}: {error}")))?;
    for text in &args.what_ifs {
        let what_if = WhatIf::read(text, &fork)
            .map_err(|error| Problem::usage(format!("--what-if '{text}': {error}")))?;
        let told = fork.change(what_if);
        app.output.note(&format!("what if {text}: {told}"));
    }
    Ok(fork)
}

impl Fork {
    fn new(cluster: Cluster) -> Result<Self, tamdao_scheduler::ViewError> {
        let view = cluster.view()?;
        let placed = cluster.vms.iter().map(|(vm, _)| vm);
        let names = placed.chain(&cluster.wants).map(|vm| (vm.id, vm.name.clone())).collect();
        let Cluster { wants, flavors, agencies, .. } = cluster;
        Ok(Self { before: view.clone(), view, flavors, agencies, wants, asked: Vec::new(), names })
    }

    /// Does one change, and says what it led to.
    fn change(&mut self, what_if: WhatIf) -> String {
        match what_if {
            WhatIf::Down(loss) => self.lose(loss),
            WhatIf::Cordon { nodes, cordoned } => {
                let shapes: Vec<_> = nodes.iter().filter_map(|id| self.view.node(*id)).cloned().collect();
                for mut shape in shapes {
                    shape.cordoned = cordoned;
                    self.view.set_node(shape);
                }
                let word = if cordoned { "cordoned" } else { "uncordoned" };
                format!("{} {word}", count(nodes.len(), "node"))
            }
            WhatIf::Add { count, flavor } => self.add(count, &flavor),
        }
    }

    /// Takes nodes out, with the restarts that would follow.
    fn lose(&mut self, loss: Loss) -> String {
        let survival = survive(&self.view, loss);
        let lost: BTreeMap<VmId, Arc<VmShape>> = survival
            .lost
            .iter()
            .filter_map(|node| self.view.remove_node(*node))
            .flatten()
            .map(|vm| (vm.id, vm))
            .collect();
        self.asked.retain(|one| !lost.contains_key(&one.vm.id));
        let left_out = survival.left_out.iter().map(|(vm, why)| (*vm, Err(why.clone())));
        for (id, answer) in survival.plan.iter().map(|place| (place.vm, Ok(*place))).chain(left_out) {
            if let Some(vm) = lost.get(&id) {
                self.take(Asked { vm: vm.clone(), kind: None, answer });
            }
        }
        format!(
            "{} lost; of its protected VMs {} restarted elsewhere and {} without a place, {} not protected",
            count(survival.lost.len(), "node"),
            survival.plan.len(),
            survival.left_out.len(),
            survival.unprotected.len(),
        )
    }

    fn add(&mut self, count: u32, flavor: &Arc<VmShape>) -> String {
        let (mut next, mut placed) = (0_u128, 0);
        for number in 1..=count {
            next += 1;
            while self.names.contains_key(&VmId(Uuid::from_u128(next))) {
                next += 1;
            }
            let mut vm = (**flavor).clone();
            vm.id = VmId(Uuid::from_u128(next));
            vm.name = format!("{}-{number}", flavor.name).into();
            self.names.insert(vm.id, vm.name.clone());
            let vm = Arc::new(vm);
            let answer = place(&self.view, &vm);
            placed += u32::from(answer.is_ok());
            self.take(Asked { vm, kind: Some(flavor.name.clone()), answer });
        }
        format!("{placed} of {count} have a place")
    }

    /// Gives every VM that the file says waits its place, as the placer would.
    pub fn place_wants(&mut self) {
        let wants = std::mem::take(&mut self.wants);
        let answers = place_each(&mut self.view, &wants);
        let answered = wants.into_iter().zip(answers);
        self.asked.extend(answered.map(|(vm, answer)| Asked { vm, kind: None, answer }));
    }

    /// Notes an answer, and puts the VM where it says.
    fn take(&mut self, asked: Asked) {
        if let Ok(place) = &asked.answer {
            // The engine gave the place in this very view, so it can be taken.
            let _ = self.view.assign(place.node, asked.vm.clone());
        }
        self.asked.push(asked);
    }

    /// The fork as a file.
    pub fn text(&self) -> String {
        let refused = self.asked.iter().filter(|one| one.answer.is_err()).map(|one| &one.vm);
        let wants: Vec<_> = refused.chain(&self.wants).cloned().collect();
        let (flavors, agencies) = (self.flavors.clone(), self.agencies.clone());
        Cluster { flavors, agencies, ..Cluster::of(&self.view, &wants) }.to_string()
    }

    pub fn flavor(&self, name: &str) -> Result<&Flavor, WhatIfError> {
        let found = self.flavors.iter().find(|flavor| &*flavor.shape.name == name);
        found.ok_or_else(|| unknown("flavor", name, self.flavors.iter().map(|flavor| &*flavor.shape.name)))
    }

    /// Whether a node stands in this failure domain, perhaps in others too.
    pub fn has_value(&self, node: NodeId, key: &str, value: &str) -> bool {
        let values = self.view.node(node).and_then(|node| node.domains.get(key));
        values.is_some_and(|values| values.contains(value))
    }

    /// The nodes that such a loss takes: those that stand in the failure domain and in no other of its key.
    pub fn lost_with(&self, loss: &Loss) -> BTreeSet<NodeId> {
        match loss {
            Loss::Node(node) => BTreeSet::from([*node]),
            Loss::Domain { key, value } => {
                let alone = BTreeSet::from([value.clone()]);
                let nodes = self.view.nodes().filter(|node| node.domains.get(key) == Some(&alone));
                nodes.map(|node| node.id).collect()
            }
        }
    }

    /// What people call a node, also one that a what-if has taken out.
    pub fn node(&self, id: NodeId) -> String {
        let node = self.view.node(id).or_else(|| self.before.node(id));
        node.map_or_else(|| id.to_string(), |node| node.name.to_string())
    }

    /// What people call a VM.
    pub fn vm(&self, id: VmId) -> String {
        self.names.get(&id).map_or_else(|| id.to_string(), ToString::to_string)
    }
}

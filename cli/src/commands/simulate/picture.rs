//! How full the nodes are before and after, as a table of bars and as figures for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use tamdao_model::NodeId;
use tamdao_scheduler::View;
use tamdao_scheduler::view::NodeUse;

use super::fork::Fork;
use crate::app::App;
use crate::bar::{LEGEND, bar};
use crate::output::{Cell, Table, Tone};

/// Nodes that are drawn unless all are wanted.
const DRAWN: usize = 40;

/// One node's use before and after, for programs. Absent on a side where the node is not there.
#[derive(Serialize)]
pub struct NodePicture {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Held>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Held>,
}

/// What is held of what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    pub vms: usize,
    pub vcpus: u64,
    pub vcpus_used: u64,
    pub memory_mib: u64,
    pub memory_used_mib: u64,
}

impl Held {
    fn on(view: &View, node: NodeId) -> Option<Self> {
        let NodeUse { vcpus, vcpus_used, memory_mib, memory_used_mib, .. } = view.node_use(node)?;
        Some(Self { vms: view.vms_on(node).len(), vcpus, vcpus_used, memory_mib, memory_used_mib })
    }

    /// All nodes together.
    pub fn of(view: &View) -> Self {
        view.nodes().filter_map(|node| Self::on(view, node.id)).fold(Self::default(), |sum, one| Self {
            vms: sum.vms + one.vms,
            vcpus: sum.vcpus + one.vcpus,
            vcpus_used: sum.vcpus_used + one.vcpus_used,
            memory_mib: sum.memory_mib + one.memory_mib,
            memory_used_mib: sum.memory_used_mib + one.memory_used_mib,
        })
    }
}

/// Every node that is there before or after, by name.
pub fn nodes(fork: &Fork) -> Vec<NodePicture> {
    let all: BTreeMap<(String, NodeId), ()> = [&fork.before, &fork.view]
        .into_iter()
        .flat_map(|view| view.nodes())
        .map(|node| ((node.name.to_string(), node.id), ()))
        .collect();
    let picture = |(node, id): (String, NodeId)| NodePicture {
        node,
        before: Held::on(&fork.before, id),
        after: Held::on(&fork.view, id),
    };
    all.into_keys().map(picture).collect()
}

/// Draws the nodes that change, or all when wide, and the whole cluster under them.
pub fn draw(app: &App, fork: &Fork) -> Result<(), anyhow::Error> {
    let nodes = nodes(fork);
    let changed: Vec<&NodePicture> =
        nodes.iter().filter(|one| app.output.is_wide() || one.before != one.after).collect();
    let limit = if app.output.is_wide() { usize::MAX } else { DRAWN };
    let mut rows: Vec<Vec<Cell>> =
        changed.iter().take(limit).map(|one| row(&one.node, one.before, one.after)).collect();
    let left = nodes.len() - rows.len();
    let (before, after) = (Held::of(&fork.before), Held::of(&fork.view));
    rows.push(row("all nodes", Some(before), Some(after)));
    let headers = vec!["NODE", "CPU", "MEMORY", "VMS"];
    app.output.section(&format!("Nodes before and after ({LEGEND})"), &Table { headers, rows })?;
    match left {
        0 => {}
        _ if changed.len() > limit => {
            app.output.note(&format!("{left} nodes are not drawn; -o wide draws all"))
        }
        1 => app.output.note("1 node stays as it is"),
        _ => app.output.note(&format!("{left} nodes stay as they are")),
    }
    Ok(())
}

fn row(name: &str, before: Option<Held>, after: Option<Held>) -> Vec<Cell> {
    let (old, new) = (before.unwrap_or_default(), after.unwrap_or_default());
    // A node that goes is drawn against what it had, so that its bar empties.
    let capacity = |side: fn(&Held) -> u64| if after.is_some() { side(&new) } else { side(&old) };
    let vms = if old.vms == new.vms { new.vms.to_string() } else { format!("{} > {}", old.vms, new.vms) };
    let name = match after {
        Some(_) => Cell::from(name),
        None => Cell::toned(format!("{name} (down)"), Tone::Bad),
    };
    vec![
        name,
        Cell::from(bar(old.vcpus_used, new.vcpus_used, capacity(|held| held.vcpus))),
        Cell::from(bar(old.memory_used_mib, new.memory_used_mib, capacity(|held| held.memory_mib))),
        Cell::from(vms),
    ]
}

//! The plan of a rolling update, as people read it.

use anyhow::Result;
use tamdao_proto::v1::DrainStep;

use super::Plan;
use crate::app::App;
use crate::commands::drain::{name, time, way};
use crate::output::{Cell, Table};
use crate::quantity::{count, mib};

/// Moves that are shown, unless all are wanted.
const LINES: usize = 40;

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.groups.is_empty()
    }

    /// How many nodes have a turn.
    pub fn nodes(&self) -> usize {
        self.under_way.len() + self.groups.iter().map(|group| group.nodes.len()).sum::<usize>()
    }

    pub fn show(&self, app: &App) -> Result<()> {
        if app.output.is_machine() {
            return app.output.value(self);
        }
        let rows = self.groups.iter().enumerate().map(|(at, group)| {
            let moves: Vec<&DrainStep> = group.plan.steps.iter().filter(|step| step.round > 0).collect();
            vec![
                Cell::from(at + 1),
                Cell::from(group.nodes.join(", ")),
                Cell::from(moves.len()),
                Cell::from(mib(moves.iter().map(|step| step.copies_mib).sum())),
                Cell::from(time(group.plan.expected_s)),
            ]
        });
        let headers = vec!["GROUP", "DOWN TOGETHER", "MOVES", "COPIES", "TIME"];
        app.output.table(&Table { headers, rows: rows.collect() }, "no node waits for its turn")?;
        self.show_moves(app)?;
        let why = |why: &[String]| Cell::from(why.join("; "));
        let rows = self.left_out.iter().map(|one| vec![Cell::from(&one.node), why(&one.why)]);
        app.output.section("Left out", &Table { headers: vec!["NODE", "WHY"], rows: rows.collect() })?;
        if !self.under_way.is_empty() {
            app.output.note(&format!("what was begun goes on first: {}", self.under_way.join(", ")));
        }
        if !self.done.is_empty() {
            app.output.note(&format!("done already: {}", self.done.join(", ")));
        }
        if !self.groups.is_empty() {
            let groups = count(self.groups.len(), "group");
            app.output.note(&format!("{groups}; each gets back what it had before the next one begins"));
        }
        Ok(())
    }

    fn show_moves(&self, app: &App) -> Result<()> {
        let limit = if app.output.is_wide() { usize::MAX } else { LINES };
        let groups = self.groups.iter().enumerate();
        let steps: Vec<(usize, &DrainStep)> =
            groups.flat_map(|(at, group)| group.plan.steps.iter().map(move |step| (at + 1, step))).collect();
        let rows = steps.iter().take(limit).map(|(group, step)| {
            vec![
                Cell::from(group),
                Cell::from(&step.node),
                Cell::from(name(step)),
                Cell::from(&step.target),
                way(step),
                Cell::from(if step.round > 0 { time(step.expected_s) } else { String::new() }),
                Cell::from(&step.why),
            ]
        });
        let headers = vec!["GROUP", "NODE", "VM", "TO", "WAY", "TIME", "WHY"];
        app.output.section("What becomes of VMs", &Table { headers, rows: rows.collect() })?;
        if steps.len() > limit {
            app.output.note(&format!("{} more lines are shown by -o wide", steps.len() - limit));
        }
        Ok(())
    }
}

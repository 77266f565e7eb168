//! How placement groups are shown.

use tamdao_proto::v1::{PlacementGroup, PlacementRule, PlacementRuleKind};

use super::{View, head, headers, tail};
use crate::output::Cell;
use crate::quantity::share;

impl View for PlacementGroup {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["PLACED", "RULES"], &[], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let mut cells = head(self);
        cells.push(Cell::from(placed(self)));
        cells.push(Cell::from(rules(self).join("; ")));
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let mut fields = vec![("VMs", Cell::from(format!("{} placed", placed(self))))];
        fields.extend(rules(self).into_iter().map(|rule| ("Rule", Cell::from(rule))));
        fields
    }
}

fn placed(group: &PlacementGroup) -> String {
    let status = group.status.clone().unwrap_or_default();
    share(status.vms_placed, status.vms)
}

fn rules(group: &PlacementGroup) -> Vec<String> {
    group.spec.iter().flat_map(|spec| &spec.rules).map(rule).collect()
}

/// A rule as people say it: "at most 1 on one node", "all in one rack, if possible".
fn rule(rule: &PlacementRule) -> String {
    let place = match rule.by.as_str() {
        "" | "node" => "on one node".to_owned(),
        key => format!("in one {key}"),
    };
    let what = match rule.kind() {
        PlacementRuleKind::Apart => format!("at most {} {place}", rule.at_most.max(1)),
        PlacementRuleKind::Together => format!("all {place}"),
        PlacementRuleKind::Unspecified => format!("? {place}"),
    };
    if rule.preferred { format!("{what}, if possible") } else { what }
}

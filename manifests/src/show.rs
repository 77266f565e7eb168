//! A plan as text, as users of Terraform know it: what is added, changed, replaced and removed, each field old and new,
//! and below it what that means. The first sign of a line says what it is about; colours are the caller's.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value as Json;

use crate::compare::Difference;
use crate::plan::{Action, Change, Plan, Preview};

/// What would not fit is shown so often; a program gets all.
const SHOWN: usize = 20;

/// The plan for people.
pub fn show(plan: &Plan) -> String {
    let mut text = String::new();
    for change in plan.changes.iter().filter(|change| change.action != Action::Nothing) {
        one(change, &mut text);
    }
    if plan.is_empty() {
        let _ = writeln!(text, "No changes. The cloud is as the manifest of stack {} says.", plan.stack);
    } else {
        let summary = plan.summary;
        let _ = writeln!(
            text,
            "Plan: {} to add, {} to change, {} to destroy.",
            summary.add, summary.change, summary.destroy
        );
    }
    if let Some(preview) = &plan.preview {
        previewed(preview, &mut text);
    }
    text.push_str(&outputs(&plan.outputs));
    text
}

/// The outputs for people; nothing when there are none.
pub fn outputs(outputs: &BTreeMap<String, Json>) -> String {
    let mut text = String::new();
    if !outputs.is_empty() {
        text.push_str("\nOutputs:\n");
    }
    let width = outputs.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, value) in outputs {
        let _ = writeln!(text, "  {name:width$} = {}", json(value));
    }
    text
}

/// Whether it would fit: one sentence, and below it what would not.
fn previewed(preview: &Preview, text: &mut String) {
    let waiting = preview.unfit.iter().filter(|one| !one.refused).count();
    let (refused, all) = (preview.unfit.len() - waiting, preview.vms);
    let vms = if all == 1 { "VM" } else { "VMs" };
    let with = match preview.guarded.as_slice() {
        [] => String::new(),
        guarded => format!(", with room kept for the loss of any one {}", guarded.join(" or ")),
    };
    let _ = match (waiting, refused, all) {
        (0, 0, 0) => writeln!(text, "Preview: within all quotas."),
        (0, 0, all) => writeln!(text, "Preview: a place for {all} {vms} now{with}, within all quotas."),
        (waiting, 0, all) => {
            writeln!(text, "Preview: {waiting} of {all} {vms} would wait for a place{with}:")
        }
        (0, refused, _) => writeln!(text, "Preview: {refused} would be refused:"),
        (waiting, refused, all) => {
            writeln!(text, "Preview: {refused} would be refused, and {waiting} of {all} {vms} would wait:")
        }
    };
    for one in preview.unfit.iter().take(SHOWN) {
        let _ = writeln!(text, "  {}: {}", one.address, one.message);
    }
    if preview.unfit.len() > SHOWN {
        let _ = writeln!(text, "  and {} more", preview.unfit.len() - SHOWN);
    }
    if !preview.unknown.is_empty() {
        let _ = writeln!(text, "  known only after apply: {}", preview.unknown.join(", "));
    }
}

fn one(change: &Change, text: &mut String) {
    let (sign, word) = match change.action {
        Action::Create => ("  +", "will be created"),
        Action::Update => ("  ~", "will be changed in place"),
        Action::Replace => ("-/+", "must be replaced"),
        Action::Destroy => ("  -", "will be destroyed"),
        Action::Nothing => return,
    };
    let reason = if change.reason.is_empty() { String::new() } else { format!(": {}", change.reason) };
    let _ = writeln!(text, "  # {} {word}{reason}", change.address);
    let brace = if change.fields.is_empty() { "" } else { " {" };
    let _ = writeln!(text, "{sign} resource {:?} {:?}{brace}", change.place.kind, change.place.name);
    let width = change.fields.iter().map(|field| field.path.chars().count()).max().unwrap_or(0);
    for field in &change.fields {
        let _ = writeln!(text, "      {}", difference(field, change.action, width));
    }
    if !brace.is_empty() {
        text.push_str("    }\n");
    }
    if !change.downtime.is_empty() {
        let _ = writeln!(text, "    downtime: {}", change.downtime);
    }
    if !change.data_loss.is_empty() {
        let _ = writeln!(text, "    data loss: {}", change.data_loss);
    }
    text.push('\n');
}

fn difference(field: &Difference, action: Action, width: usize) -> String {
    let path = &field.path;
    let forces = if field.forces_replacement { " # forces replacement" } else { "" };
    let after = match &field.after {
        _ if field.sensitive => "(sensitive)".to_owned(),
        _ if field.known_after_apply => "(known after apply)".to_owned(),
        Some(after) => json(after),
        None => "null".to_owned(),
    };
    match (&field.before, action) {
        (_, Action::Create) => format!("+ {path:width$} = {after}"),
        _ if field.sensitive => format!("~ {path:width$} = (sensitive){forces}"),
        (None, _) => format!("+ {path:width$} = {after}{forces}"),
        (Some(before), _) if field.after.is_none() && !field.known_after_apply => {
            format!("- {path:width$} = {} -> null{forces}", json(before))
        }
        (Some(before), _) => format!("~ {path:width$} = {} -> {after}{forces}", json(before)),
    }
}

/// A value on one line; long texts are cut, since a plan is to be read.
fn json(value: &Json) -> String {
    let whole = match value {
        // 64-bit numbers are strings in the contract.
        Json::String(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.clone(),
        Json::String(text) if text.starts_with('(') && text.ends_with(')') => text.clone(),
        other => other.to_string(),
    };
    if whole.chars().count() > 200 {
        format!("{}…", whole.chars().take(199).collect::<String>())
    } else {
        whole
    }
}

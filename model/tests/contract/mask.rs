//! Field masks, seen through updates.

use std::fmt::Write;

use insta::assert_snapshot;
use pbjson_types::FieldMask;
use serde_json::json;
use tamdao_model::convert::Public;
use tamdao_proto::v1;

use crate::updates::node;
use crate::world::{parse, world};

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() })
}

#[test]
fn says_what_is_wrong_with_a_path() {
    let many = vec!["spec"; 65];
    let mut out = String::new();
    for paths in [
        vec!["spec.cordon"],
        vec!["spec.cpuOvercommit"],
        vec!["lables", "spec.nothing.at.all"],
        vec!["metadata.labels.env"],
        vec!["spec.cordoned.x"],
        vec!["spec..cordoned", "."],
        vec!["metadata"],
        vec!["metadata.name", "metadata.revision"],
        vec!["status.phase", "status"],
        many,
    ] {
        writeln!(out, "{:?}", &paths[..paths.len().min(3)]).unwrap();
        let invalid = node().update(v1::Node::default(), mask(&paths).as_ref(), &world()).unwrap_err();
        for violation in invalid.violations {
            writeln!(out, "    {violation}").unwrap();
        }
    }
    assert_snapshot!(out);
}

#[test]
fn takes_what_it_names_and_nothing_else() {
    let incoming: v1::Node = parse(json!({
        "metadata": {"display_name": "One", "labels": {"a": "b"}},
        "spec": {"cordoned": true, "cpu_overcommit_percent": 200},
    }));
    let before = node();
    for paths in [&["spec.cpu_overcommit_percent"], &["spec.cpuOvercommitPercent"]] {
        let after = before.update(incoming.clone(), mask(paths).as_ref(), &world()).unwrap();
        assert_eq!(after.spec.cpu_overcommit_percent, 200);
        assert!(!after.spec.cordoned);
        assert_eq!(after.meta.labels, before.meta.labels);
        assert_eq!(after.meta.generation, before.meta.generation + 1);
    }
    let after = before.update(incoming.clone(), mask(&["metadata.displayName"]).as_ref(), &world()).unwrap();
    assert_eq!(after.meta.display_name, "One");
    assert_eq!((&after.spec, after.meta.generation), (&before.spec, before.meta.generation));
}

#[test]
fn an_absent_field_is_cleared() {
    let before = node();
    assert!(!before.spec.failure_domains.is_empty());
    let paths = mask(&["spec.failure_domains", "metadata.labels"]);
    let after = before.update(v1::Node::default(), paths.as_ref(), &world()).unwrap();
    assert!(after.spec.failure_domains.is_empty() && after.meta.labels.is_empty());
    assert_eq!(after.spec.support_ends, before.spec.support_ends);
}

#[test]
fn without_a_mask_what_is_left_out_altogether_stays() {
    let before = node();
    let labels = parse(json!({"metadata": {"labels": {"a": "b"}}}));
    let after = before.update(labels, None, &world()).unwrap();
    assert_eq!((&after.spec, after.meta.generation), (&before.spec, before.meta.generation));
    assert_eq!(after.meta.labels.len(), 1);
    let spec = parse(json!({"spec": {"cordoned": true}}));
    let after = before.update(spec, mask(&["*"]).as_ref(), &world()).unwrap();
    assert_eq!(after.meta.labels, before.meta.labels);
    assert!(after.spec.cordoned && after.spec.failure_domains.is_empty());
}

#[test]
fn a_resource_of_a_stack_stays_its_own() {
    use tamdao_model::convert::metadata::STACK;
    let mut node = node();
    let with = |node: &tamdao_model::node::Node, labels: serde_json::Value, paths: &[&str]| {
        node.update(parse(json!({"metadata": {"labels": labels}})), mask(paths).as_ref(), &world())
    };
    let labels: &[&str] = &["metadata.labels"];
    node = with(&node, json!({STACK: "site"}), labels).unwrap();
    assert_eq!(node.meta.labels[STACK], "site");
    // Labels that do not speak of it leave it, whoever writes them.
    for paths in [labels, &[]] {
        assert_eq!(with(&node, json!({"a": "b"}), paths).unwrap().meta.labels[STACK], "site");
    }
    let refused = with(&node, json!({STACK: "other"}), labels).unwrap_err().to_string();
    assert!(refused.contains("belongs to stack \"site\""), "{refused}");
    let free = with(&node, json!({STACK: ""}), labels).unwrap();
    assert!(!free.meta.labels.contains_key(STACK));
    assert_eq!(with(&free, json!({STACK: "other"}), labels).unwrap().meta.labels[STACK], "other");
}

//! How records are written: what is as it is by default is left out, and what is left out is read as its default.

use serde_json::{Value, json};
use tamdao_model::agency::Usage;
use tamdao_model::quota::Measure;
use tamdao_model::vm::Vm;

use crate::updates::{node, vm};

/// Paths of fields that hold what every default is made of.
fn empty(path: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Null | Value::Bool(false) => found.push(path.to_owned()),
        Value::String(text) if text.is_empty() => found.push(path.to_owned()),
        Value::Array(items) if items.is_empty() => found.push(path.to_owned()),
        Value::Object(fields) if fields.is_empty() => found.push(path.to_owned()),
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| empty(&format!("{path}.{name}"), value, found));
        }
        _ => {}
    }
}

#[test]
fn what_is_not_so_is_not_written() {
    let mut found = Vec::new();
    empty("vm", &serde_json::to_value(vm()).unwrap(), &mut found);
    let mut written = serde_json::to_value(node()).unwrap();
    // What a node has is written whole: an agent says all of it.
    written["status"].as_object_mut().unwrap().remove("inventory");
    empty("node", &written, &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn records_are_read_with_their_defaults_written_or_not() {
    let vm = vm();
    let mut written = serde_json::to_value(&vm).unwrap();
    assert_eq!(serde_json::from_value::<Vm>(written.clone()).unwrap(), vm);
    // As the first release candidates wrote it.
    written["spec"]["flavor"] = Value::Null;
    written["spec"]["tpm"] = json!(false);
    written["spec"]["node_labels"] = json!({});
    written["status"]["guest"] = json!({"ready": false, "hostname": "", "addresses": []});
    written["status"]["restarts"] = json!(0);
    assert_eq!(serde_json::from_value::<Vm>(written).unwrap(), vm);
}

#[test]
fn usage_is_read_as_the_first_release_wrote_it() {
    let written = json!({"agency": uuid::Uuid::nil(), "vms": 2, "vcpus": 4, "memory_mib": 512, "volumes": 0,
        "disk_mib": 0, "addresses": 1});
    let usage: Usage = serde_json::from_value(written).unwrap();
    let counted =
        [(Measure::Vms, 2), (Measure::Vcpus, 4), (Measure::MemoryMib, 512), (Measure::Addresses, 1)];
    assert_eq!(usage.amounts, counted.into_iter().collect());
    let again = serde_json::to_value(&usage).unwrap();
    assert_eq!(
        again,
        json!({"agency": uuid::Uuid::nil(), "vms": 2, "vcpus": 4, "memory_mib": 512, "addresses": 1})
    );
}

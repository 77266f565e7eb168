//! How records are written: what is as it is by default is left out, and what is left out is read as its default.

use serde_json::{Value, json};
use tamdao_model::agency::Usage;
use tamdao_model::applied::Applied;
use tamdao_model::audit::Audit;
use tamdao_model::bmc::Trust;
use tamdao_model::cluster::Cluster;
use tamdao_model::node::Node;
use tamdao_model::quota::Measure;
use tamdao_model::recovery::{Cause, Finding};
use tamdao_model::role_binding::RoleBinding;
use tamdao_model::vm::Vm;
use tamdao_model::{NodeId, Stored, TimeMs, VmId};

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

/// Word for word as the first release that has audit records writes one; journals are kept for years.
#[test]
fn audit_records_are_read_and_written_as_at_first() {
    const CHANGED: &str = r#"{"id":"00000000-0000-0000-0000-000000000001","time":1795000000000,"principal":"token:00000000-0000-0000-0000-000000000002:deployer","role":"member","role_agency":"00000000-0000-0000-0000-000000000003","peer":"192.0.2.7:40022","via":"00000000-0000-0000-0000-000000000004","controller":"00000000-0000-0000-0000-000000000005","method":"VmService/CreateVm","agency":"health","name":"web","request_id":"00000000-0000-0000-0000-000000000006","code":"Ok","changes":[{"kind":"vm","agency":"00000000-0000-0000-0000-000000000003","name":"web","id":"00000000-0000-0000-0000-000000000007","after":"e3b0"}]}"#;
    const REFUSED: &str = r#"{"id":"00000000-0000-0000-0000-000000000001","time":1795000000000,"principal":"anonymous","peer":"192.0.2.7","controller":"00000000-0000-0000-0000-000000000005","method":"VmService/ListVms","code":"Unauthenticated","reason":"NoCredentials","count":17}"#;
    for text in [CHANGED, REFUSED] {
        let record: Audit = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
    let least: Audit = serde_json::from_str(&REFUSED.replace(",\"count\":17", "")).unwrap();
    assert_eq!((least.count, least.is_refused()), (1, true));
}

#[test]
fn a_node_with_bmcs_is_read_as_the_release_that_began_them_wrote_it() {
    let mut written = serde_json::to_value(node()).unwrap();
    let before: Node = serde_json::from_value(written.clone()).unwrap();
    assert!(before.spec.bmcs.is_empty() && before.status.fence_drill.is_empty(), "as 0.1.0 wrote it");
    written["spec"]["bmcs"] = json!([
        {"url": "https://a", "username": "u", "password": "AAEC", "trust": {"ca": "PEM"}},
        {"url": "https://b", "username": "u", "password": "AAEC", "trust": {"fingerprint": "00ff"}},
        {"url": "https://c", "username": "u", "password": "AAEC", "trust": "unverified"}]);
    written["status"]["fence_drill"] = json!([
        {"url": "https://a", "time": 5, "reason": "Good", "message": "says On", "said_on": 5},
        {"url": "https://b", "time": 5, "reason": "TooSlow", "message": "did not answer"}]);
    let node: Node = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(node.spec.bmcs[2].trust, Trust::Unverified);
    assert!(node.is_fenceable());
    assert_eq!(serde_json::to_value(&node).unwrap(), written);
}

#[test]
fn a_node_that_booted_is_read_as_the_release_that_began_to_say_when_wrote_it() {
    let mut written = serde_json::to_value(node()).unwrap();
    let before: Node = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(before.status.boot_time, None, "as 0.1.0 wrote it");
    written["status"]["boot_time"] = json!(1_795_000_000_000_u64);
    let node: Node = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(node.status.boot_time, Some(TimeMs(1_795_000_000_000)));
    assert_eq!(serde_json::to_value(&node).unwrap(), written);
}

#[test]
fn what_a_cloud_finds_out_is_read_as_the_release_that_began_it_wrote_it() {
    let id = uuid::Uuid::from_u128;
    let written = json!({"node": id(1), "session": id(2), "complete": true, "guests": {
        id(3).to_string(): {"incarnation": 4, "state": "running", "vcpus": 1, "memory_mib": 256, "addresses": ["10.0.0.9"]},
        id(5).to_string(): {"incarnation": 1, "state": "paused"}}});
    let finding: Finding = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(finding.guests[&VmId(id(3))].addresses, ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(serde_json::to_value(&finding).unwrap(), written);
    let mut cluster = json!({"id": id(1), "name": "north", "level": 1, "ca_certificate": "", "ca_key": "",
        "admin_tokens": []});
    let before: Cluster = serde_json::from_value(cluster.clone()).unwrap();
    assert_eq!(before.recovery, None, "as 0.1.0 wrote it");
    cluster["recovery"] = json!({"since": 5, "cluster": id(9), "revision": 7, "backup_time": 4});
    let recovers: Cluster = serde_json::from_value(cluster.clone()).unwrap();
    assert_eq!(recovers.recovery.as_ref().map(|recovery| recovery.revision), Some(7));
    assert_eq!(serde_json::to_value(&recovers).unwrap(), cluster);
    cluster["recovery"]["cause"] = json!({"went_back": {"node": id(4), "seen": 9, "at": 7}});
    cluster["recovery"]["unready"] = json!(true);
    cluster["base"] = json!(1_099_511_627_776u64);
    cluster["former"] = json!([id(8)]);
    let back: Cluster = serde_json::from_value(cluster.clone()).unwrap();
    assert_eq!(
        back.recovery.as_ref().unwrap().cause,
        Cause::WentBack { node: NodeId(id(4)), seen: 9, at: 7 }
    );
    assert_eq!(serde_json::to_value(&back).unwrap(), cluster);
    cluster["recovery"]["cause"] = json!("survivor");
    let survivor: Cluster = serde_json::from_value(cluster).unwrap();
    assert_eq!(survivor.recovery.unwrap().cause, Cause::Survivor);
}

#[test]
fn role_bindings_are_read_and_written_as_at_first() {
    let meta = r#""meta":{"id":"00000000-0000-0000-0000-000000000001","name":"doctors","generation":1,"create_time":1795000000000}"#;
    for rest in [
        r#""role":"auditor","subject":{"user":"lan@example.vn"}"#,
        r#""agency":"00000000-0000-0000-0000-000000000003","role":"member","subject":{"group":"Sở Y tế"}"#,
        r#""role":"cloud_admin","subject":{"token":"00000000-0000-0000-0000-000000000004"}"#,
    ] {
        let text = format!("{{{meta},{rest}}}");
        let record: RoleBinding = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}

#[test]
fn what_was_applied_is_read_and_written_as_at_first() {
    let least = r#""time":1795000000000,"principal":"admin:1f2e3d4c"}"#;
    let rest = r#""agency":"00000000-0000-0000-0000-000000000003","name":"web","id":"00000000-0000-0000-0000-000000000007","revision":9,"time":1795000000000,"principal":"admin:1f2e3d4c","fields":{"labels.tier":"\"front\""},"ignored":["run"],"error":"no room"}"#;
    for (text, key) in [
        (
            format!(r#"{{"stack":"site","kind":"vm",{rest}"#),
            "00000000-0000-0000-0000-000000000003/site/vm/web",
        ),
        (
            format!(r#"{{"stack":"site","kind":"placement_group","name":"apart",{least}"#),
            "cluster/site/placement_group/apart",
        ),
    ] {
        let record: Applied = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(record.key(), key);
    }
}

//! What users are told of VMs that cannot be.

use insta::assert_snapshot;
use serde_json::{Value, json};
use tamdao_model::convert::{read_deadline, read_resize, vm};
use tamdao_proto::v1;

use crate::updates::{self, KEY};
use crate::world::{AGENCY, table, world};

/// A small VM with more or other fields in its spec.
fn spec(more: Value) -> Value {
    let mut spec = json!({"flavor": "small"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": "web"}, "spec": spec})
}

fn disks(disks: Value) -> Value {
    spec(json!({"disks": disks}))
}

fn interfaces(interfaces: Value) -> Value {
    spec(json!({"interfaces": interfaces}))
}

fn read(rows: Vec<(&'static str, Value)>) -> String {
    table(rows, |p: v1::Vm| vm::read(p, AGENCY, &world()))
}

#[test]
fn sizes_and_machine() {
    let rows = vec![
        ("good", spec(json!({}))),
        ("nothing", json!({})),
        ("size", spec(json!({"flavor": "", "vcpus": 257, "memory_mib": 63}))),
        ("both", spec(json!({"vcpus": 1, "memory_mib": 64}))),
        ("unknown flavor", spec(json!({"flavor": "huge"}))),
        ("enums", spec(json!({"firmware": 9, "os_type": 9, "graphics": -1, "run": 2_000_000_000}))),
        ("secure boot", spec(json!({"secure_boot": true}))),
        ("secure boot by UEFI", spec(json!({"secure_boot": true, "firmware": "FIRMWARE_UEFI"}))),
        ("hostname", spec(json!({"hostname": "web.example.org"}))),
        ("node", spec(json!({"node": "n9"}))),
        ("node labels", spec(json!({"node_labels": {"": "x"}}))),
        ("boot", spec(json!({"direct_boot": {"initrd": "no", "command_line": "a\nb"}}))),
        ("long boot", spec(json!({"direct_boot": {"kernel": "kernel", "command_line": "a".repeat(2049)}}))),
    ];
    assert_snapshot!(read(rows));
}

#[test]
fn places() {
    let many: Vec<_> = (0..9).map(|i| json!(format!("g{i}"))).collect();
    let rows = vec![
        (
            "good",
            spec(json!({
                "priority": 1000, "isolation_class": "health", "placement_groups": ["pair"], "on_node_loss": 2, "numa_cells": 2,
                "node_labels": {"disk": "ssd"}, "forbidden_node_labels": {"disk": "hdd"},
            })),
        ),
        ("priority", spec(json!({"priority": 1001}))),
        ("class", spec(json!({"isolation_class": "Sở Y tế"}))),
        ("group of another", spec(json!({"placement_groups": ["theirs", ""]}))),
        ("group twice", spec(json!({"placement_groups": ["pair", "pair"]}))),
        ("many groups", spec(json!({"placement_groups": many}))),
        ("on node loss", spec(json!({"on_node_loss": 3}))),
        ("NUMA cells", spec(json!({"numa_cells": 9}))),
        ("labels", spec(json!({"node_labels": {"a": "b"}, "forbidden_node_labels": {"a": "b", "": "x"}}))),
    ];
    assert_snapshot!(read(rows));
}

#[test]
fn disk_lists() {
    let many: Vec<_> = (0..17).map(|_| json!({"kind": "DISK_KIND_CDROM"})).collect();
    let rows = vec![
        (
            "good",
            disks(
                json!([{"create": {"image": "debian"}}, {"volume": "data"}, {"iso": "setup", "kind": 2}, {"kind": 2}]),
            ),
        ),
        ("nothing", disks(json!([{}]))),
        ("kind", disks(json!([{"volume": "data", "kind": 3}]))),
        ("other agency's", disks(json!([{"volume": "secret"}]))),
        ("no name", disks(json!([{"volume": ""}]))),
        ("twice", disks(json!([{"volume": "data"}, {"volume": "data"}]))),
        (
            "cdrom of a volume",
            disks(json!([{"volume": "data", "kind": 2}, {"create": {"size_mib": 1}, "kind": 2}])),
        ),
        ("iso as a disk", disks(json!([{"iso": "setup"}]))),
        ("create", disks(json!([{"create": {}}, {"create": {"image": "no", "pool": "no"}}]))),
        ("large", disks(json!([{"create": {"size_mib": 67_108_865}}]))),
        (
            "order",
            disks(
                json!([{"volume": "data", "boot_order": 17}, {"kind": 2, "boot_order": 1}, {"kind": 2, "boot_order": 1}]),
            ),
        ),
        ("many", disks(Value::Array(many))),
    ];
    assert_snapshot!(read(rows));
}

#[test]
fn interface_lists() {
    let on = |more: Value| {
        let mut interface = json!({"network": "office"});
        interface.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        interface
    };
    let many: Vec<_> = (0..9).map(|_| on(json!({}))).collect();
    let rows = vec![
        (
            "good",
            interfaces(json!([on(
                json!({"addresses": ["10.0.0.7", "fd00::7"], "mac": "52-54-00-AB-cd-01"})
            )])),
        ),
        ("own network", interfaces(json!([{"network": "lab"}]))),
        ("unknown", interfaces(json!([{}, {"network": "no"}]))),
        ("addresses", interfaces(json!([on(json!({"addresses": ["10.0.0.7/24", "x"]}))]))),
        ("two of a family", interfaces(json!([on(json!({"addresses": ["10.0.0.7", "10.0.0.8"]}))]))),
        ("three", interfaces(json!([on(json!({"addresses": ["10.0.0.7", "fd00::7", "10.0.0.8"]}))]))),
        (
            "mac",
            interfaces(json!([
                on(json!({"mac": "525400123456"})),
                on(json!({"mac": "52:54:00:12:34"})),
                on(json!({"mac": "zz:54:00:12:34:56"}))
            ])),
        ),
        (
            "multicast",
            interfaces(json!([
                on(json!({"mac": "01:00:5e:00:00:01"})),
                on(json!({"mac": "00:00:00:00:00:00"})),
                on(json!({"mac": "fe:54:00:00:00:01"}))
            ])),
        ),
        (
            "same mac",
            interfaces(json!([
                on(json!({"mac": "52:54:00:00:00:0a"})),
                on(json!({"mac": "52:54:00:00:00:0A"}))
            ])),
        ),
        ("many", interfaces(Value::Array(many))),
    ];
    assert_snapshot!(read(rows));
}

#[test]
fn guest_secrets() {
    let keys = |keys: Value| spec(json!({"ssh_keys": keys}));
    let data = |text: &str| spec(json!({"user_data": text}));
    let many: Vec<_> = (0..33).map(|_| KEY).collect();
    let rows = vec![
        ("good", keys(json!([KEY, format!("no-pty,command=\"a b\" {KEY}"), format!("{KEY}\n")]))),
        ("private", keys(json!(["-----BEGIN OPENSSH PRIVATE KEY-----\nabc"]))),
        ("two in one", keys(json!([format!("{KEY}\n{KEY}")]))),
        ("not a key", keys(json!(["hello", "", "ssh-dss AAAA"]))),
        (
            "cut off",
            keys(json!(["ssh-ed25519", "ssh-ed25519 AAAA", &KEY[..60], KEY.replace("ed25519 ", "rsa ")])),
        ),
        ("long", keys(json!([format!("{KEY}{}", "x".repeat(8192))]))),
        ("many", keys(json!(many))),
        ("cloud-config", data("#cloud-config\npackages: [vim]\n")),
        ("script", data("#!/bin/sh\n")),
        ("mime", data("Content-Type: multipart/mixed; boundary=\"x\"\n")),
        ("password", data("password: hunter2")),
        ("zero", data("#cloud-config\n\0")),
        ("long data", data(&format!("#!{}", "x".repeat(48 * 1024)))),
    ];
    let said = read(rows);
    assert!(!said.contains("hunter2"), "a secret is never repeated");
    assert_snapshot!(said);
}

#[test]
fn updates() {
    let rows = vec![
        ("nothing", json!({})),
        ("resize", json!({"spec": {"vcpus": 4, "memory_mib": 128}})),
        ("flavor", json!({"spec": {"flavor": "large"}})),
        ("disks", json!({"spec": {"disks": [{"volume": "data"}]}})),
        ("more disks", json!({"spec": {"disks": [{"volume": "web-0"}, {"kind": 2}, {"kind": 2}]}})),
        ("boot order", json!({"spec": {"disks": [{"volume": "web-0", "boot_order": 2}, {"kind": 2}]}})),
        ("interfaces", json!({"spec": {"interfaces": [{"network": "lab"}]}})),
        (
            "other address",
            json!({"spec": {"interfaces": [{"network": "office", "addresses": ["10.0.0.9"]}]}}),
        ),
        (
            "machine",
            json!({"spec": {"firmware": 2, "os_type": 2, "graphics": 2, "tpm": true, "node": "n2", "hostname": "other"}}),
        ),
        ("secure boot", json!({"spec": {"secure_boot": true}})),
        ("direct boot", json!({"spec": {"direct_boot": {"kernel": "kernel"}}})),
        ("unknown number", json!({"spec": {"run": 17}})),
        ("user data", json!({"spec": {"user_data": "x"}})),
    ];
    assert_snapshot!(table(rows, |p: v1::Vm| updates::vm().updated(p, None, &world())));
}

#[test]
fn verbs() {
    let rows = vec![
        ("flavor", json!({"flavor": "large"})),
        ("size", json!({"vcpus": 1, "memory_mib": 64})),
        ("nothing", json!({})),
        ("both", json!({"flavor": "large", "vcpus": 1})),
        ("unknown", json!({"flavor": "huge"})),
    ];
    assert_snapshot!(table(rows, |p: v1::ResizeVmRequest| read_resize(&p, &world())));
    assert_eq!(read_deadline(0).unwrap(), 120);
    assert_eq!(read_deadline(3_600).unwrap(), 3_600);
    let said = read_deadline(3_601).unwrap_err().to_string();
    assert_eq!(said, "deadline_s: is 3601; 3600 at most, or 0 for 120");
}

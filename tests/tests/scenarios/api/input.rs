//! Bad input at both faces: the error names the field, and nothing changes.

use anyhow::ensure;
use serde_json::{Value, json};
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_proto::v1::{CreateVmRequest, Metadata, Vm, VmSpec};
use tamdao_tests::cloud::AGENCY;
use tamdao_tests::{Cloud, Result};
use tonic::Code;

const VMS: &str = "/v1/agencies/lab/vms";

/// A body for POST, the code that it gets, and what the answer has to name.
fn table() -> Vec<(&'static str, Value, u16, &'static str)> {
    let vm = |spec: Value| json!({"metadata": {"name": "bad"}, "spec": spec});
    let sized = |memory: Value| {
        vm(json!({"vcpus": 1, "memory_mib": memory, "disks": [{"create": {"size_mib": 64}}]}))
    };
    vec![
        (VMS, vm(json!({"colour": "red"})), 400, "colour"),
        (VMS, json!({"metadata": {"name": "bad"}, "spek": {}}), 400, "spek"),
        (VMS, sized(json!(-1)), 400, "memory_mib"),
        (VMS, sized(json!(4_294_967_296_u64)), 400, "memory_mib"),
        (VMS, sized(json!("lots")), 400, "memory_mib"),
        (VMS, sized(json!(3)), 400, "memory_mib"),
        (VMS, sized(json!(1.5)), 400, "memory_mib"),
        (VMS, json!({"metadata": {"name": "a/b"}, "spec": {"vcpus": 1, "memory_mib": 128}}), 400, "name"),
        (VMS, json!({"metadata": {"name": ""}, "spec": {"vcpus": 1, "memory_mib": 128}}), 400, "name"),
        (VMS, json!({"metadata": {"name": "B A D"}, "spec": {"vcpus": 1, "memory_mib": 128}}), 400, "name"),
        (VMS, json!([]), 400, ""),
        (VMS, vm(json!({"vcpus": 999, "memory_mib": 128})), 400, "vcpus"),
        (
            VMS,
            vm(json!({"vcpus": 1, "memory_mib": 128, "disks": [{"create": {"size_mib": 0}}]})),
            400,
            "disks[0]",
        ),
        (VMS, vm(json!({"flavor": "none-such", "disks": [{"create": {"size_mib": 64}}]})), 400, "flavor"),
        (
            "/v1/flavors",
            json!({"metadata": {"name": "x"}, "spec": {"vcpus": 0, "memory_mib": 64}}),
            400,
            "vcpus",
        ),
        (
            "/v1/pools",
            json!({"metadata": {"name": "x"}, "spec": {"kind": "POOL_KIND_DIR", "path": "srv"}}),
            400,
            "path",
        ),
        (
            "/v1/networks",
            json!({"metadata": {"name": "x"}, "spec": {"bridge": {"bridge": "br0"}, "subnets": [{"cidr": "10.0.0.0/99"}]}}),
            400,
            "cidr",
        ),
        ("/v1/agencies/none-such/vms", sized(json!(128)), 404, "none-such"),
    ]
}

#[tokio::test]
async fn bad_input_names_its_field_and_changes_nothing() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let rest = cloud.rest(0)?;
    let state = async || -> Result<Vec<String>> {
        let mut all = Vec::new();
        for path in ["/v1/vms", "/v1/flavors", "/v1/pools", "/v1/networks", "/v1/agencies"] {
            let mut list = rest.get(path).await?.json();
            // A cursor names the moment and not the state.
            list.as_object_mut().map(|list| list.remove("cursor"));
            all.push(list.to_string());
        }
        Ok(all)
    };
    let before = state().await?;
    let mut wrong = Vec::new();
    for (path, body, code, named) in table() {
        let answer = rest.post(path, &body).await?;
        if answer.code != code || !answer.text.contains(named) {
            wrong.push(format!("{path} {body} was answered {} {}", answer.code, answer.text));
        }
    }
    let raw: [(&str, Vec<u8>, u16); 4] = [
        ("no JSON", b"{\"metadata\":".to_vec(), 400),
        ("no UTF-8", vec![0xff, 0xfe, 0x00], 400),
        ("64 MiB", vec![b' '; 64 << 20], 413),
        ("nothing", Vec::new(), 400),
    ];
    for (what, body, code) in raw {
        // A server may close the connection before it has read a body that is too large.
        match rest.send("POST", VMS, Some(body)).await {
            Ok(answer) if answer.code != code => {
                wrong.push(format!("{what}: {} {}", answer.code, answer.text))
            }
            Err(error) if code != 413 => wrong.push(format!("{what}: {error:#}")),
            _ => {}
        }
    }
    grpc(&cloud, &mut wrong).await;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(state().await? == before, "something changed");
    cloud.done()
}

async fn grpc(cloud: &Cloud, wrong: &mut Vec<String>) {
    let spec = VmSpec { vcpus: 1, memory_mib: 128, ..Default::default() };
    let cases = [
        ("a/b", spec.clone(), "vm.metadata.name"),
        ("bad", VmSpec { memory_mib: u32::MAX, ..spec.clone() }, "vm.spec.memory_mib"),
        ("bad", VmSpec { run: 99, ..spec.clone() }, "vm.spec.run"),
        ("bad", VmSpec { user_data: "x".repeat(49 * 1024), ..spec.clone() }, "vm.spec.user_data"),
        ("bad", VmSpec { ssh_keys: vec!["rubbish".to_owned()], ..spec }, "vm.spec.ssh_keys"),
    ];
    for (name, spec, field) in cases {
        let vm = Vm {
            metadata: Some(Metadata { name: name.to_owned(), ..Default::default() }),
            spec: Some(spec),
            status: None,
        };
        let request = CreateVmRequest { agency: AGENCY.to_owned(), vm: Some(vm), ..Default::default() };
        match VmServiceClient::new(cloud.api.wire(0)).create_vm(request).await {
            Err(status) if status.code() == Code::InvalidArgument && status.message().contains(field) => {}
            other => wrong.push(format!("{field}: {other:?}")),
        }
    }
}

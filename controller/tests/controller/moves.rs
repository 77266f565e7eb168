//! What is expected of a live move is told before it starts, and stands in its record.

use crate::cloud::node::Node;
use crate::cloud::{Cloud, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_forecast_is_told_before_a_move_and_stands_in_its_record() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    let nodes = [Node::join(&cloud, "n1").await, Node::join(&cloud, "n2").await];
    assert_eq!(admin.post(&at, "/v1/agencies", r#"{"metadata": {"name": "health"}}"#).await.status, 200);
    let vm = json!({"metadata": {"name": "web"}, "spec": {"vcpus": 1, "memory_mib": 1024}}).to_string();
    assert_eq!(admin.post(&at, "/v1/agencies/health/vms", &vm).await.status, 200);
    let path = "/v1/agencies/health/vms/web";
    eventually("the VM runs", || async {
        let phase = admin.get(&at, path).await.json()["status"]["phase"].clone();
        (phase == "VM_PHASE_RUNNING").then_some(())
    })
    .await;

    let dry = admin.post(&at, &format!("{path}:migrate"), r#"{"validate_only": true}"#).await;
    assert_eq!(dry.status, 200, "{:?}", dry.body);
    // 1 GiB at 100 MiB/s, 10 % of it again, then 1 % in 0.1 s.
    let expected = json!({
        "verdict": "MOVE_VERDICT_ARRIVES",
        "memory_bytes": (1u64 << 30).to_string(),
        "dirty_bytes_per_s": (10u64 << 20).to_string(),
        "bytes_per_s": (100u64 << 20).to_string(),
        "time_ms": "11366",
        "downtime_ms": "102",
    });
    assert_eq!(dry.json()["status"]["forecast"], expected, "{}", dry.json());
    let none = admin.get(&at, "/v1/agencies/health/moves").await.json();
    assert_eq!(none["moves"].as_array().map_or(0, Vec::len), 0, "nothing was changed: {none}");

    let begun = admin.post(&at, &format!("{path}:migrate"), "{}").await;
    assert_eq!(begun.status, 200, "{:?}", begun.body);
    let name = begun.json()["metadata"]["name"].as_str().unwrap().to_owned();
    let told = eventually("the forecast", || async {
        let told = admin.get(&at, &format!("/v1/agencies/health/moves/{name}")).await.json();
        let forecast = told["status"]["forecast"].clone();
        forecast.is_object().then_some(forecast)
    })
    .await;
    assert_eq!(told, expected);
    drop(nodes);
}

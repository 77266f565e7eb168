//! What stacks have applied: noted, compared with what is, shown to whom it belongs, gone with its agency; and plans that
//! are previewed and change nothing.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use tamdao_model::applied;

use crate::cloud::{Cloud, User};

/// A cloud with two agencies and a VM of the first.
async fn with_a_stack() -> (Cloud, String) {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    for name in ["health", "tax"] {
        let body = json!({"metadata": {"name": name}, "spec": {"quota": {"vms": 2}}}).to_string();
        assert_eq!(admin.post(&at, "/v1/agencies", &body).await.status, 200);
    }
    let vm = json!({"metadata": {"name": "web", "labels": {"tamdao.vn/stack": "site", "tier": "front"}},
        "spec": {"vcpus": 1, "memory_mib": 512}});
    let made = admin.post(&at, "/v1/agencies/health/vms", &vm.to_string()).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    let made = made.json();
    let fields = applied::fields(&made, &BTreeSet::new());
    assert_eq!(fields["labels.tier"], "\"front\"");
    let one = json!({"kind": "vm", "agency": "health", "name": "web", "id": made["metadata"]["id"],
        "revision": made["metadata"]["revision"], "fields": fields});
    record(&admin, &at, json!([one])).await;
    (cloud, at)
}

async fn record(user: &User, at: &str, resources: Value) {
    let body = json!({ "resources": resources }).to_string();
    let answer = user.post(at, "/v1/stacks/site:recordApply", &body).await;
    assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
}

/// What is listed, each by its name, with its state and what differs.
async fn listed(user: &User, at: &str) -> Vec<(String, String, Vec<String>)> {
    let answer = user.get(at, "/v1/stack-resources").await.json();
    let rows = answer["stack_resources"].as_array().cloned().unwrap_or_default();
    let text = |json: &Value| json.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| {
            let differences = row["differences"].as_array().cloned().unwrap_or_default();
            let each = differences.iter().map(|one| {
                format!("{}: {} > {}", text(&one["path"]), text(&one["applied"]), text(&one["now"]))
            });
            let state = text(&row["state"]).replace("STACK_STATE_", "");
            (format!("{}/{}", text(&row["agency"]), text(&row["name"])), state, each.collect())
        })
        .collect()
}

fn one(state: &str, differences: &[&str]) -> Vec<(String, String, Vec<String>)> {
    let differences = differences.iter().map(|one| (*one).to_owned()).collect();
    vec![("health/web".to_owned(), state.to_owned(), differences)]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_is_compared_with_what_is() {
    let (cloud, at) = with_a_stack().await;
    let admin = cloud.admin();
    assert_eq!(listed(&admin, &at).await, one("IN_SYNC", &[]));
    let change = json!({"metadata": {"labels": {"tier": "back"}}}).to_string();
    let path = "/v1/agencies/health/vms/web?update_mask=metadata.labels";
    assert_eq!(admin.call(&at, Method::PATCH, path, &change).await.status, 200);
    let drifted = one("DRIFTED", &["labels.tier: \"front\" > \"back\""]);
    assert_eq!(listed(&admin, &at).await, drifted);
    // An apply that fails at it leaves what was applied before.
    record(&admin, &at, json!([{"kind": "vm", "agency": "health", "name": "web", "error": "no room"}])).await;
    assert_eq!(listed(&admin, &at).await, one("FAILED", &["labels.tier: \"front\" > \"back\""]));
    let again = json!({"kind": "vm", "agency": "health", "name": "web", "fields": {}, "ignored": ["all"]});
    record(&admin, &at, json!([again])).await;
    assert_eq!(listed(&admin, &at).await, one("IN_SYNC", &[]));
    let gone = admin.call(&at, Method::DELETE, "/v1/agencies/health/vms/web", "").await;
    assert_eq!(gone.status, 200);
    assert_eq!(listed(&admin, &at).await, one("GONE", &[]));
    record(&admin, &at, json!([{"kind": "vm", "agency": "health", "name": "web", "forget": true}])).await;
    assert!(listed(&admin, &at).await.is_empty());
    // What was never made has failed, and goes with its agency.
    record(&admin, &at, json!([{"kind": "vm", "agency": "health", "name": "web", "error": "no room"}])).await;
    assert_eq!(listed(&admin, &at).await, one("FAILED", &[]));
    assert_eq!(admin.call(&at, Method::DELETE, "/v1/agencies/health", "").await.status, 200);
    assert!(listed(&admin, &at).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_noted_is_seen_and_written_by_whom_it_belongs_to() {
    let (cloud, at) = with_a_stack().await;
    let admin = cloud.admin();
    let mut users = Vec::new();
    for (agency, role) in [("health", "ROLE_MEMBER"), ("health", "ROLE_VIEWER"), ("tax", "ROLE_MEMBER")] {
        let body =
            json!({"metadata": {"name": role.to_lowercase().replace('_', "-")}, "spec": {"role": role}});
        let made = admin.post(&at, &format!("/v1/agencies/{agency}/tokens"), &body.to_string()).await;
        users.push(cloud.with_token(made.json()["secret"].as_str().unwrap()));
    }
    let seen = [listed(&users[0], &at).await, listed(&users[1], &at).await, listed(&users[2], &at).await];
    assert_eq!(seen, [one("IN_SYNC", &[]), one("IN_SYNC", &[]), Vec::new()]);
    let body = json!({"resources": [{"kind": "vm", "agency": "health", "name": "web", "forget": true}]});
    let mut codes = Vec::new();
    for user in &users {
        codes.push(user.post(&at, "/v1/stacks/site:recordApply", &body.to_string()).await.status.as_u16());
    }
    // To the foreign one there is no such agency, of which there is nothing to forget.
    assert_eq!(codes, [200, 403, 200]);
    assert!(listed(&admin, &at).await.is_empty());
    let flavor = json!({"resources": [{"kind": "flavor", "name": "mini"}]}).to_string();
    assert_eq!(users[0].post(&at, "/v1/stacks/site:recordApply", &flavor).await.status, 403);
    assert_eq!(admin.post(&at, "/v1/stacks/site:recordApply", &flavor).await.status, 200);
    assert_eq!((listed(&admin, &at).await.len(), listed(&users[0], &at).await.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_would_be_refused_and_what_would_wait_and_changes_nothing() {
    let (cloud, at) = with_a_stack().await;
    let admin = cloud.admin();
    let vm = |name: &str, flavor: &str| json!({"vm": {"metadata": {"name": name, "agency": "health"}, "spec": {"flavor": flavor}}});
    let flavor = json!({"flavor": {"metadata": {"name": "mini"}, "spec": {"vcpus": 1, "memory_mib": 512}}});
    let body = json!({"resources": [flavor, vm("a", "mini"), vm("b", "mini"), vm("c", "maxi")]}).to_string();
    let answer = admin.post(&at, "/v1/stacks:previewPlan", &body).await;
    assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
    let answer = answer.json();
    let outcomes: Vec<(bool, bool, &str)> = answer["outcomes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let is = |field: &str| one[field].as_bool().unwrap_or_default();
            (is("admitted"), is("fits"), one["reason"].as_str().unwrap_or_default())
        })
        .collect();
    // The flavor that the plan makes is there for its VMs; there is no node; two VMs are all that the quota allows.
    assert_eq!(outcomes[0], (true, true, ""));
    assert!(outcomes[1].0 && !outcomes[1].1, "{answer}");
    assert_eq!(outcomes[2], (false, true, "QuotaExceeded"), "{answer}");
    assert_eq!(outcomes[3], (false, true, "InvalidArgument"));
    let flavors = admin.get(&at, "/v1/flavors").await.json();
    assert!(flavors["flavors"].as_array().is_none_or(Vec::is_empty), "{flavors}");
    let vms = admin.get(&at, "/v1/vms").await.json();
    assert_eq!(vms["vms"].as_array().unwrap().len(), 1);
}

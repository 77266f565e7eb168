//! Agencies on a real controller, over both faces: the tree, what each may hold, and what is said when it is too much.

use crate::cloud::{Cloud, User};
use http::Method;
use serde_json::{Value, json};
use tamdao_proto::v1;
use tamdao_proto::v1::agency_service_client::AgencyServiceClient;
use tonic::Code;
use tonic_types::StatusExt;

async fn patch(admin: &User, at: &str, name: &str, spec: Value) -> crate::cloud::Answer {
    let mask: Vec<String> = spec.as_object().unwrap().keys().map(|key| format!("spec.{key}")).collect();
    let path = format!("/v1/agencies/{name}?update_mask={}", mask.join(","));
    admin.call(at, Method::PATCH, &path, &json!({ "spec": spec }).to_string()).await
}

fn agency(name: &str, spec: Value) -> String {
    json!({"metadata": {"name": name}, "spec": spec}).to_string()
}

#[tokio::test]
async fn a_parents_quota_is_shared_out_and_a_refusal_says_what_is_left() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    // "Sở Y tế" with its letters in parts, as some keyboards write it.
    let parts = json!({"metadata": {"name": "health", "display_name": "So\u{31b}\u{309} Y te\u{302}\u{301}"},
        "spec": {"quota": {"vcpus": "8", "vms": 3}}});
    let made = admin.post(at, "/v1/agencies", &parts.to_string()).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    assert_eq!(made.json()["metadata"]["display_name"], "Sở Y tế");
    let without = admin.post(at, "/v1/agencies", &agency("clinic", json!({"parent": "health"}))).await;
    assert_eq!((without.status.as_u16(), without.fields()), (400, vec!["agency.spec.quota".to_owned()]));
    let quota = json!({"parent": "health", "quota": {"vcpus": 6, "vms": 2}});
    let made = admin.post(at, "/v1/agencies", &agency("clinic", quota)).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    let health = admin.get(at, "/v1/agencies/health").await.json();
    assert_eq!(health["status"]["given"]["vcpus"], "6");
    assert_eq!(health["status"]["free"]["vcpus"], "2");

    let vm = |name: &str, vcpus: u32| {
        json!({"metadata": {"name": name}, "spec": {"vcpus": vcpus, "memory_mib": 512}}).to_string()
    };
    let made = admin.post(at, "/v1/agencies/health/vms", &vm("a", 2)).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    let refused = admin.post(at, "/v1/agencies/health/vms", &vm("b", 1)).await;
    assert_eq!((refused.status.as_u16(), refused.json()["code"].as_i64()), (429, Some(8)));
    let facts = &refused.json()["details"][0]["metadata"];
    assert_eq!(
        (&facts["agency"], &facts["free"], &facts["asked"]),
        (&json!("health"), &json!("0"), &json!("1"))
    );
    assert_eq!(admin.post(at, "/v1/agencies/clinic/vms", &vm("c", 6)).await.status, 200);

    // The same over gRPC, with what would help.
    let mut grpc = AgencyServiceClient::new(admin.channel(at));
    let spec =
        v1::AgencySpec { quota: [("vcpus".to_owned(), 7)].into_iter().collect(), ..Default::default() };
    let larger = v1::UpdateAgencyRequest {
        name: "clinic".into(),
        agency: Some(v1::Agency { spec: Some(spec), ..Default::default() }),
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["spec.quota".into()] }),
        ..Default::default()
    };
    let refused = grpc.update_agency(admin.ask(larger)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "vms would be without a limit: {refused:?}");
    let spec = v1::AgencySpec {
        quota: [("vcpus".to_owned(), 7), ("vms".to_owned(), 1)].into_iter().collect(),
        ..Default::default()
    };
    let larger = v1::UpdateAgencyRequest {
        name: "clinic".into(),
        agency: Some(v1::Agency { spec: Some(spec), ..Default::default() }),
        update_mask: Some(pbjson_types::FieldMask { paths: vec!["spec.quota".into()] }),
        ..Default::default()
    };
    let refused = grpc.update_agency(admin.ask(larger)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.get_error_details().error_info().unwrap().metadata["agency"], "health");
}

#[tokio::test]
async fn a_frozen_agency_gets_nothing_new_and_an_archived_one_runs_nothing() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    assert_eq!(admin.post(at, "/v1/agencies", &agency("health", json!({}))).await.status, 200);
    assert_eq!(
        admin.post(at, "/v1/agencies", &agency("clinic", json!({"parent": "health"}))).await.status,
        200
    );
    let vm = json!({"metadata": {"name": "web"}, "spec": {"vcpus": 1, "memory_mib": 512}}).to_string();
    assert_eq!(admin.post(at, "/v1/agencies/clinic/vms", &vm).await.status, 200);
    let refused = patch(&admin, at, "health", json!({"state": "AGENCY_STATE_ARCHIVED"})).await;
    assert_eq!(refused.json()["details"][0]["reason"], "NotOff", "{:?}", refused.body);
    let frozen = patch(&admin, at, "health", json!({"state": "AGENCY_STATE_FROZEN"})).await;
    assert_eq!(frozen.json()["status"]["phase"], "AGENCY_PHASE_FROZEN", "{:?}", frozen.body);
    let group =
        json!({"metadata": {"name": "apart"}, "spec": {"rules": [{"kind": "PLACEMENT_RULE_KIND_APART"}]}});
    let new = [("vms", vm.replace("web", "next")), ("placement-groups", group.to_string())];
    for (kind, body) in new {
        let refused = admin.post(at, &format!("/v1/agencies/clinic/{kind}"), &body).await;
        assert_eq!(refused.json()["details"][0]["reason"], "AgencyFrozen", "{:?}", refused.body);
    }
    let clinic = admin.get(at, "/v1/agencies/clinic").await.json();
    assert_eq!(clinic["status"]["conditions"][0]["reason"], "AgencyAbove");
    let refused = admin.call(at, Method::DELETE, "/v1/agencies/health", "").await;
    assert!(
        refused.json()["message"].as_str().unwrap().contains("1 agencies below it"),
        "{:?}",
        refused.body
    );
    assert_eq!(admin.post(at, "/v1/agencies/clinic/vms/web:stop", "{}").await.status, 200);
    let archived = patch(&admin, at, "health", json!({"state": "AGENCY_STATE_ARCHIVED"})).await;
    assert_eq!(archived.status, 200, "{:?}", archived.body);
    let refused = admin.post(at, "/v1/agencies/clinic/vms/web:start", "{}").await;
    assert_eq!(refused.json()["details"][0]["reason"], "AgencyArchived", "{:?}", refused.body);
}

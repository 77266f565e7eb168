//! People of an identity provider on real controllers: who its keys vouch for comes in, with the roles that are bound to
//! him and his groups and no others, on any controller; and what is not so does not.

use crate::cloud::provider::Provider;
use crate::cloud::{Cloud, User};
use http::Method;
use serde_json::{Value, json};
use tamdao_proto::v1;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tonic::Code;

async fn agency(cloud: &Cloud, name: &str) {
    let body = json!({"metadata": {"name": name}}).to_string();
    assert_eq!(cloud.admin().post(cloud.address(0), "/v1/agencies", &body).await.status, 200);
}

async fn bind(user: &User, at: &str, agency: &str, name: &str, spec: Value) -> u16 {
    let path = match agency {
        "" => "/v1/role-bindings".to_owned(),
        agency => format!("/v1/agencies/{agency}/role-bindings"),
    };
    let body = json!({"metadata": {"name": name}, "spec": spec}).to_string();
    user.post(at, &path, &body).await.status.as_u16()
}

fn reason(answer: &crate::cloud::Answer) -> (u16, String) {
    if answer.status == 200 {
        return (200, String::new());
    }
    let reason = answer.json()["details"][0]["reason"].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_has_the_roles_that_are_bound_and_on_every_controller() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path()).await;
    let mut cloud = Cloud::found_with(&provider.section()).await;
    cloud.join_with("c2", &provider.section()).await;
    cloud.join_with("c3", &provider.section()).await;
    let at = cloud.address(cloud.follower()).to_owned();
    let admin = cloud.admin();
    for name in ["health", "works"] {
        agency(&cloud, name).await;
    }
    let lan = cloud.with_token(&provider.token(json!({"groups": ["Sở Y tế", "staff"]})));
    // Known, and nobody here.
    let answer = lan.get(&at, "/v1/flavors").await;
    assert_eq!(reason(&answer), (403, "NotAllowed".into()));
    assert!(answer.hint().contains("role-binding create"), "{}", answer.hint());
    assert_eq!(lan.get(&at, "/v1/agencies/health").await.status, 404);
    // A member by her group, written with combining characters, and a viewer elsewhere by her name.
    let group = json!({"role": "ROLE_MEMBER", "group": "So\u{31b}\u{309} Y te\u{302}\u{301}"});
    assert_eq!(bind(&admin, &at, "health", "staff", group).await, 200);
    assert_eq!(bind(&admin, &at, "works", "lan", json!({"role": "ROLE_VIEWER", "user": "lan"})).await, 200);
    crate::cloud::eventually("the roles have come to the follower", || async {
        (lan.get(&at, "/v1/agencies/works").await.status == 200).then_some(())
    })
    .await;
    // A change goes on to the leader, with her groups.
    let vm = json!({"metadata": {"name": "web"}, "spec": {"vcpus": 1, "memory_mib": 512}}).to_string();
    let made = lan.post(&at, "/v1/agencies/health/vms", &vm).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    assert_eq!(lan.post(&at, "/v1/agencies/works/vms", &vm).await.status, 403);
    let names = lan.get(&at, "/v1/agencies").await.json();
    assert_eq!(names["agencies"].as_array().unwrap().len(), 2, "{names}");
    // Others of the provider are others.
    let minh = cloud.with_token(&provider.token(json!({"sub": "minh", "groups": ["staff"]})));
    assert_eq!(minh.get(&at, "/v1/flavors").await.status, 403);
    // The audit log has her by name.
    let mut grpc = v1::audit_service_client::AuditServiceClient::new(admin.channel(&at));
    let request = v1::WatchAuditRequest { until_now: true, method: "CreateVm".into(), ..Default::default() };
    let mut told = grpc.watch_audit(admin.ask(request)).await.unwrap().into_inner();
    let record = told.message().await.unwrap().unwrap().record.unwrap();
    assert_eq!((&*record.principal, &*record.code), ("user:lan", "Ok"));
    // A watch ends with the role, at once.
    let mut grpc = VmServiceClient::new(lan.channel(&at));
    let request = v1::WatchVmsRequest { agency: "health".into(), ..Default::default() };
    let mut watch = grpc.watch_vms(lan.ask(request)).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().vm.is_some());
    let taken = admin.call(&at, Method::DELETE, "/v1/agencies/health/role-bindings/staff", "").await;
    assert_eq!(taken.status, 200, "{:?}", taken.body);
    let end = loop {
        match watch.message().await {
            Ok(message) => assert!(message.is_some(), "it ended without a reason"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code(), Code::NotFound, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_did_not_sign_for_this_cloud_and_time_lets_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path()).await;
    let cloud = Cloud::found_with(&provider.section()).await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    assert_eq!(bind(&admin, &at, "", "lan", json!({"role": "ROLE_CLOUD_ADMIN", "user": "lan"})).await, 200);
    let ask = async |token: &str| reason(&cloud.with_token(token).get(&at, "/v1/flavors").await);
    let good = provider.token(json!({}));
    assert_eq!(ask(&good).await.0, 200);
    let (begin, _) = good.rsplit_once('.').unwrap();
    for (token, why) in [
        (provider.token(json!({"exp": 1_000_000})), "TokenExpired"),
        (provider.token(json!({"aud": "other"})), "BadToken"),
        (provider.token(json!({"iss": "https://other.example"})), "BadToken"),
        (provider.forged("ES256"), "BadToken"),
        (provider.forged("HS256"), "BadToken"),
        (provider.forged("none"), "BadToken"),
        (format!("{begin}."), "BadToken"),
        ("eyJ.eyJ.x".to_owned(), "BadToken"),
    ] {
        assert_eq!(ask(&token).await, (401, why.into()), "{token}");
    }
    // Nobody says by a header who he is.
    let request = cloud.anonymous().request(&at, Method::GET, "/v1/flavors");
    let told = request.header("x-tamdao-principal", "admin:1").body(axum::body::Body::empty()).unwrap();
    assert_eq!(cloud.anonymous().send(told).await.status, 401);
    // A cloud that knows no provider.
    let other = Cloud::found().await;
    let answer = other.with_token(&good).get(other.address(0), "/v1/flavors").await;
    assert_eq!(reason(&answer), (401, "NoIssuer".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_turned_and_those_known_go_on_without_the_provider() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path()).await;
    let cloud = Cloud::found_with(&provider.section()).await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    assert_eq!(bind(&admin, &at, "", "lan", json!({"role": "ROLE_AUDITOR", "user": "lan"})).await, 200);
    let ask = async |token: &str| reason(&cloud.with_token(token).get(&at, "/v1/flavors").await);
    let before = provider.token(json!({}));
    assert_eq!(ask(&before).await.0, 200);
    provider.turn("second");
    let after = provider.token(json!({}));
    assert_eq!(ask(&after).await.0, 200);
    assert_eq!(ask(&before).await, (401, "BadToken".into()), "the provider has withdrawn that key");
    provider.stop().await;
    assert_eq!(ask(&after).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_provider_that_answers_people_are_told_so_and_tokens_work() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path()).await;
    let (section, token) = (provider.section(), provider.token(json!({})));
    provider.stop().await;
    let cloud = Cloud::found_with(&section).await;
    let at = cloud.address(0).to_owned();
    let answer = cloud.with_token(&token).get(&at, "/v1/flavors").await;
    assert_eq!(reason(&answer), (503, "IssuerUnreachable".into()));
    assert_eq!(cloud.admin().get(&at, "/v1/flavors").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_binds_a_role_that_he_has_not_and_a_token_takes_its_bindings_along() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path()).await;
    let cloud = Cloud::found_with(&provider.section()).await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    for name in ["health", "works"] {
        agency(&cloud, name).await;
    }
    let head = json!({"role": "ROLE_AGENCY_ADMIN", "user": "lan"});
    assert_eq!(bind(&admin, &at, "health", "lan", head).await, 200);
    let lan = cloud.with_token(&provider.token(json!({})));
    let user = |role: &str| json!({"role": role, "user": "minh"});
    assert_eq!(bind(&lan, &at, "health", "a", user("ROLE_MEMBER")).await, 200);
    assert_eq!(bind(&lan, &at, "health", "a", user("ROLE_MEMBER")).await, 409);
    assert_eq!(bind(&lan, &at, "health", "b", user("ROLE_CLOUD_ADMIN")).await, 400);
    assert_eq!(bind(&lan, &at, "", "b", user("ROLE_AUDITOR")).await, 403);
    assert_eq!(bind(&lan, &at, "works", "b", user("ROLE_VIEWER")).await, 404);
    for wrong in [
        json!({"role": "ROLE_MEMBER"}),
        json!({"user": "minh"}),
        json!({"role": "ROLE_MEMBER", "user": "minh", "group": "staff"}),
        json!({"role": "ROLE_MEMBER", "token": "deployer"}),
        json!({"role": "ROLE_MEMBER", "token": uuid::Uuid::nil()}),
        json!({"role": "ROLE_MEMBER", "user": "a\nb"}),
    ] {
        assert_eq!(bind(&lan, &at, "health", "c", wrong.clone()).await, 400, "{wrong}");
    }
    // Its role and subject stay; its labels are its owner's.
    let patch = async |mask: &str, body: Value| {
        let path = format!("/v1/agencies/health/role-bindings/a?update_mask={mask}");
        lan.call(&at, Method::PATCH, &path, &body.to_string()).await.status.as_u16()
    };
    assert_eq!(patch("spec.role", json!({"spec": {"role": "ROLE_AGENCY_ADMIN"}})).await, 400);
    assert_eq!(patch("spec.user", json!({"spec": {"user": "lan"}})).await, 400);
    assert_eq!(patch("metadata.labels", json!({"metadata": {"labels": {"a": "b"}}})).await, 200);
    // A token of one agency is given a role at another one.
    let body = json!({"metadata": {"name": "deployer"}, "spec": {"role": "ROLE_VIEWER"}}).to_string();
    let made = admin.post(&at, "/v1/agencies/health/tokens", &body).await.json();
    let deployer = cloud.with_token(made["secret"].as_str().unwrap());
    assert_eq!(deployer.get(&at, "/v1/agencies/works").await.status, 404);
    let token = json!({"role": "ROLE_MEMBER", "token": made["token"]["metadata"]["id"]});
    assert_eq!(bind(&admin, &at, "works", "deployer", token).await, 200);
    let vm = json!({"metadata": {"name": "web"}, "spec": {"vcpus": 1, "memory_mib": 512}}).to_string();
    assert_eq!(deployer.post(&at, "/v1/agencies/works/vms", &vm).await.status, 200);
    assert_eq!(deployer.post(&at, "/v1/agencies/health/vms", &vm).await.status, 403);
    // An agency that still gives roles is not empty; and a token takes along what it was given.
    let gone = admin.call(&at, Method::DELETE, "/v1/agencies/health", "").await;
    assert!(String::from_utf8_lossy(&gone.body).contains("2 role bindings"), "{:?}", gone.body);
    assert_eq!(admin.call(&at, Method::DELETE, "/v1/agencies/health/tokens/deployer", "").await.status, 200);
    assert_eq!(admin.get(&at, "/v1/agencies/works/role-bindings/deployer").await.status, 404);
}

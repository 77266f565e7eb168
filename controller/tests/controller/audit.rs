//! The audit log on real controllers, over both faces: every change and every refusal is in a journal, with who asked,
//! from where, on what; no secret is; what was acknowledged is there after a crash; and what is changed is found.

use std::fs;
use std::path::PathBuf;

use crate::cloud::{Cloud, User, node_request};
use axum::body::Body;
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tamdao_controller::assembly::Controller;
use tamdao_controller::identity::Identity;
use tamdao_proto::agent::v1::enroll_service_client::EnrollServiceClient;
use tamdao_proto::v1;
use tamdao_proto::v1::audit_service_client::AuditServiceClient;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tonic::Code;

pub async fn log(user: &User, at: &str, request: v1::WatchAuditRequest) -> Vec<v1::WatchAuditResponse> {
    let mut grpc = AuditServiceClient::new(user.channel(at));
    let request = v1::WatchAuditRequest { until_now: true, ..request };
    let mut told = grpc.watch_audit(user.ask(request)).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(message) = told.message().await.unwrap() {
        found.push(message);
    }
    let end = found.pop().unwrap();
    assert_eq!(end.event(), v1::WatchEvent::Bookmark);
    found
}

async fn records(user: &User, at: &str) -> Vec<v1::AuditRecord> {
    let told = log(user, at, v1::WatchAuditRequest::default()).await;
    told.into_iter().map(|message| message.record.unwrap()).collect()
}

async fn made(user: &User, at: &str, path: &str, body: Value) -> Value {
    let answer = user.post(at, path, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()
}

async fn token(cloud: &Cloud, at: &str, agency: &str, name: &str, role: &str) -> User {
    let body = json!({"metadata": {"name": name}, "spec": {"role": role}});
    let path = if agency.is_empty() { "/v1/tokens".into() } else { format!("/v1/agencies/{agency}/tokens") };
    let made = made(&cloud.admin(), at, &path, body).await;
    cloud.with_token(made["secret"].as_str().unwrap())
}

fn vm(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"vcpus": 1, "memory_mib": 512}})
}

/// The one record that is about this.
fn only<'a>(records: &'a [v1::AuditRecord], method: &str, name: &str) -> &'a v1::AuditRecord {
    let found: Vec<_> =
        records.iter().filter(|record| record.method == method && record.name == name).collect();
    assert_eq!(found.len(), 1, "{method} {name}: {records:#?}");
    found[0]
}

fn journal(cloud: &Cloud, at: usize) -> Vec<PathBuf> {
    let files = fs::read_dir(cloud.running[at].config.data_dir.join("journal")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_told_everywhere_and_a_refusal_by_whoever_refused() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    cloud.join("c3").await;
    let follower = cloud.follower();
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    let (leads, follows) = (cloud.address(leader).to_owned(), cloud.address(follower).to_owned());
    let admin = cloud.admin();
    made(&admin, &follows, "/v1/agencies", json!({"metadata": {"name": "health"}})).await;
    made(&admin, &follows, "/v1/agencies", json!({"metadata": {"name": "works"}})).await;
    let member = token(&cloud, &follows, "health", "deployer", "ROLE_MEMBER").await;
    let viewer = token(&cloud, &follows, "health", "looker", "ROLE_VIEWER").await;
    made(&member, &follows, "/v1/agencies/health/vms", vm("web")).await;
    // Over the other face, refused by the leader; and on the follower, by itself.
    let mut grpc = VmServiceClient::new(viewer.channel(&follows));
    let request = v1::DeleteVmRequest { agency: "health".into(), name: "web".into(), ..Default::default() };
    assert_eq!(grpc.delete_vm(viewer.ask(request)).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(member.get(&follows, "/v1/agencies/works/vms/db").await.status, 404);
    assert_eq!(cloud.anonymous().get(&follows, "/v1/vms").await.status, 401);
    assert_eq!(
        member.post(&leads, "/v1/agencies/health/vms?validate_only=true", &vm("no").to_string()).await.status,
        200
    );

    let (here, there) = (records(&admin, &leads).await, records(&admin, &follows).await);
    let create = only(&here, "VmService/CreateVm", "web");
    assert!(create.principal.starts_with("token:") && create.principal.ends_with(":deployer"), "{create:?}");
    assert_eq!((create.role(), &*create.role_agency), (v1::Role::Member, "health"));
    assert!(create.peer.starts_with("127.0.0.1:"), "{create:?}");
    let name = |at: usize| cloud.running[at].controller.shared.me.name.to_string();
    assert_eq!((&create.controller, &create.via), (&name(leader), &name(follower)));
    assert_eq!((&*create.agency, &*create.code, create.count), ("health", "Ok", 1));
    assert_eq!(create.changes.len(), 1, "{create:?}");
    let change = &create.changes[0];
    assert_eq!((&*change.kind, &*change.agency, &*change.name), ("vm", "health", "web"));
    // The digest is that of the record as it was committed with it.
    let commits =
        cloud.running[leader].controller.shared.cache.after(tamdao_store::kv::Revision(create.revision - 1));
    let deltas = commits.unwrap()[0].deltas.clone();
    let digests: Vec<String> = deltas
        .iter()
        .filter_map(|delta| delta.after.as_ref())
        .map(|r| hex::encode(Sha256::digest(r.json())))
        .collect();
    assert!(change.before.is_empty() && digests.contains(&change.after), "{change:?}");
    // What was committed is told by both alike; what was refused, once.
    assert_eq!(only(&there, "VmService/CreateVm", "web"), create);
    let refused = only(&here, "VmService/DeleteVm", "web");
    assert_eq!(
        (&*refused.code, &*refused.reason, &*refused.via),
        ("PermissionDenied", "NotAllowed", &*name(follower))
    );
    assert_eq!((refused.revision, refused.changes.len()), (0, 0));
    assert!(there.iter().all(|record| record.method != "VmService/DeleteVm"));
    let hidden = only(&there, "VmService/GetVm", "db");
    assert_eq!(
        (&*hidden.code, &*hidden.agency, &*hidden.controller),
        ("NotFound", "works", &*name(follower))
    );
    let unknown = only(&there, "VmService/ListVms", "");
    assert_eq!(
        (&*unknown.principal, &*unknown.code, &*unknown.reason),
        ("anonymous", "Unauthenticated", "NoCredentials")
    );
    assert!(here.iter().all(|record| record.name != "no"), "what was only tried is no change");
    // The rest of a log is read from a cursor, and it is not that of another controller.
    let told = log(&admin, &leads, v1::WatchAuditRequest::default()).await;
    let cursor = told[2].cursor.clone();
    let rest =
        log(&admin, &leads, v1::WatchAuditRequest { cursor: cursor.clone(), ..Default::default() }).await;
    assert_eq!(rest[..], told[3..]);
    let mut grpc = AuditServiceClient::new(admin.channel(&follows));
    let foreign = v1::WatchAuditRequest { cursor, ..Default::default() };
    assert_eq!(grpc.watch_audit(admin.ask(foreign)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_shows_what_its_reader_may_see_and_what_is_asked_for() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    for (name, parent) in [("parent", ""), ("own", "parent"), ("child", "own"), ("foreign", "")] {
        made(&admin, &at, "/v1/agencies", json!({"metadata": {"name": name}, "spec": {"parent": parent}}))
            .await;
    }
    let head = token(&cloud, &at, "own", "head", "ROLE_AGENCY_ADMIN").await;
    let foreign = token(&cloud, &at, "foreign", "other", "ROLE_AGENCY_ADMIN").await;
    for agency in ["parent", "own", "child", "foreign"] {
        made(&admin, &at, &format!("/v1/agencies/{agency}/vms"), vm("web")).await;
    }
    // The cloud's own is the cloud's, though every agency may read it.
    let flavor = json!({"metadata": {"name": "small"}, "spec": {"vcpus": 1, "memory_mib": 512}});
    made(&admin, &at, "/v1/flavors", flavor).await;
    assert_eq!(head.get(&at, "/v1/agencies/foreign").await.status, 404);
    assert_eq!(foreign.get(&at, "/v1/agencies/own").await.status, 404);
    let seen = |records: Vec<v1::AuditRecord>| -> Vec<String> {
        let told = records.into_iter().map(|record| match record.changes.first() {
            Some(change) => format!("{} {}/{}", record.method, change.agency, change.name),
            None => format!(
                "{} {} by {}",
                record.method,
                record.name,
                record.principal.rsplit(':').next().unwrap()
            ),
        });
        told.collect()
    };
    assert_eq!(
        seen(records(&head, &at).await),
        [
            "AgencyService/CreateAgency own/own",
            "AgencyService/CreateAgency child/child",
            "TokenService/CreateToken own/head",
            "VmService/CreateVm own/web",
            "VmService/CreateVm child/web",
            "AgencyService/GetAgency foreign by head",
        ]
    );
    let auditor = token(&cloud, &at, "", "auditor", "ROLE_AUDITOR").await;
    let (all, whole) = (records(&auditor, &at).await, records(&admin, &at).await);
    assert_eq!(all, whole);
    assert!(all.iter().any(|record| record.method == "FlavorService/CreateFlavor"), "{all:#?}");
    let asked = async |request| {
        let told = log(&auditor, &at, request).await;
        seen(told.into_iter().map(|message| message.record.unwrap()).collect())
    };
    assert_eq!(
        asked(v1::WatchAuditRequest { agency: "child".into(), ..Default::default() }).await,
        ["AgencyService/CreateAgency child/child", "VmService/CreateVm child/web"]
    );
    assert_eq!(
        asked(v1::WatchAuditRequest { principal: "other".into(), ..Default::default() }).await,
        ["AgencyService/GetAgency own by other"]
    );
    assert_eq!(
        asked(v1::WatchAuditRequest { method: "CreateVm".into(), ..Default::default() }).await.len(),
        4
    );
    assert_eq!(asked(v1::WatchAuditRequest { refused_only: true, ..Default::default() }).await.len(), 2);
    let later = v1::WatchAuditRequest {
        since: Some(pbjson_types::Timestamp { seconds: i64::from(u32::MAX), nanos: 0 }),
        ..Default::default()
    };
    assert_eq!(asked(later).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_journal() {
    const SECRET: &str = "Xq7secretZw9";
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    made(&admin, &at, "/v1/agencies", json!({"metadata": {"name": "health"}})).await;
    let mut secrets = vec![SECRET.to_owned(), cloud.token.clone()];
    let with = |name: &str, secret: &str| {
        let mut vm = vm(name);
        vm["spec"]["user_data"] = json!(format!("#cloud-config\npassword: {secret}\n"));
        vm
    };
    made(&admin, &at, "/v1/agencies/health/vms", with("web", SECRET)).await;
    let path = "/v1/agencies/health/vms/web?update_mask=spec.user_data";
    let changed = admin.call(&at, Method::PATCH, path, &with("web", SECRET).to_string()).await;
    assert_eq!(changed.status, 200, "{:?}", changed.body);
    // Refused for the field that has it, for another, and where there is no such thing.
    let mut wrong = with("bad", SECRET);
    wrong["spec"]["user_data"] = json!(SECRET.repeat(10_000));
    assert_eq!(admin.post(&at, "/v1/agencies/health/vms", &wrong.to_string()).await.status, 400);
    let mut wrong = with("bad", SECRET);
    wrong["spec"]["vcpus"] = json!(SECRET);
    assert_eq!(admin.post(&at, "/v1/agencies/health/vms", &wrong.to_string()).await.status, 400);
    let again = format!("/v1/agencies/health/vms?request_id={SECRET}");
    assert_eq!(admin.post(&at, &again, &vm("bad").to_string()).await.status, 400);
    assert_eq!(admin.get(&at, &format!("/v1/{SECRET}?token={SECRET}")).await.status, 404);
    assert_eq!(
        admin.call(&at, Method::PUT, &format!("/v1/images/{SECRET}/content"), SECRET).await.status.as_u16()
            / 100,
        4
    );
    // Tokens of all sorts: made, used, wrong, and used up.
    let body = json!({"metadata": {"name": "deployer"}, "spec": {"role": "ROLE_MEMBER"}});
    let given = made(&admin, &at, "/v1/agencies/health/tokens", body).await;
    secrets.push(given["secret"].as_str().unwrap().to_owned());
    let join = cloud.join_token(&admin, "JOIN_TOKEN_KIND_NODE", 1).await;
    for name in ["n1", "n2"] {
        let mut enroll = EnrollServiceClient::new(cloud.anonymous().channel(&at));
        let (request, key) = node_request(&join, name);
        secrets.push(key);
        assert_eq!(enroll.enroll_node(request).await.is_ok(), name == "n1");
    }
    secrets.push(join);
    assert_eq!(cloud.with_token(SECRET).get(&at, "/v1/vms").await.status, 401);
    let basic = cloud.anonymous().request(&at, Method::GET, "/v1/vms").header("authorization", SECRET);
    assert_eq!(cloud.anonymous().send(basic.body(Body::empty()).unwrap()).await.status.as_u16() / 100, 4);
    let image =
        json!({"metadata": {"name": "i"}, "spec": {"url": format!("https://u:{SECRET}@127.0.0.1:9/i")}});
    admin.post(&at, "/v1/images", &image.to_string()).await;

    let told = records(&admin, &at).await;
    let count = |method: &str| told.iter().filter(|record| record.method.ends_with(method)).count();
    assert_eq!(
        (
            count("CreateVm"),
            count("UpdateVm"),
            count("CreateToken"),
            count("CreateJoinToken"),
            count("EnrollNode")
        ),
        (4, 1, 1, 1, 2),
        "{told:#?}"
    );
    assert_eq!(
        (count("GET /v1/..."), count("PUT /v1/.../content"), count("ListVms")),
        (1, 1, 2),
        "{told:#?}"
    );
    let text: String = journal(&cloud, 0).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let shown = serde_json::to_string(&told).unwrap();
    for secret in &secrets {
        // A key has lines, which JSON writes otherwise.
        let part = secret.lines().max_by_key(|line| line.len()).unwrap();
        let bare = part.rsplit('.').next().unwrap();
        for kept in [part, bare] {
            assert!(!text.contains(kept) && !shown.contains(kept), "{kept}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_the_journal_after_a_crash_and_what_is_changed_is_found() {
    let mut cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    for name in ["a", "b", "c"] {
        made(&admin, &at, "/v1/agencies", json!({"metadata": {"name": name}})).await;
    }
    assert_eq!(records(&admin, &at).await.len(), 3);
    let verified = async |user: &User| {
        let mut grpc = AuditServiceClient::new(user.channel(&at));
        grpc.verify_audit(user.ask(v1::VerifyAuditRequest {})).await.unwrap().into_inner()
    };
    let sound = verified(&admin).await;
    assert!(sound.damage.is_empty() && sound.first == 1 && sound.last == sound.entries, "{sound:?}");

    // As if it had died between the commit and the journal, the last line torn.
    let stopped = cloud.running.remove(0);
    stopped.controller.stop().await;
    let path = stopped.config.data_dir.join("journal").join("journal-00000000000000000001.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let cut = text.find("\"audit/").unwrap();
    fs::write(&path, &text[..cut]).unwrap();
    let controller =
        Controller::start(&stopped.config, Identity::of(&stopped.config).unwrap()).await.unwrap();
    cloud.running.push(crate::cloud::Running { config: stopped.config, controller });
    cloud.settled().await;
    let names: Vec<String> = records(&admin, &at).await.into_iter().map(|record| record.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(verified(&admin).await.damage.is_empty());

    // Somebody makes another name of one, while it runs.
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let of_b = |line: &String| line.contains("\"audit/") && line.contains("\"name\":\"b\"");
    let at_b = lines.iter().position(of_b).unwrap();
    lines[at_b] = lines[at_b].replace("\"name\":\"b\"", "\"name\":\"x\"");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let damage = verified(&admin).await.damage;
    assert!(
        damage.contains(&format!("000001.jsonl, line {}: its content was changed", at_b + 1)),
        "{damage}"
    );
    // Or takes the last ones away.
    let kept: Vec<&str> = text.lines().collect();
    fs::write(&path, kept[..kept.len() - 2].join("\n") + "\n").unwrap();
    let damage = verified(&admin).await.damage;
    assert!(damage.contains("are missing at the end"), "{damage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_and_ends_with_its_readers_token() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    let auditor = token(&cloud, &at, "", "auditor", "ROLE_AUDITOR").await;
    let mut grpc = AuditServiceClient::new(auditor.channel(&at));
    let mut told =
        grpc.watch_audit(auditor.ask(v1::WatchAuditRequest::default())).await.unwrap().into_inner();
    let mut next = async || loop {
        match told.message().await.map_err(|end| end.code())? {
            Some(message) if message.record.is_some() => return Ok(message.record.unwrap().method),
            Some(_) => {}
            None => return Err(Code::Ok),
        }
    };
    assert_eq!(next().await, Ok("TokenService/CreateToken".to_owned()));
    made(&admin, &at, "/v1/agencies", json!({"metadata": {"name": "health"}})).await;
    assert_eq!(next().await, Ok("AgencyService/CreateAgency".to_owned()));
    assert_eq!(cloud.anonymous().get(&at, "/v1/flavors").await.status, 401);
    assert_eq!(next().await, Ok("FlavorService/ListFlavors".to_owned()));
    assert_eq!(admin.call(&at, Method::DELETE, "/v1/tokens/auditor", "").await.status, 200);
    let end = next().await;
    assert!(matches!(end, Err(Code::Unauthenticated)), "{end:?}");
}

//! Roles on a real controller: every method of the contract, asked by everybody about every agency, answers as the one
//! table says; lists and watches show what may be seen; tokens come in, are shown once, and stop when they are revoked.

use crate::cloud::provider::Provider;
use crate::cloud::{Cloud, User};
use axum::body::Body;
use http::Method;
use prost::Message;
use serde_json::{Value, json};
use tamdao_controller::methods::catalogue;
use tamdao_model::role::{self, Grant, Place, Role, Target, Verdict};
use tamdao_model::{AgencyId, mask};
use tamdao_proto::v1;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tonic::Code;
use uuid::Uuid;

const ROLES: [(Role, &str); 6] = [
    (Role::CloudAdmin, "ROLE_CLOUD_ADMIN"),
    (Role::Operator, "ROLE_OPERATOR"),
    (Role::Auditor, "ROLE_AUDITOR"),
    (Role::AgencyAdmin, "ROLE_AGENCY_ADMIN"),
    (Role::Member, "ROLE_MEMBER"),
    (Role::Viewer, "ROLE_VIEWER"),
];

/// A tree of four agencies: own stands below parent and above child; foreign stands alone.
const AGENCIES: [(&str, &str); 4] = [("parent", ""), ("own", "parent"), ("child", "own"), ("foreign", "")];

async fn tree() -> Cloud {
    tree_with("").await
}

async fn tree_with(more: &str) -> Cloud {
    let cloud = Cloud::found_with(more).await;
    for (name, parent) in AGENCIES {
        let body = json!({"metadata": {"name": name}, "spec": {"parent": parent}}).to_string();
        let made = cloud.admin().post(cloud.address(0), "/v1/agencies", &body).await;
        assert_eq!(made.status, 200, "{:?}", made.body);
    }
    cloud
}

async fn token(cloud: &Cloud, maker: &User, name: &str, role: &str, agency: &str) -> User {
    let path =
        if agency.is_empty() { "/v1/tokens".to_owned() } else { format!("/v1/agencies/{agency}/tokens") };
    let body = json!({"metadata": {"name": name}, "spec": {"role": role}}).to_string();
    let made = maker.post(cloud.address(0), &path, &body).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    cloud.with_token(made.json()["secret"].as_str().unwrap())
}

async fn bind(cloud: &Cloud, maker: &User, name: &str, spec: Value, agency: &str) {
    let path = match agency {
        "" => "/v1/role-bindings".to_owned(),
        agency => format!("/v1/agencies/{agency}/role-bindings"),
    };
    let body = json!({"metadata": {"name": name}, "spec": spec}).to_string();
    let made = maker.post(cloud.address(0), &path, &body).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
}

/// A request of a method that names an agency in whatever field says whom it concerns.
fn request(input: &str, agency: &str, place: Place) -> Vec<u8> {
    let descriptor = mask::descriptor(&format!("tamdao.v1.{input}")).unwrap();
    let mut message = prost_reflect::DynamicMessage::new(descriptor.clone());
    let text = |text: &str| prost_reflect::Value::String(text.to_owned());
    if descriptor.get_field_by_name("validate_only").is_some() {
        message.set_field_by_name("validate_only", prost_reflect::Value::Bool(true));
    }
    match place {
        Place::Itself | Place::Above => message.set_field_by_name("name", text(agency)),
        Place::Parent => {
            let spec = v1::AgencySpec { parent: agency.into(), ..Default::default() };
            let of = v1::Agency { spec: Some(spec), ..Default::default() };
            return v1::CreateAgencyRequest { agency: Some(of), validate_only: true, ..Default::default() }
                .encode_to_vec();
        }
        Place::Agency | Place::AgencyOrShared | Place::AgencyOrCloud => {
            message.set_field_by_name("agency", text(agency));
            if descriptor.get_field_by_name("name").is_some() && !input.starts_with("Watch") {
                message.set_field_by_name("name", text("nothing"));
            }
        }
        Place::Cloud | Place::Shared => {
            if descriptor.get_field_by_name("name").is_some() && !input.starts_with("Watch") {
                message.set_field_by_name("name", text("nothing"));
            }
        }
    }
    message.encode_to_vec()
}

/// The code and the message of a call's answer.
async fn call(user: &User, at: &str, path: &str, message: &[u8]) -> (Code, String) {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let request = user.request(at, Method::POST, path).header("content-type", "application/grpc");
    let answer = user.open(request.header("te", "trailers").body(Body::from(framed)).unwrap()).await;
    let text = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    // Who is let in gets a body, and a stream may never end: what stands in the head is enough.
    let code = text("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    (code, text("grpc-message").unwrap_or_default())
}

fn uuid(at: u128) -> AgencyId {
    AgencyId(Uuid::from_u128(at + 1))
}

/// What the table says of somebody with this role at `own` (or at the cloud) and this agency.
fn verdict(method: &str, role: Role, at_cloud: bool, agency: usize) -> Verdict {
    let row = role::row(method);
    let lines: [&[u128]; 4] = [&[0], &[1, 0], &[2, 1, 0], &[3]];
    let line: Vec<AgencyId> = lines[agency].iter().map(|at| uuid(*at)).collect();
    let target = match row.place {
        Place::Cloud => Target::Cloud,
        Place::Shared => Target::Shared,
        Place::Above => Target::Above(line),
        // It names none.
        Place::Itself if method.ends_with("/ListAgencies") => Target::Seen,
        Place::Agency | Place::AgencyOrShared | Place::AgencyOrCloud | Place::Itself | Place::Parent => {
            Target::Agency(line)
        }
    };
    let grant = Grant { role, at: (!at_cloud).then(|| uuid(1)) };
    role::judge(&[grant], row, &target)
}

/// All public methods as the table names them, with the names of their requests.
fn methods() -> Vec<(String, String)> {
    let public = catalogue().iter().filter(|method| method.service.starts_with("tamdao.v1."));
    public
        .map(|method| {
            (
                method.path["/tamdao.v1.".len()..].to_owned(),
                format!("{}Request", method.path.rsplit('/').next().unwrap()),
            )
        })
        .collect()
}

#[test]
fn every_method_has_a_row_and_every_row_a_method() {
    let mut known: Vec<String> = methods().into_iter().map(|(method, _)| method).collect();
    let mut rows: Vec<String> = role::TABLE.iter().map(|row| row.method.to_owned()).collect();
    known.sort();
    rows.sort();
    assert_eq!(rows, known);
}

#[test]
fn the_table_as_a_picture() {
    let letter = |verdict| match verdict {
        Verdict::Allowed => 'y',
        Verdict::Denied => 'n',
        Verdict::Hidden => '-',
    };
    let mut text = String::from("of parent, own, child, foreign; first held at own, then at the cloud\n");
    for (method, _) in methods() {
        let cells = ROLES.iter().map(|(role, _)| {
            let of = |cloud| {
                (0..4).map(|agency| letter(verdict(&method, *role, cloud, agency))).collect::<String>()
            };
            format!("{} {}", if role.is_of_agencies() { of(false) } else { "....".into() }, of(true))
        });
        text.push_str(&format!("{method:44} {}\n", cells.collect::<Vec<_>>().join("  ")));
    }
    insta::assert_snapshot!(text);
    for (method, _) in methods() {
        let changes = !["Get", "List", "Watch", "Explain", "Dump", "Replay", "Verify"]
            .iter()
            .any(|verb| method.contains(&format!("/{verb}")));
        for agency in 0..4 {
            for role in [Role::Auditor, Role::Viewer] {
                let may =
                    [false, true].map(|cloud| verdict(&method, role, cloud, agency) == Verdict::Allowed);
                assert!(!changes || may == [false; 2], "{role:?} changes by {method}");
            }
            for (role, _) in ROLES.iter().filter(|(role, _)| role.is_of_agencies() && agency == 3) {
                let shared =
                    matches!(role::row(&method).place, Place::Shared) || method.ends_with("/ListAgencies");
                let may = verdict(&method, *role, false, agency) == Verdict::Allowed;
                assert!(shared || !may, "{role:?} of own calls {method} of foreign");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_answers_every_role_as_the_table_says() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path()).await;
    let cloud = tree_with(&provider.section()).await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    let mut users = Vec::new();
    // Each role by a token of the cloud, and by a group of the identity provider.
    for (role, word) in ROLES {
        let name = word.to_lowercase().replace('_', "-");
        for agency in ["", "own"].into_iter().filter(|agency| agency.is_empty() || role.is_of_agencies()) {
            users.push((role, agency.is_empty(), token(&cloud, &admin, &name, word, agency).await));
            let group = format!("{word} của {agency}");
            bind(&cloud, &admin, &name, json!({"role": word, "group": group}), agency).await;
            let person = provider.token(json!({"sub": word, "groups": ["everybody", group]}));
            users.push((role, agency.is_empty(), cloud.with_token(&person)));
        }
    }
    let mut wrong = Vec::new();
    for (method, input) in methods() {
        // Their agency stands in the first message of a stream.
        if method.ends_with("/UploadImage") || method.ends_with("/OpenConsole") {
            continue;
        }
        let place = role::row(&method).place;
        for (agency, (name, _)) in AGENCIES.iter().enumerate() {
            let message = request(&input, name, place);
            for (role, at_cloud, user) in &users {
                let wanted = verdict(&method, *role, *at_cloud, agency);
                // What would change the cloud itself is tried by those only who may not.
                if wanted == Verdict::Allowed && place == Place::Cloud {
                    continue;
                }
                let (code, said) = call(user, &at, &format!("/tamdao.v1.{method}"), &message).await;
                let hidden =
                    code == Code::NotFound && said.contains("no%20agency") || said.contains("no agency");
                let fits = match wanted {
                    Verdict::Allowed => {
                        !matches!(code, Code::PermissionDenied | Code::Unauthenticated) && !hidden
                    }
                    Verdict::Denied => code == Code::PermissionDenied,
                    Verdict::Hidden => hidden,
                };
                if !fits {
                    wrong.push(format!(
                        "{method} of {name} by {role:?} (cloud: {at_cloud}): {wanted:?}, but {code:?} {said}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_what_may_be_seen_and_a_foreign_name_is_no_name() {
    let cloud = tree().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    let vm = json!({"metadata": {"name": "web"}, "spec": {"vcpus": 1, "memory_mib": 512}}).to_string();
    for (name, _) in AGENCIES {
        assert_eq!(admin.post(&at, &format!("/v1/agencies/{name}/vms"), &vm).await.status, 200);
    }
    let member = token(&cloud, &admin, "deployer", "ROLE_MEMBER", "own").await;
    let names = |json: &serde_json::Value, kind: &str, field: &str| -> Vec<String> {
        let rows = json[kind].as_array().unwrap().iter();
        rows.map(|row| row["metadata"][field].as_str().unwrap().to_owned()).collect()
    };
    let mut seen = names(&member.get(&at, "/v1/vms").await.json(), "vms", "agency");
    seen.sort();
    assert_eq!(seen, ["child", "own"]);
    assert_eq!(names(&member.get(&at, "/v1/agencies").await.json(), "agencies", "name"), ["child", "own"]);
    let events = member.get(&at, "/v1/events").await.json();
    let subjects = events["events"].as_array().unwrap().iter();
    assert!(subjects.clone().count() > 0);
    assert!(
        subjects
            .into_iter()
            .all(|event| ["own", "child"].contains(&event["agency"].as_str().unwrap_or("own"))),
        "{events}"
    );
    // What is foreign and what is not there answer the same, but for the name that was asked.
    let (foreign, nothing) = (
        member.get(&at, "/v1/agencies/foreign/vms/web").await,
        member.get(&at, "/v1/agencies/nothing/vms/web").await,
    );
    assert_eq!((foreign.status.as_u16(), nothing.status.as_u16()), (404, 404));
    assert_eq!(
        String::from_utf8_lossy(&foreign.body).replace("foreign", "nothing"),
        String::from_utf8_lossy(&nothing.body)
    );
    // And a watch tells nothing of it, and ends with its token.
    let mut grpc = VmServiceClient::new(member.channel(&at));
    let mut watch = grpc.watch_vms(member.ask(v1::WatchVmsRequest::default())).await.unwrap().into_inner();
    let next = vm.replace("web", "next");
    for name in ["foreign", "parent", "own"] {
        assert_eq!(admin.post(&at, &format!("/v1/agencies/{name}/vms"), &next).await.status, 200);
    }
    let mut told = Vec::new();
    while told.len() < 3 {
        let vm = watch.message().await.unwrap().unwrap().vm;
        told.extend(
            vm.map(|vm| format!("{}/{}", vm.metadata.clone().unwrap().agency, vm.metadata.unwrap().name)),
        );
    }
    told.sort();
    assert_eq!(told, ["child/web", "own/next", "own/web"]);
    let revoked = admin.call(&at, Method::DELETE, "/v1/agencies/own/tokens/deployer", "").await;
    assert_eq!(revoked.status, 200, "{:?}", revoked.body);
    let end = loop {
        match watch.message().await {
            Ok(message) => assert!(message.is_some(), "it ended without a reason"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    assert_eq!(member.get(&at, "/v1/vms").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_a_role_that_he_has_not_and_no_list_shows_a_secret() {
    let cloud = tree().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    let head = token(&cloud, &admin, "head", "ROLE_AGENCY_ADMIN", "own").await;
    let make = async |user: &User, agency: &str, name: &str, role: &str| {
        let path =
            if agency.is_empty() { "/v1/tokens".into() } else { format!("/v1/agencies/{agency}/tokens") };
        let body = json!({"metadata": {"name": name}, "spec": {"role": role}}).to_string();
        user.post(&at, &path, &body).await.status.as_u16()
    };
    assert_eq!(make(&head, "own", "a", "ROLE_MEMBER").await, 200);
    assert_eq!(make(&head, "child", "a", "ROLE_AGENCY_ADMIN").await, 200);
    assert_eq!(make(&head, "own", "b", "ROLE_CLOUD_ADMIN").await, 400);
    assert_eq!(make(&head, "", "b", "ROLE_MEMBER").await, 403);
    assert_eq!(make(&head, "parent", "b", "ROLE_VIEWER").await, 404);
    // Its own quota and place are not its own to change; those below it are, but not to where it has no say.
    let set = async |name: &str, spec: serde_json::Value| {
        let mask: Vec<String> = spec.as_object().unwrap().keys().map(|key| format!("spec.{key}")).collect();
        let path = format!("/v1/agencies/{name}?update_mask={}", mask.join(","));
        head.call(&at, Method::PATCH, &path, &json!({ "spec": spec }).to_string()).await.status.as_u16()
    };
    assert_eq!(set("own", json!({"quota": {"vms": 100}})).await, 403);
    assert_eq!(set("child", json!({"quota": {"vms": 1}})).await, 200);
    assert_eq!(set("child", json!({"parent": ""})).await, 403);
    let listed = head.get(&at, "/v1/tokens").await;
    let text = String::from_utf8_lossy(&listed.body).into_owned();
    assert_eq!(listed.json()["tokens"].as_array().unwrap().len(), 3, "{text}");
    assert!(!text.contains("digest") && !text.contains("tdtoken1"), "{text}");
    let forged = cloud.with_token(&format!(
        "tdtoken1.{}.AAAA",
        listed.json()["tokens"][0]["metadata"]["id"].as_str().unwrap()
    ));
    assert_eq!(forged.get(&at, "/v1/flavors").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noisy_agency_changes_no_answer_of_others() {
    let limits =
        "[limits]\ncaller_per_second = 1\ncaller_burst = 20\nagency_per_second = 1\nagency_burst = 30";
    let cloud = Cloud::found_with(limits).await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    for name in ["noisy", "quiet"] {
        let body = json!({"metadata": {"name": name}}).to_string();
        assert_eq!(admin.post(&at, "/v1/agencies", &body).await.status, 200);
    }
    let noisy = token(&cloud, &admin, "a", "ROLE_VIEWER", "noisy").await;
    let colleague = token(&cloud, &admin, "b", "ROLE_VIEWER", "noisy").await;
    let quiet = token(&cloud, &admin, "a", "ROLE_VIEWER", "quiet").await;
    let until_refused = async |user: &User| loop {
        let answer = user.get(&at, "/v1/flavors").await;
        if answer.status != 200 {
            return answer;
        }
    };
    let refused = until_refused(&noisy).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["details"][0]["reason"], "TooManyRequests");
    assert_eq!(refused.headers["retry-after"], "1");
    // Its colleagues have what is left of their agency's, and no more.
    assert_eq!(colleague.get(&at, "/v1/flavors").await.status, 200);
    let refused = until_refused(&colleague).await;
    assert!(String::from_utf8_lossy(&refused.body).contains("agency asks too often"), "{:?}", refused.body);
    // Over the other face the same.
    let mut grpc = VmServiceClient::new(noisy.channel(&at));
    let status = loop {
        if let Err(status) = grpc.list_vms(noisy.ask(v1::ListVmsRequest::default())).await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
    // And nobody else notices: not another agency, not an admin, not an agent, which may call as often as it likes.
    assert_eq!(quiet.get(&at, "/v1/flavors").await.status, 200);
    let (_, node) = cloud.node("n1").await;
    for _ in 0..50 {
        assert_eq!(admin.get(&at, "/v1/flavors").await.status, 200);
        let (code, said) = call(&node, &at, "/tamdao.agent.v1.AgentService/Session", &[]).await;
        assert_ne!(code, Code::ResourceExhausted, "{said}");
    }
}

//! Break-glass: a local admin on a controller's own socket, with no token that counts, also where another controller leads;
//! all that he asks is in the audit log as his, and nobody else of the machine is let in.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::audit::log;
use crate::cloud::{Cloud, eventually};
use serde_json::Value;
use tamdao_proto::v1;
use tamdao_proto::v1::agency_service_client::AgencyServiceClient;
use tamdao_proto::v1::node_service_client::NodeServiceClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// Debian's nobody.
const NOBODY: u32 = 65_534;

fn socket(cloud: &Cloud, at: usize) -> PathBuf {
    cloud.running[at].config.data_dir.join("admin.sock")
}

fn channel(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect_lazy()
}

/// A request with credentials that count nowhere, and with a claim that nobody may make.
fn worthless<M>(message: M) -> tonic::Request<M> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer tamdao-admin-gone".parse().unwrap());
    request.metadata_mut().insert("x-tamdao-principal", "anonymous".parse().unwrap());
    request
}

fn create(name: &str) -> v1::CreateAgencyRequest {
    let metadata = Some(v1::Metadata { name: name.into(), ..Default::default() });
    let agency = Some(v1::Agency { metadata, ..Default::default() });
    v1::CreateAgencyRequest { agency, ..Default::default() }
}

/// The records of one controller's journal.
async fn records(cloud: &Cloud, at: usize) -> Vec<Value> {
    let lines = log(&cloud.admin(), cloud.address(at), v1::WatchAuditRequest::default()).await;
    lines.into_iter().map(|line| serde_json::to_value(line.record.unwrap()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_glass_is_an_admin_at_any_controller_and_is_told_of() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    cloud.join("c3").await;
    let follower = cloud.follower();
    let path = socket(&cloud, follower);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // By the port these credentials are worth nothing.
    let tcp = cloud.anonymous().channel(cloud.address(follower));
    let refused = AgencyServiceClient::new(tcp).create_agency(worthless(create("no"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let mut agencies = AgencyServiceClient::new(channel(&path));
    let made = eventually("a leader answers", || async {
        agencies.clone().create_agency(worthless(create("health"))).await.ok()
    })
    .await;
    assert_eq!(made.into_inner().metadata.unwrap().name, "health");
    // What is answered here, and what the leader alone can answer.
    agencies.list_agencies(worthless(v1::ListAgenciesRequest::default())).await.unwrap();
    let mut nodes = NodeServiceClient::new(channel(&path));
    nodes.list_nodes(worthless(v1::ListNodesRequest::default())).await.unwrap();

    let name = |at: usize| cloud.running[at].controller.shared.me.name.to_string();
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    let (here, there) = (records(&cloud, follower).await, records(&cloud, leader).await);
    let only = |records: &[Value], method: &str| -> Value {
        // While the leader changes, some may be refused before.
        let local = |one: &&Value| {
            one["code"] == "Ok" && one["principal"].as_str().is_some_and(|who| who.starts_with("local:"))
        };
        let found: Vec<_> = records.iter().filter(local).filter(|one| one["method"] == method).collect();
        assert_eq!(found.len(), 1, "{method}: {records:#?}");
        found[0].clone()
    };
    let change = only(&there, "AgencyService/CreateAgency");
    assert_eq!((&change["role"], &change["via"]), (&"ROLE_CLOUD_ADMIN".into(), &name(follower).into()));
    assert_eq!(change["peer"], format!("unix:{}", std::process::id()));
    assert_eq!(only(&here, "AgencyService/CreateAgency"), change);
    assert_eq!(only(&here, "AgencyService/ListAgencies")["controller"], name(follower));
    assert_eq!(only(&there, "NodeService/ListNodes")["via"], name(follower));
    // An admin with a token reads without a word, as ever.
    assert!(there.iter().all(|one| one["method"] != "AuditService/WatchAudit"), "{there:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_of_the_machine_is_let_in() {
    let cloud = Cloud::found().await;
    let path = socket(&cloud, 0);
    let ask = |user: u32| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--unix-socket"]).arg(&path);
        curl.arg("http://here/v1/agencies").uid(user).gid(user).output().unwrap()
    };
    // The test itself must be root to be somebody else.
    let root = ask(0);
    assert!(root.status.success(), "{root:?}");
    assert!(!ask(NOBODY).status.success());
    // Even where the file's own rights were given away.
    for open in [cloud.directory.path(), &cloud.running[0].config.data_dir] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = ask(NOBODY);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(ask(0).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_crash_left_is_taken_over() {
    let mut cloud = Cloud::found().await;
    let path = socket(&cloud, 0);
    let running = cloud.running.remove(0);
    running.controller.stop().await;
    assert!(!path.exists(), "it goes with its controller");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "as a crash leaves it");
    let identity = tamdao_controller::identity::Identity::of(&running.config).unwrap();
    let controller = tamdao_controller::assembly::Controller::start(&running.config, identity).await.unwrap();
    cloud.running.push(crate::cloud::Running { config: running.config, controller });
    cloud.settled().await;
    let mut agencies = AgencyServiceClient::new(channel(&path));
    agencies.list_agencies(worthless(v1::ListAgenciesRequest::default())).await.unwrap();
}

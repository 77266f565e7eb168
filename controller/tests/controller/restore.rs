//! A cloud of real controllers is lost and comes back, from a backup or from its last controller, while its nodes run on:
//! nothing is started twice or stopped, and what no record knows is left alone. The nodes are sessions that remember what
//! they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cloud::{Cloud, Running, User, config, eventually};
use serde_json::{Value, json};
use tamdao_backup::Identities;
use tamdao_controller::assembly::Controller;
use tamdao_controller::clock::{Clock, SystemClock};
use tamdao_controller::identity::Identity;
use tamdao_controller::recover::{self, Found, RecoverError};
use tamdao_controller::restore;
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::agent_service_client::AgentServiceClient;
use tamdao_proto::agent::v1::session_request::Message as Said;
use tamdao_proto::agent::v1::session_response::Message as Heard;
use tamdao_proto::v1;
use tamdao_proto::v1::backup_service_client::BackupServiceClient;
use tamdao_store::kv::{Entry, Prefix, Read, Revision};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

/// What a node runs, and all that it ever did.
#[derive(Default)]
struct Host {
    /// By VM, its incarnation.
    domains: BTreeMap<String, u64>,
    wanted: BTreeMap<String, agent::AssignedVm>,
    started: Vec<(String, u64)>,
    ended: Vec<String>,
    highest: (u64, u64),
    cluster: String,
    refused: Vec<String>,
}

impl Host {
    fn obey(&mut self, assignment: agent::Assignment) -> agent::Report {
        self.highest = (self.highest.0.max(assignment.revision), self.highest.1.max(assignment.epoch));
        if assignment.complete {
            self.wanted.clear();
        }
        self.wanted.extend(assignment.vms.into_iter().map(|vm| (vm.vm_id.clone(), vm)));
        let mut gone = Vec::new();
        for (id, vm) in self.wanted.clone() {
            let runs = vm.intent() == agent::Intent::Wanted && vm.power() == v1::Power::On;
            match self.domains.get(&id).copied() {
                Some(incarnation) if runs && incarnation == vm.incarnation => {}
                Some(incarnation) if incarnation > vm.incarnation => {}
                there => {
                    if there.is_some() {
                        self.domains.remove(&id);
                        self.ended.push(id.clone());
                    }
                    match runs {
                        true => {
                            self.domains.insert(id.clone(), vm.incarnation);
                            self.started.push((id, vm.incarnation));
                        }
                        false => gone.push((id, vm.incarnation)),
                    }
                }
            }
        }
        self.report(&gone)
    }

    fn report(&self, gone: &[(String, u64)]) -> agent::Report {
        let runs = self.domains.iter().map(|(id, incarnation)| agent::VmReport {
            vm_id: id.clone(),
            incarnation: *incarnation,
            generation: self.wanted.get(id).map_or(1, |vm| vm.generation),
            state: agent::GuestState::Running.into(),
            unknown: !self.wanted.contains_key(id),
            vcpus: 1,
            memory_mib: 256,
            addresses: vec!["10.9.8.7".into()],
            ..agent::VmReport::default()
        });
        let gone = gone.iter().map(|(id, incarnation)| agent::VmReport {
            vm_id: id.clone(),
            incarnation: *incarnation,
            state: agent::GuestState::Absent.into(),
            gone: true,
            ..agent::VmReport::default()
        });
        agent::Report { complete: true, vms: runs.chain(gone).collect(), ..agent::Report::default() }
    }
}

/// A node: its certificate, and the sessions that it holds with whom it is pointed to.
struct Node {
    user: User,
    host_uuid: Uuid,
    boot_id: Uuid,
    host: Arc<Mutex<Host>>,
    session: Option<tokio::task::JoinHandle<()>>,
}

impl Node {
    async fn join(cloud: &Cloud, name: &str) -> Self {
        let (_, user, host_uuid) = cloud.host(name).await;
        let mut node = Self { user, host_uuid, boot_id: Uuid::new_v4(), host: Arc::default(), session: None };
        node.point_to(cloud.address(0));
        node
    }

    /// Holds sessions with this controller from now on.
    fn point_to(&mut self, address: &str) {
        self.cut();
        let hello = agent::Hello {
            boot_id: self.boot_id.to_string(),
            agent_version: "test".into(),
            level: 1,
            address: "127.0.0.1".into(),
            host_uuid: self.host_uuid.to_string(),
            ..agent::Hello::default()
        };
        let (user, host, address) = (self.user.clone(), self.host.clone(), address.to_owned());
        self.session = Some(tokio::spawn(async move {
            loop {
                // A session that breaks is followed by the next.
                let _ = session(&user, &host, &address, hello.clone()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
    }

    fn cut(&mut self) {
        if let Some(session) = self.session.take() {
            session.abort();
        }
    }

    fn runs(&self) -> BTreeMap<String, u64> {
        self.host.lock().unwrap().domains.clone()
    }
}

async fn session(user: &User, host: &Mutex<Host>, address: &str, hello: agent::Hello) -> Option<()> {
    let (sender, requests) = mpsc::channel(64);
    let say = async |said| sender.send(agent::SessionRequest { message: Some(said) }).await.ok();
    let (highest_revision, highest_epoch) = host.lock().unwrap().highest;
    let (session_id, cluster_id) = (Uuid::new_v4().to_string(), host.lock().unwrap().cluster.clone());
    say(Said::Hello(agent::Hello { session_id, highest_revision, highest_epoch, cluster_id, ..hello }))
        .await?;
    let mut client = AgentServiceClient::new(user.channel(address));
    let mut responses = client.session(ReceiverStream::new(requests)).await.ok()?.into_inner();
    let mut beat = tokio::time::interval(Duration::from_millis(300));
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            _ = beat.tick() => {
                sequence += 1;
                say(Said::Heartbeat(agent::Heartbeat { sequence, sent_time: None })).await?;
                continue;
            }
            message = responses.message() => message.ok()??.message?,
        };
        match message {
            Heard::Welcome(welcome) => {
                // As the real agent: a leader that took office earlier than one heard already is not listened to.
                if welcome.epoch < highest_epoch {
                    host.lock().unwrap().refused.push("LowerEpoch".into());
                    return None;
                }
                host.lock().unwrap().cluster = welcome.cluster_id;
                let inventory = v1::Inventory {
                    acceleration: "kvm".into(),
                    cpus: 8,
                    memory_mib: 16_384,
                    firmware: vec!["bios".into(), "uefi".into()],
                    ..v1::Inventory::default()
                };
                say(Said::Inventory(inventory)).await?;
            }
            Heard::Assignment(assignment) => {
                let report = host.lock().unwrap().obey(assignment);
                say(Said::Report(report)).await?;
            }
            Heard::Refusal(refusal) => host.lock().unwrap().refused.push(refusal.reason),
            Heard::Redirect(_) => return None,
            Heard::Heartbeat(_) | Heard::OpenTunnel(_) | Heard::ReadLease(_) => {}
        }
    }
}

async fn create(admin: &User, at: &str, name: &str) -> String {
    let vm = json!({"metadata": {"name": name}, "spec": {"vcpus": 1, "memory_mib": 256}}).to_string();
    let made = admin.post(at, "/v1/agencies/health/vms", &vm).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    made.json()["metadata"]["id"].as_str().unwrap().to_owned()
}

async fn run_somewhere(nodes: &[Node], vms: &[&String]) {
    eventually("the VMs run", || async {
        let run: BTreeSet<String> = nodes.iter().flat_map(|node| node.runs().into_keys()).collect();
        vms.iter().all(|vm| run.contains(*vm)).then_some(())
    })
    .await;
}

async fn back_up(admin: &User, at: &str, recipient: &str) -> Vec<u8> {
    let request = v1::TakeBackupRequest { recipients: vec![recipient.to_owned()] };
    let mut parts = BackupServiceClient::new(admin.channel(at))
        .take_backup(admin.ask(request))
        .await
        .unwrap()
        .into_inner();
    let mut file = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        file.extend(part.chunk);
    }
    file
}

async fn recovery(admin: &User, at: &str) -> Value {
    let answer = admin.get(at, "/v1/cluster:recovery").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()
}

fn vms_of(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.map(|guest| guest["vm_id"].as_str().unwrap().to_owned()).collect()
}

/// Kills all controllers and restores onto a fresh one, which takes their place in the cloud's list.
async fn lose_and_restore(cloud: &mut Cloud, file: &[u8], identities: &Identities) {
    for running in cloud.running.drain(..) {
        running.controller.stop().await;
    }
    let config = config(cloud.directory.path(), "fresh");
    let restored = restore::restore(&config, file, identities, SystemClock.now()).unwrap();
    cloud.token = restored.token.expose().to_owned();
    let controller = Controller::start(&config, restored.identity).await.unwrap();
    cloud.running.push(Running { config, controller });
    cloud.settled().await;
}

/// What one node ever started and ended.
type Deeds = (Vec<(String, u64)>, Vec<String>);

fn history(nodes: &[Node]) -> Vec<Deeds> {
    let look = |node: &Node| {
        let host = node.host.lock().unwrap();
        (host.started.clone(), host.ended.clone())
    };
    nodes.iter().map(look).collect()
}

fn leader(cloud: &Cloud) -> String {
    let leads = cloud.running.iter().position(|running| running.controller.shared.leads());
    cloud.address(leads.unwrap_or_default()).to_owned()
}

async fn all_reported(admin: &User, at: &str) {
    eventually("all nodes have said what they run", || async {
        recovery(admin, at).await["awaited"].as_array().is_none_or(Vec::is_empty).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cloud_touches_nothing_before_its_operator_says_so() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    assert_eq!(admin.post(&at, "/v1/agencies", r#"{"metadata": {"name": "health"}}"#).await.status, 200);
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    let mut nodes = vec![Node::join(&cloud, "n1").await, Node::join(&cloud, "n2").await];
    let leads = cloud.address(leader).to_owned();
    nodes.iter_mut().for_each(|node| node.point_to(&leads));
    let (kept, deleted) = (create(&admin, &at, "kept").await, create(&admin, &at, "deleted").await);
    run_somewhere(&nodes, &[&kept, &deleted]).await;

    // A member may not take a backup; an admin may, from a controller that does not lead.
    let (identities, recipient) = Identities::generate();
    let body = json!({"metadata": {"name": "operator"}, "spec": {"role": "ROLE_OPERATOR"}}).to_string();
    let token = admin.post(&at, "/v1/tokens", &body).await.json()["secret"].as_str().unwrap().to_owned();
    let request = v1::TakeBackupRequest { recipients: vec![recipient.clone()] };
    let operator = cloud.with_token(&token);
    let refused = BackupServiceClient::new(operator.channel(&at)).take_backup(operator.ask(request)).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::PermissionDenied);
    let file = back_up(&admin, cloud.address(cloud.follower()), &recipient).await;
    assert_eq!(
        tamdao_backup::check::faults(&tamdao_backup::open(&file, &identities).unwrap().1.entries),
        [""; 0]
    );

    // After the backup one VM comes and one goes.
    let new = create(&admin, &at, "new").await;
    run_somewhere(&nodes, &[&new]).await;
    assert_eq!(
        admin.call(&at, http::Method::DELETE, "/v1/agencies/health/vms/deleted", "").await.status,
        200
    );
    eventually("the VM is deleted", || async {
        nodes.iter().all(|node| !node.runs().contains_key(&deleted)).then_some(())
    })
    .await;
    nodes.iter_mut().for_each(Node::cut);
    let before: Vec<_> = nodes.iter().map(Node::runs).collect();
    let done = history(&nodes);

    lose_and_restore(&mut cloud, &file, &identities).await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    let status = recovery(&admin, &at).await;
    assert_eq!(
        (&status["active"], status["awaited"].as_array().unwrap().len()),
        (&json!(true), 2),
        "{status}"
    );
    for (path, body) in [
        (
            "/v1/agencies/health/vms",
            json!({"metadata": {"name": "x"}, "spec": {"vcpus": 1, "memory_mib": 256}}),
        ),
        ("/v1/agencies/health/vms/kept:stop", json!({})),
        ("/v1/cluster:endRecovery", json!({})),
    ] {
        let refused = admin.post(&at, path, &body.to_string()).await;
        assert_eq!(refused.status, 400, "{path}: {:?}", refused.body);
    }

    // The nodes have seen higher revisions than the backup has, and are heard all the same.
    nodes.iter_mut().for_each(|node| node.point_to(&at));
    all_reported(&admin, &at).await;
    let status = recovery(&admin, &at).await;
    assert_eq!(vms_of(&status["unknown"]), std::slice::from_ref(&new), "{status}");
    assert_eq!(vms_of(&status["down"]), std::slice::from_ref(&deleted), "{status}");
    assert_eq!(history(&nodes), done, "something was started or stopped");
    assert_eq!(nodes.iter().map(Node::runs).collect::<Vec<_>>(), before);
    assert!(nodes.iter().all(|node| node.host.lock().unwrap().refused.is_empty()));

    // Only the operator ends it. What runs goes on, and what the backup has is there again.
    let ended = admin.post(&at, "/v1/cluster:endRecovery", "{}").await;
    assert_eq!(ended.status, 200, "{:?}", ended.body);
    run_somewhere(&nodes, &[&deleted]).await;
    eventually("the VM is told to run again", || async {
        let vm = admin.get(&at, "/v1/agencies/health/vms/kept").await.json();
        (vm["status"]["phase"] == "VM_PHASE_RUNNING").then_some(())
    })
    .await;
    for (now, then) in nodes.iter().map(Node::runs).zip(&before) {
        for (vm, incarnation) in then {
            assert_eq!(now.get(vm), Some(incarnation), "{vm} was touched");
        }
    }
    assert!(history(&nodes).iter().zip(&done).all(|(now, then)| now.1 == then.1), "something was stopped");
    let again: Vec<_> =
        history(&nodes).into_iter().flat_map(|host| host.0).filter(|(vm, _)| *vm == kept).collect();
    assert_eq!(again.len(), 1, "it was started once, before the loss: {again:?}");
}

/// Stops all controllers but one, then that one too. Gives what the last had, and its configuration.
async fn lose_all_but(cloud: &mut Cloud, last: usize) -> (crate::cloud::Running, Vec<Entry>) {
    let last = cloud.running.remove(last);
    // It need not be among those that acknowledged the newest commits: here it is given the time to have them.
    let newest =
        Revision(cloud.running.iter().map(|one| one.controller.shared.kv.status().revision.0).max().unwrap());
    let (entries, _) = last.controller.shared.kv.list(&Prefix::all(), Read::AtLeast(newest)).await.unwrap();
    for running in cloud.running.drain(..) {
        running.controller.stop().await;
    }
    (last, entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_three_controllers_begins_a_group_that_has_all_and_touches_nothing() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    cloud.join("c3").await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    assert_eq!(admin.post(&at, "/v1/agencies", r#"{"metadata": {"name": "health"}}"#).await.status, 200);
    let mut nodes = vec![Node::join(&cloud, "n1").await, Node::join(&cloud, "n2").await];
    nodes.iter_mut().for_each(|node| node.point_to(&leader(&cloud)));
    let (first, second) = (create(&admin, &at, "first").await, create(&admin, &at, "second").await);
    run_somewhere(&nodes, &[&first, &second]).await;
    nodes.iter_mut().for_each(Node::cut);
    let (done, runs) = (history(&nodes), nodes.iter().map(Node::runs).collect::<Vec<_>>());

    let lost: Vec<_> = cloud.running.iter().map(|running| running.config.clone()).collect();
    let (last, entries) = lose_all_but(&mut cloud, 1).await;
    let config = last.config.clone();
    assert!(matches!(recover::look(&config), Err(RecoverError::Store(_))), "it runs");
    last.controller.stop().await;
    let Found::Survivor(survivor) = recover::look(&config).unwrap() else { panic!("nothing had broken off") };
    let had: BTreeMap<_, _> =
        survivor.remains.state.entries().map(|entry| (entry.key.clone(), entry)).collect();
    for entry in entries.iter().filter(|entry| entry.mod_revision <= survivor.remains.state.revision) {
        assert!(had[&entry.key].mod_revision >= entry.mod_revision, "{} is lost", entry.key);
    }
    assert_eq!(survivor.view.vms.len(), 2);
    let recovered = survivor.recover(SystemClock.now()).unwrap();
    let controller = Controller::start(&config, Identity::of(&config).unwrap()).await.unwrap();
    cloud.running.push(Running { config, controller });
    cloud.settled().await;
    assert!(cloud.running[0].controller.shared.kv.status().revision > recovered.base);

    // It is its only controller, and the cloud recovers; the old tokens work.
    let at = cloud.address(0).to_owned();
    let status = recovery(&admin, &at).await;
    let awaited = status["awaited"].as_array().unwrap().len();
    assert_eq!(
        (&status["active"], &status["cause"], awaited),
        (&json!(true), &json!("RECOVERY_CAUSE_SURVIVOR"), 2)
    );
    let more = json!({"metadata": {"name": "x"}, "spec": {"vcpus": 1, "memory_mib": 256}}).to_string();
    assert_eq!(admin.post(&at, "/v1/agencies/health/vms", &more).await.status, 400);
    assert_eq!(admin.post(&at, "/v1/cluster:endRecovery", "{}").await.status, 400);

    // Two controllers join, and the nodes come back.
    cloud.join("c4").await;
    cloud.join("c5").await;
    let names = admin.get(&at, "/v1/controllers").await.json();
    let names: Vec<_> =
        names["controllers"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
    assert_eq!(names, [&json!("c2"), &json!("c4"), &json!("c5")]);
    nodes.iter_mut().for_each(|node| node.point_to(&leader(&cloud)));
    all_reported(&admin, &at).await;
    assert_eq!((history(&nodes), nodes.iter().map(Node::runs).collect()), (done.clone(), runs.clone()));
    let ended = admin.post(&at, "/v1/cluster:endRecovery", "{}").await;
    assert_eq!(ended.status, 200, "{:?}", ended.body);
    eventually("the VMs are known to run", || async {
        let vms = admin.get(&at, "/v1/agencies/health/vms").await.json();
        let vms = vms["vms"].as_array().unwrap().clone();
        (vms.len() == 2 && vms.iter().all(|vm| vm["status"]["phase"] == "VM_PHASE_RUNNING")).then_some(())
    })
    .await;
    assert_eq!(
        (history(&nodes), nodes.iter().map(Node::runs).collect()),
        (done, runs),
        "nothing was touched"
    );

    // The two others were not lost after all, and are a majority. The nodes do not listen to them.
    nodes.iter_mut().for_each(Node::cut);
    let mut old = Vec::new();
    for config in [&lost[0], &lost[2]] {
        let controller = Controller::start(config, Identity::of(config).unwrap()).await.unwrap();
        old.push(Running { config: config.clone(), controller });
    }
    let leads = eventually("the old group has a leader", || async {
        old.iter().find(|one| one.controller.shared.leads()).map(|one| one.config.address.clone())
    })
    .await;
    nodes[0].point_to(&leads);
    let refused = eventually("the node is refused", || async {
        nodes[0].host.lock().unwrap().refused.first().cloned()
    })
    .await;
    assert_eq!(refused, "OtherCluster");
    assert_eq!(
        recovery(&admin, &leads).await["active"],
        Value::Null,
        "it does not recover against the new group"
    );
    for running in old {
        running.controller.stop().await;
    }
}

/// A copy of all files below a directory.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Stops the only controller, does something to its data directory, and starts it again.
async fn while_stopped(cloud: &mut Cloud, act: impl FnOnce(&std::path::Path)) {
    let Running { config, controller } = cloud.running.remove(0);
    controller.stop().await;
    act(&config.data_dir);
    let controller = Controller::start(&config, Identity::of(&config).unwrap()).await.unwrap();
    cloud.running.push(Running { config, controller });
    cloud.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_put_back_makes_the_cloud_recover_and_touches_nothing() {
    let mut cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    assert_eq!(admin.post(&at, "/v1/agencies", r#"{"metadata": {"name": "health"}}"#).await.status, 200);
    let mut nodes = vec![Node::join(&cloud, "n1").await, Node::join(&cloud, "n2").await];
    let kept = create(&admin, &at, "kept").await;
    run_somewhere(&nodes, &[&kept]).await;
    let aside = cloud.directory.path().join("aside");
    while_stopped(&mut cloud, |data| copy(data, &aside)).await;
    // After the copy there are a VM more, a stop, and many revisions.
    let new = create(&admin, &at, "new").await;
    run_somewhere(&nodes, &[&new]).await;
    assert_eq!(admin.post(&at, "/v1/agencies/health/vms/kept:stop", "{}").await.status, 200);
    eventually("it is stopped", || async {
        nodes.iter().all(|node| !node.runs().contains_key(&kept)).then_some(())
    })
    .await;
    nodes.iter_mut().for_each(Node::cut);
    let highest = |node: &Node| node.host.lock().unwrap().highest.0;
    nodes.sort_by_key(|node| std::cmp::Reverse(highest(node)));
    let (done, runs) = (history(&nodes), nodes.iter().map(Node::runs).collect::<Vec<_>>());
    let seen = highest(&nodes[0]);
    while_stopped(&mut cloud, |data| {
        std::fs::remove_dir_all(data).unwrap();
        copy(&aside, data);
    })
    .await;
    assert!(cloud.running[0].controller.shared.kv.status().revision.0 < seen, "or nothing went back");
    assert_eq!(recovery(&admin, &at).await["active"], Value::Null);

    nodes[0].point_to(&at);
    let witness = eventually("the first has said what it runs", || async {
        recovery(&admin, &at).await["reported"].as_array().and_then(|names| names.first().cloned())
    })
    .await;
    let status = recovery(&admin, &at).await;
    let awaited = status["awaited"].as_array().unwrap().len();
    assert_eq!((&status["cause"], awaited), (&json!("RECOVERY_CAUSE_WENT_BACK"), 1), "{status}");
    assert_eq!(
        (&status["witness"], &status["witness_revision"]),
        (&witness, &json!(seen.to_string())),
        "{status}"
    );
    let events = admin.get(&at, "/v1/events").await;
    assert!(String::from_utf8_lossy(&events.body).contains("StoreWentBack"), "{:?}", events.body);
    assert_eq!(admin.post(&at, "/v1/agencies/health/vms/kept:stop", "{}").await.status, 400);
    nodes[1].point_to(&at);
    all_reported(&admin, &at).await;
    let status = recovery(&admin, &at).await;
    assert_eq!(
        (vms_of(&status["unknown"]), vms_of(&status["down"])),
        (vec![new.clone()], vec![kept.clone()]),
        "{status}"
    );
    assert_eq!(
        (history(&nodes), nodes.iter().map(Node::runs).collect()),
        (done, runs),
        "nothing was touched"
    );

    // Once it is ended the nodes take its orders, though its own revisions are below those that they have seen.
    let ended = admin.post(&at, "/v1/cluster:endRecovery", "{}").await;
    assert_eq!(ended.status, 200, "{:?}", ended.body);
    run_somewhere(&nodes, &[&kept, &new]).await;
    assert!(nodes.iter().all(|node| node.host.lock().unwrap().refused.is_empty()));
    assert!(
        history(&nodes).iter().all(|(_, ended)| !ended.contains(&new)),
        "what is in no record was stopped"
    );
}

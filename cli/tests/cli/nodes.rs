//! Nodes, controllers and events: tables, edits with their masks, and the commands by which newcomers join.

use insta::assert_snapshot;
use tamdao_proto::v1::*;
use tonic::Status;

use crate::fake::*;
use crate::run::Tamdao;

fn node(name: &str) -> Node {
    Node {
        metadata: metadata("", name),
        spec: Some(NodeSpec {
            cordoned: true,
            failure_domains: [("rack".to_owned(), DomainValues { values: vec!["r1".to_owned()] })].into(),
            ..Default::default()
        }),
        status: Some(NodeStatus {
            phase: NodePhase::Ready.into(),
            address: "10.0.0.1:7441".into(),
            vms: 3,
            allocatable: Some(Capacity { vcpus: 16, memory_mib: 15_360, disk_mib: 102_400 }),
            allocated: Some(Capacity { vcpus: 4, memory_mib: 4_096, disk_mib: 30_720 }),
            inventory: Some(Inventory {
                acceleration: "kvm".into(),
                cpu_model: "EPYC".into(),
                cpus: 4,
                memory_mib: 16_384,
                libvirt_version: "9.0.0".into(),
                ..Default::default()
            }),
            last_seen: ago(0),
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn nodes_are_shown_with_what_is_left() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    fake.world().nodes = vec![node("n1")];
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\b\d+s\b", "[age]");
    let _bound = settings.bind_to_scope();
    assert_snapshot!(tamdao.story("node list").await, @r#"
        exit code: 0
        ----- stdout -----
        NAME  PHASE           VMS  VCPUS  MEMORY        DISK            AGE
        n1    Ready,Cordoned  3    4/16   4 GiB/15 GiB  30 GiB/100 GiB  3h
        "#);
    assert_snapshot!(tamdao.story("node get n1").await, @r#"
        exit code: 0
        ----- stdout -----
        Name:            n1
        Phase:           Ready
        Cordoned:        yes
        Address:         10.0.0.1:7441
        Seen:            [age] ago
        VMs:             3
        vCPUs:           4/16 allocated
        Memory:          4 GiB/15 GiB allocated
        Disk:            30 GiB/100 GiB allocated
        Overcommit:      CPU 400 %, memory 100 %
        Failure domains: rack=r1
        Host:            4 CPUs (EPYC), 16 GiB
        Acceleration:    kvm
        Software:        libvirt 9.0.0
        Labels:          app=web,tier=front
        Age:             3h
        Id:              3f1c0000-0000-4000-8000-000000000001
        Revision:        10
        "#);
    assert_snapshot!(tamdao.story("node cordon n1").await, @r#"
    exit code: 0
    ----- stderr -----
    n1: cordoned; 3 VMs stay on it
    "#);
}

#[tokio::test]
async fn an_update_names_its_fields_and_begins_again_when_overtaken() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    fake.world().nodes = vec![node("n1")];
    let line = "node update n1 --failure-domain feed=A,B --failure-domain rack- --cpu-overcommit 200";
    assert_snapshot!(tamdao.story(&format!("{line} --dry-run")).await, @r#"
    exit code: 0
    ----- stdout -----
    @@ -6,6 +6,8 @@
     spec:
       cordoned: true
    +  cpu_overcommit_percent: 200
       failure_domains:
    -    rack:
    +    feed:
           values:
    -      - r1
    +      - A
    +      - B
    ----- stderr -----
    dry run: node n1 would become so; nothing was changed
    "#);
    let request = fake.world().asked.last().unwrap().1.clone();
    assert!(
        request.contains(r#"paths: ["spec.failure_domains", "spec.cpu_overcommit_percent"]"#),
        "{request}"
    );
    fake.world().asked.clear();
    let tries = |fake: &Fake| fake.world().asked.iter().map(|(method, _)| *method).collect::<Vec<_>>();
    fake.world().refusals.push_back((
        "update_node",
        Status::aborted("node \"n1\" is at revision 12, the request was based on 10"),
    ));
    assert_snapshot!(tamdao.story(line).await, @r#"
    exit code: 0
    ----- stderr -----
    n1: updated
    "#);
    assert_eq!(tries(&fake), ["get_node", "update_node", "get_node", "update_node"]);
}

#[tokio::test]
async fn joining_is_one_command_to_run_there() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let seat = |name: &str, role: ControllerRole| Controller {
        metadata: metadata("", name),
        status: Some(ControllerStatus {
            role: role.into(),
            address: format!("{name}.example:7440"),
            reachable: true,
            version: "0.1.0".into(),
            ..Default::default()
        }),
    };
    fake.world().controllers = vec![seat("c1", ControllerRole::Follower), seat("c2", ControllerRole::Leader)];
    assert_snapshot!(tamdao.story("controller list").await, @r#"
    exit code: 0
    ----- stdout -----
    NAME  ROLE      REACHABLE  ADDRESS          LAG  VERSION  AGE
    c1    Follower  yes        c1.example:7440  0    0.1.0    3h
    c2    Leader    yes        c2.example:7440  0    0.1.0    3h
    "#);
    assert_snapshot!(tamdao.story("node join-token create --ttl 30m --uses 3").await, @r#"
    exit code: 0
    ----- stdout -----
    tamdao-agent join --token id.secret.digest --controller c2.example:7440
    ----- stderr -----
    Run this on the new node, within 30m; it can be used 3 times:


    The secret is shown only here. Then see `tamdao node list`
    "#);
    assert_snapshot!(tamdao.story("controller add c3").await, @r#"
    exit code: 0
    ----- stdout -----
    tamdao-controller join --token id.secret.digest --controller c2.example:7440
    ----- stderr -----
    It is taken to be reachable as c3:7440; say otherwise with --address

    Give /etc/tamdao/controller.toml on the new machine name = "c3" and address = "c3:7440";
    then run this there, within 1h:


    The secret is shown only here. Start the controller, then see `tamdao controller list`
    "#);
    assert_snapshot!(tamdao.story("controller add c3 --address 10.0.0.3:7440 -q").await, @r#"
    exit code: 0
    ----- stdout -----
    tamdao-controller join --token id.secret.digest --controller c2.example:7440
    "#);
    assert_snapshot!(tamdao.story("controller remove c2").await, @r#"
    exit code: 2
    ----- stderr -----
    error: remove controller c2 from the group: nobody is there to answer

    hint: add --yes to answer yes
    "#);
}

#[tokio::test]
async fn events_end_with_the_newest() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let event = |reason: &str, age: i64| Event {
        time: ago(age),
        reason: reason.into(),
        message: "placed on n2".into(),
        kind: "vm".into(),
        agency: "health".into(),
        name: "web".into(),
        ..Default::default()
    };
    fake.world().events = vec![event("Started", 200), event("Placed", 400)];
    assert_snapshot!(tamdao.story("events").await, @r#"
    exit code: 0
    ----- stdout -----
    AGE  SUBJECT        REASON   MESSAGE
    6m   vm health/web  Placed   placed on n2
    3m   vm health/web  Started  placed on n2
    "#);
    assert_snapshot!(tamdao.story("events --vm web --limit 1").await, @r#"
    exit code: 0
    ----- stdout -----
    AGE  REASON   MESSAGE
    3m   Started  placed on n2
    "#);
}

fn step(vm: &str, way: DrainWay) -> DrainStep {
    DrainStep {
        agency: "health".into(),
        vm: vm.into(),
        node: "n1".into(),
        way: way.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_drain_shows_its_plan_asks_and_goes_on() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    fake.world().nodes = vec![node("n1")];
    let moves = |round, target: &str| DrainStep {
        round,
        target: target.into(),
        copies_mib: 2_048,
        expected_s: 19,
        ..step("web", DrainWay::LiveWithDisks)
    };
    let blocked = DrainStep {
        why: "its maintenance policy is to block".into(),
        lift: "stop it, or tamdao vm update db --maintenance migrate".into(),
        ..step("db", DrainWay::Blocked)
    };
    fake.world().plan = DrainPlan {
        steps: vec![moves(1, "n2"), blocked],
        rounds: 1,
        expected_s: 19,
        mib_per_s: 110,
        measured: false,
        unguarded: vec!["the loss of node n2 would leave 1 VM without a place".into()],
    };
    assert_snapshot!("drain-dry-run", tamdao.story("node drain n1 --dry-run").await);
    assert_snapshot!("drain-asks", tamdao.story("node drain n1").await);
    assert_snapshot!("drain-cancel", tamdao.story("failure-domain drain rack=r1 --cancel").await);
    assert_snapshot!("failure-domain-list", tamdao.story("failure-domain list").await);
    let begun = tamdao.json("node drain n1 --yes --no-wait -o json").await;
    assert_eq!(begun[0]["metadata"]["name"], "n1");
    let asked = fake.world().asked.iter().filter(|(method, _)| method.contains("drain")).count();
    assert_eq!(asked, 5, "two plans, a plan with its drain, and a cancel: {:?}", fake.world().asked);
}

#[tokio::test]
async fn bmcs_are_set_without_their_password_being_seen_and_drilled() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    fake.world().nodes = vec![node("n1")];
    tamdao.file("word", b"hush\n");
    let set = "node update n1 --bmc https://10.0.9.11,user=fencer,password-file=word,unverified";
    let said = tamdao.story(set).await;
    assert!(said.contains("n1: updated") && !said.contains("hush"), "{said}");
    let request = fake.world().asked.last().unwrap().1.clone();
    assert!(
        request.contains(r#"paths: ["spec.bmcs"]"#) && request.contains(r#"password: "hush""#),
        "{request}"
    );
    let wrong = tamdao.story("node update n1 --bmc https://10.0.9.11,user=fencer,password=hush").await;
    assert!(wrong.contains("exit code: 2") && !wrong.contains("hush"), "{wrong}");

    let drill = |url: &str, good, reason: &str, message: &str| FenceDrill {
        url: url.into(),
        time: ago(300),
        good,
        reason: reason.into(),
        message: message.into(),
    };
    let bmc = |url: &str| Bmc {
        url: url.into(),
        username: "fencer".into(),
        unverified: true,
        ..Default::default()
    };
    let mut drilled = node("n1");
    drilled.spec.as_mut().unwrap().bmcs = vec![bmc("https://a"), bmc("https://b"), bmc("https://c")];
    drilled.status.as_mut().unwrap().fence_drill = vec![
        drill("https://a", true, "Good", "stands for this node and says On"),
        drill("https://b", false, "TooSlow", "did not answer within 8 s"),
    ];
    fake.world().nodes = vec![drilled];
    assert_snapshot!("fence-drill", tamdao.story("node fence-drill n1").await);
    let shown = tamdao.story("node get n1").await;
    for part in ["https://a (Good, 5m ago)", "https://b (TooSlow, 5m ago)", "https://c (not drilled yet)"] {
        assert!(shown.contains(part), "{shown}");
    }
    fake.world().nodes[0].status.as_mut().unwrap().fence_drill.remove(0);
    let bad = tamdao.story("node fence-drill n1").await;
    assert!(bad.contains("exit code: 1") && bad.contains("could not be powered off today"), "{bad}");
}

#[tokio::test]
async fn a_roll_shows_its_groups_asks_and_leaves_out_what_is_done() {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    let usable = |name: &str, qemu: &str| {
        let mut node = node(name);
        node.spec.as_mut().unwrap().cordoned = false;
        node.status.as_mut().unwrap().inventory.as_mut().unwrap().qemu_version = qemu.into();
        node
    };
    fake.world().nodes =
        vec![usable("n1", "7.2.0"), usable("n2", "9.2.1"), usable("n3", "7.2.0"), node("n4")];
    let moves = DrainStep {
        round: 1,
        target: "n2".into(),
        copies_mib: 2_048,
        expected_s: 19,
        ..step("web", DrainWay::LiveWithDisks)
    };
    fake.world().plan =
        DrainPlan { steps: vec![moves], rounds: 1, expected_s: 19, mib_per_s: 110, ..DrainPlan::default() };
    assert_snapshot!("roll-dry-run", tamdao.story("node roll --all --until qemu=9.2 --dry-run").await);
    assert_snapshot!("roll-asks", tamdao.story("node roll n1 n3").await);
    let plan = tamdao.json_of_any("node roll --all --until qemu=9.2 --dry-run -o json").await;
    assert_eq!(plan["groups"][0]["nodes"], serde_json::json!(["n1", "n3"]));
    assert_eq!(plan["done"], serde_json::json!(["n2"]));
    fake.world().plan.unguarded = vec!["the loss of node n2 would leave 1 VM without a place".into()];
    let told = tamdao.story("node roll n1 --dry-run").await;
    assert!(told.contains("exit code: 1") && told.contains("meanwhile the loss of node n2"), "{told}");
    let told = tamdao.story("node roll n1 --dry-run --unguarded").await;
    assert!(told.contains("exit code: 0"), "{told}");
    for wrong in ["node roll", "node roll n1 --all", "node roll n1 --until kernel=6"] {
        let told = tamdao.story(wrong).await;
        assert!(told.contains("exit code: 2"), "{told}");
    }
    let real = |(method, request): &&(&str, String)| {
        *method == "drain_nodes" && request.contains("validate_only: false")
    };
    assert_eq!(fake.world().asked.iter().filter(real).count(), 0, "nothing is drained unasked");
}

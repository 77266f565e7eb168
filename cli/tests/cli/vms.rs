//! VMs: lists, cards, creation with its narration, power, removal.

use insta::assert_snapshot;
use tamdao_proto::v1::*;
use tonic::Status;

use crate::fake::*;
use crate::run::Tamdao;

async fn cloud() -> (Fake, Tamdao) {
    let fake = Fake::default();
    let endpoint = fake.serve().await;
    let tamdao = Tamdao::new(&[&endpoint]);
    (fake, tamdao)
}

#[tokio::test]
async fn a_list_is_one_short_table() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![running("web", "n2"), vm("db", VmPhase::Pending), vm("old", VmPhase::Stopped)];
    assert_snapshot!(tamdao.story("vm list").await, @r#"
    exit code: 0
    ----- stdout -----
    NAME  AGENCY  PHASE    NODE  VCPUS  MEMORY  ADDRESS    AGE
    web   health  Running  n2    2      2 GiB   10.20.0.5  3h
    db    health  Pending  -     2      2 GiB   -          3h
    old   health  Stopped  -     2      2 GiB   -          3h
    "#);
    assert_snapshot!(tamdao.story("vm list -o wide --limit 1").await, @r#"
    exit code: 0
    ----- stdout -----
    NAME  AGENCY  PHASE    NODE  VCPUS  MEMORY  ADDRESS    IMAGE      FLAVOR  GUEST  RESTARTS  PRIORITY  GROUPS  LABELS              AGE  ID
    web   health  Running  n2    2      2 GiB   10.20.0.5  debian-12  -       -      0         0         -       app=web,tier=front  3h   3f1c0000-0000-4000-8000-000000000001
    ----- stderr -----
    these are the first 1; there are more
    "#);
    assert_snapshot!(tamdao.story("vm list -a tax").await, @r#"
    exit code: 0
    ----- stderr -----
    there are no vms in agency tax
    "#);
    assert_eq!(fake.world().tokens[0], "Bearer secret-token");
}

#[tokio::test]
async fn json_is_the_apis_own() {
    let (fake, tamdao) = cloud().await;
    let vms = vec![running("web", "n2"), vm("db", VmPhase::Pending), vm("old", VmPhase::Stopped)];
    fake.world().vms.clone_from(&vms);
    let answer = ListVmsResponse { vms: vms.clone(), cursor: "c9".to_owned(), ..Default::default() };
    assert_eq!(tamdao.json("vm list -o json").await, serde_json::to_value(&answer).unwrap());
    assert_eq!(tamdao.json("vm get web -o json").await, serde_json::to_value(&vms[0]).unwrap());
    let yaml = tamdao.output("vm get web -o yaml").await.stdout;
    assert_eq!(serde_yaml_ng::from_slice::<Vm>(&yaml).unwrap(), vms[0]);
}

#[tokio::test]
async fn a_card_tells_conditions_and_the_last_events() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![running("web", "n2")];
    fake.world().events = vec![
        Event { time: ago(200), reason: "Running".into(), message: "it runs".into(), ..Default::default() },
        Event {
            time: ago(600),
            reason: "Placed".into(),
            message: "placed on n2".into(),
            ..Default::default()
        },
    ];
    assert_snapshot!(tamdao.story("vm get web").await, @r#"
    exit code: 0
    ----- stdout -----
    Name:         web
    Agency:       health
    Phase:        Running
    Node:         n2
    Size:         2 vCPUs, 2 GiB
    Image:        debian-12
    Run:          OnFailure
    Running for:  50m
    Labels:       app=web,tier=front
    Age:          3h
    Id:           3f1c0000-0000-4000-8000-000000000001
    Revision:     10

    Disks
      DISK  SOURCE           SIZE    VOLUME
      0     image debian-12  10 GiB  web-0

    Interfaces
      INTERFACE  NETWORK  ADDRESSES     MAC
      0          lan      10.20.0.5/24  52:54:00:00:00:05

    Conditions
      CONDITION  STATUS  REASON  SINCE  MESSAGE
      Placed     True    Placed  10m    placed on n2

    Last events
      AGE  REASON   MESSAGE
      10m  Placed   placed on n2
      3m   Running  it runs
    "#);
}

#[tokio::test]
async fn a_creation_is_narrated_until_it_runs() {
    let (fake, tamdao) = cloud().await;
    let room = "no node has 8192 MiB free (3 nodes: NotEnoughMemory)";
    let waiting = with_condition(vm("web", VmPhase::Pending), condition("Placed", false, "NoRoom", room));
    let mut old = vm("web", VmPhase::Failed);
    old.metadata.as_mut().unwrap().revision = 9;
    fake.world().watches.push_back(Script::Stays(vec![
        put(old, "1"),
        put(waiting.clone(), "2"),
        put(waiting, "3"),
        put(vm("web", VmPhase::Starting), "4"),
        put(running("web", "n2"), "5"),
    ]));
    let line =
        "vm create web --vcpus 2 --memory 8G --image debian-12 --disk 10G --network lan --label app=web";
    assert_snapshot!(tamdao.story(line).await, @r#"
    exit code: 0
    ----- stderr -----
    web: Pending
    web: Pending: no node has 8192 MiB free (3 nodes: NotEnoughMemory)
    web: Starting
    web: Running on n2, 10.20.0.5
    "#);
    let request = fake.world().asked[0].1.clone();
    for part in [
        "memory_mib: 8192",
        "size_mib: 10240",
        "image: \"debian-12\"",
        "network: \"lan\"",
        "\"app\": \"web\"",
    ] {
        assert!(request.contains(part), "{part} in {request}");
    }
}

#[tokio::test]
async fn a_creation_that_fails_says_why() {
    let (fake, tamdao) = cloud().await;
    let problem = condition("Healthy", false, "LibvirtRefused", "unsupported configuration: no such machine");
    fake.world()
        .watches
        .push_back(Script::Stays(vec![put(with_condition(vm("web", VmPhase::Failed), problem), "1")]));
    assert_snapshot!(tamdao.story("vm create web --flavor small --image debian-12").await, @r#"
    exit code: 1
    ----- stderr -----
    web: Pending
    web: Failed: unsupported configuration: no such machine
    error: web is Failed: unsupported configuration: no such machine

    hint: see `tamdao vm explain health/web` and `tamdao vm log health/web`
    "#);
}

#[tokio::test]
async fn the_timeout_has_its_own_exit_code() {
    let (fake, tamdao) = cloud().await;
    let room = condition("Placed", false, "NoRoom", "no node has room");
    let waiting = with_condition(vm("web", VmPhase::Pending), room);
    fake.world().watches.push_back(Script::Stays(vec![put(waiting, "1")]));
    assert_snapshot!(tamdao.story("vm create web --flavor small --image debian-12 --timeout 500ms").await, @r#"
    exit code: 3
    ----- stderr -----
    web: Pending
    web: Pending: no node has room
    error: still in progress after 500ms: web: Pending: no node has room

    hint: see `tamdao vm explain health/web`
    hint: see `tamdao vm get health/web`, or wait longer with --timeout
    "#);
}

#[tokio::test]
async fn nothing_is_waited_for_when_told_so() {
    let (_fake, tamdao) = cloud().await;
    assert_snapshot!(tamdao.story("vm create web --flavor small --image debian-12 --no-wait").await, @r#"
    exit code: 0
    ----- stderr -----
    web: accepted
    "#);
}

#[tokio::test]
async fn a_dry_run_shows_what_would_be() {
    let (fake, tamdao) = cloud().await;
    let line = "vm create tax/web --vcpus 1 --memory 512M --image debian-12 --run always --dry-run";
    assert_snapshot!(tamdao.story(line).await, @r#"
    exit code: 0
    ----- stdout -----
    @@ -0,0 +1,10 @@
    +metadata:
    +  agency: tax
    +  name: web
    +spec:
    +  disks:
    +  - create:
    +      image: debian-12
    +  memory_mib: 512
    +  run: RUN_POLICY_ALWAYS
    +  vcpus: 1
    ----- stderr -----
    dry run: vm tax/web would be made so; nothing was changed
    "#);
    assert!(fake.world().asked[0].1.contains("validate_only: true"));
    fake.world().vms = vec![running("web", "n2")];
    assert_snapshot!(tamdao.story("vm update web --label app- --label tier=back --delete-protection --dry-run").await, @r#"
    exit code: 0
    ----- stdout -----
    @@ -2,8 +2,8 @@
       agency: health
       labels:
    -    app: web
    -    tier: front
    +    tier: back
       name: web
     spec:
    +  delete_protection: true
       disks:
       - create:
    ----- stderr -----
    dry run: vm health/web would become so; nothing was changed
    "#);
}

#[tokio::test]
async fn a_file_in_the_apis_form_makes_a_vm() {
    let (fake, tamdao) = cloud().await;
    tamdao.file(
        "web.yaml",
        b"metadata:\n  name: web\nspec:\n  flavor: small\n  disks:\n  - create: {image: debian-12}\n",
    );
    tamdao.file("bad.yaml", b"metadata:\n  name: web\nspec:\n  flavour: small\n");
    assert_snapshot!(tamdao.story("vm create -f web.yaml --hostname front --no-wait").await, @r#"
    exit code: 0
    ----- stderr -----
    web: accepted
    "#);
    assert!(fake.world().asked[0].1.contains("hostname: \"front\""));
    assert_snapshot!(tamdao.story("vm create -f bad.yaml").await, @r#"
    exit code: 2
    ----- stderr -----
    error: bad.yaml is not a vm in the API's form
      spec: unknown field `flavour`, expected one of `flavor`, `vcpus`, `memory_mib`, `memoryMib`, `disks`, `interfaces`, `firmware`, `os_type`, `osType`, `graphics`, `secure_boot`, `secureBoot`, `tpm`, `direct_boot`, `directBoot`, `ssh_keys`, `sshKeys`, `user_data`, `userData`, `run`, `delete_protection`, `deleteProtection`, `hostname`, `node`, `node_labels`, `nodeLabels`, `forbidden_node_labels`, `forbiddenNodeLabels`, `priority`, `isolation_class`, `isolationClass`, `placement_groups`, `placementGroups`, `on_node_loss`, `onNodeLoss`, `numa_cells`, `numaCells`, `maintenance` at line 4 column 3

    hint: see the form of one that exists with `tamdao vm get NAME -o yaml`
    "#);
}

#[tokio::test]
async fn power_waits_for_the_phase_of_its_own_generation() {
    let (fake, tamdao) = cloud().await;
    let mut asked = running("web", "n2");
    asked.metadata.as_mut().unwrap().generation = 2;
    fake.world().vms = vec![asked.clone()];
    let mut stopping = asked.clone();
    stopping.status.as_mut().unwrap().set_phase(VmPhase::Stopping);
    let mut stopped = stopping.clone();
    stopped.status.as_mut().unwrap().set_phase(VmPhase::Stopped);
    let mut acted_on = stopped.clone();
    acted_on.status.as_mut().unwrap().observed_generation = 2;
    fake.world().watches.push_back(Script::Stays(vec![
        put(stopping, "1"),
        put(stopped, "2"),
        put(acted_on, "3"),
    ]));
    assert_snapshot!(tamdao.story("vm stop web").await, @r#"
    exit code: 0
    ----- stderr -----
    web: Running on n2, 10.20.0.5
    web: Stopping on n2
    web: Stopped on n2
    "#);
}

#[tokio::test]
async fn readiness_is_waited_for_when_asked() {
    let (fake, tamdao) = cloud().await;
    let mut ready = running("web", "n2");
    ready.status.as_mut().unwrap().guest = Some(GuestStatus { ready: true, ..Default::default() });
    ready.status.as_mut().unwrap().restarts = 1;
    fake.world().watches.push_back(Script::Stays(vec![put(running("web", "n2"), "1"), put(ready, "2")]));
    let line = "vm create web --flavor small --image debian-12 --wait-ready -o json";
    assert_eq!(tamdao.json(line).await["status"]["guest"]["ready"], true);
}

#[tokio::test]
async fn a_reboot_is_done_when_it_was_started_anew() {
    let (fake, tamdao) = cloud().await;
    let before = running("web", "n2");
    fake.world().vms = vec![before.clone()];
    let mut after = before.clone();
    after.status.as_mut().unwrap().started_time = ago(1);
    let mut between = before.clone();
    between.status.as_mut().unwrap().set_phase(VmPhase::Starting);
    fake.world().watches.push_back(Script::Stays(vec![put(before, "1"), put(between, "2"), put(after, "3")]));
    assert_snapshot!(tamdao.story("vm reboot web").await, @r#"
    exit code: 0
    ----- stderr -----
    web: rebooting
    web: Running on n2, 10.20.0.5
    web: Starting on n2
    web: Running on n2, 10.20.0.5
    web: rebooted
    "#);
}

#[tokio::test]
async fn half_a_size_keeps_the_other_half() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![running("web", "n2")];
    assert_snapshot!(tamdao.story("vm resize web --memory 4G").await, @r#"
    exit code: 0
    ----- stderr -----
    web: Running on n2, 10.20.0.5
    web: has 2 vCPUs, 2 GiB
    "#);
    let request = fake.world().asked[1].1.clone();
    assert!(request.contains("vcpus: 2") && request.contains("memory_mib: 4096"), "{request}");
}

#[tokio::test]
async fn a_vm_is_given_away_after_a_question() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![running("web", "n2")];
    let unasked = tamdao.output("vm hand-over web --to clinic").await;
    assert_eq!(unasked.status.code(), Some(2), "nobody is there to answer");
    assert!(fake.world().asked.is_empty());
    assert!(tamdao.output("vm hand-over web --to clinic --name web-2 -y").await.status.success());
    let request = fake.world().asked.last().unwrap().1.clone();
    assert!(
        request.contains("to_agency: \"clinic\"") && request.contains("new_name: \"web-2\""),
        "{request}"
    );
    assert!(tamdao.output("vm hand-over web --to clinic --dry-run").await.status.success());
    assert!(fake.world().asked.last().unwrap().1.contains("validate_only: true"));
}

#[tokio::test]
async fn an_update_waits_until_it_is_so() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![running("web", "n2")];
    let mut stopped = running("web", "n2");
    stopped.status.as_mut().unwrap().set_phase(VmPhase::Stopped);
    fake.world().watches.push_back(Script::Stays(vec![put(running("web", "n2"), "1"), put(stopped, "2")]));
    assert_snapshot!(tamdao.story("vm update web --run stopped").await, @r#"
    exit code: 0
    ----- stderr -----
    web: Running on n2, 10.20.0.5
    web: Stopped on n2
    web: updated
    "#);
    // What no machine has to act on is done at once, and so is what is not waited for.
    for line in ["vm update web --label tier=back", "vm update web --run stopped --no-wait"] {
        let output = tamdao.output(line).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_watch_tells_each_change_once() {
    let (fake, tamdao) = cloud().await;
    let changes = || {
        vec![
            put(vm("web", VmPhase::Pending), "1"),
            put(vm("web", VmPhase::Pending), "2"),
            put(running("web", "n2"), "3"),
            deleted(running("web", "n2")),
        ]
    };
    for (line, seen) in [
        ("vm watch", "health/web  Pending, health/web  Running on n2, 10.20.0.5, health/web  gone"),
        ("vm watch -o json", "1, 2, 3, gone"),
    ] {
        // A watch never ends by itself: the refusal ends it.
        let end = Status::permission_denied("the token has been revoked");
        fake.world().watches.push_back(Script::Breaks(changes(), end));
        let output = tamdao.output(line).await;
        assert_eq!(output.status.code(), Some(1));
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines.lines().map(|line| match serde_json::from_str::<serde_json::Value>(line) {
            Ok(change) => change["cursor"].as_str().unwrap().to_owned(),
            Err(_) => line[10..].to_owned(),
        });
        assert_eq!(lines.collect::<Vec<_>>().join(", "), seen);
    }
}

#[tokio::test]
async fn a_removal_asks_and_waits_until_it_is_gone() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![vm("web", VmPhase::Deleting)];
    assert_snapshot!(tamdao.story("vm delete web").await, @r#"
    exit code: 2
    ----- stderr -----
    error: delete vm health/web with its disks: nobody is there to answer

    hint: add --yes to answer yes
    "#);
    assert!(fake.world().asked.is_empty());
    let changes = vec![put(vm("web", VmPhase::Deleting), "1"), deleted(vm("web", VmPhase::Deleting))];
    fake.world().watches.push_back(Script::Stays(changes));
    assert_snapshot!(tamdao.story("vm delete web --yes").await, @r#"
    exit code: 0
    ----- stderr -----
    web: Deleting
    web: gone
    "#);
    assert_snapshot!(tamdao.story("vm delete web nope --yes --no-wait").await, @r#"
    exit code: 1
    ----- stderr -----
    web: deleting
    error: there is nothing named "nope"

    hint: see what there is with `list`, and which agency is meant (-a)
    "#);
}

#[tokio::test]
async fn what_others_deleted_is_not_waited_for() {
    let (fake, tamdao) = cloud().await;
    let nothing = WatchVmsResponse { event: WatchEvent::Bookmark.into(), vm: None, cursor: "1".to_owned() };
    fake.world().watches.push_back(Script::Stays(vec![nothing.clone()]));
    assert_snapshot!(tamdao.story("vm create web --flavor small --image debian-12").await, @r#"
    exit code: 1
    ----- stderr -----
    web: Pending
    error: web was deleted by somebody else in the meantime
    "#);
    fake.world().vms = vec![vm("web", VmPhase::Deleting)];
    fake.world().watches.push_back(Script::Stays(vec![nothing]));
    assert!(tamdao.output("vm delete web --yes").await.status.success());
}

#[tokio::test]
async fn an_explanation_counts_reasons() {
    let (fake, tamdao) = cloud().await;
    fake.world().explain = ExplainVmResponse {
        summary: "web waits for a node with 8192 MiB free".into(),
        hints: vec!["make it smaller: tamdao vm resize web --memory 4G".into()],
        candidates: vec![
            NodeVerdict { node: "n1".into(), fits: true, score: 71.25, ..Default::default() },
            NodeVerdict { node: "n2".into(), reason: "NotEnoughMemory".into(), ..Default::default() },
        ],
        rejections: vec![RejectionCount {
            reason: "NotEnoughMemory".into(),
            nodes: 2,
            message: "the best has 4096 MiB free".into(),
        }],
        ..Default::default()
    };
    assert_snapshot!(tamdao.story("vm explain web").await, @r#"
    exit code: 0
    ----- stdout -----
    web waits for a node with 8192 MiB free

    Ruled out
      NODES  REASON           MESSAGE
      2      NotEnoughMemory  the best has 4096 MiB free

    Nodes
      NODE  FITS  SCORE  REASON
      n1    yes   71.2   -
      n2    no    -      NotEnoughMemory

    hint: make it smaller: tamdao vm resize web --memory 4G
    "#);
}

#[tokio::test]
async fn a_log_is_cut_to_its_last_lines() {
    let (fake, tamdao) = cloud().await;
    fake.world().log = vec![b"one\ntwo\nth", b"ree\n"];
    assert_snapshot!(tamdao.story("vm log web").await, @r#"
    exit code: 0
    ----- stdout -----
    one
    two
    three
    "#);
    assert_snapshot!(tamdao.story("vm log web --tail 2").await, @r#"
    exit code: 0
    ----- stdout -----
    two
    three
    "#);
}

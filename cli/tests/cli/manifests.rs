//! Manifests on the command line: what is shown, what is sent with which revision, and how it ends.

use tamdao_proto::v1::*;
use tonic::Status;

use crate::fake::{Fake, Script, put, running};
use crate::run::Tamdao;

const SITE: &str = r#"tamdao {
  stack = "site"
}

variable "size" {
  type    = number
  default = 512
}

resource "vm" "web" {
  vcpus      = 1
  memory_mib = var.size
  labels     = { tier = "front" }
  disks {
    create {
      image    = "debian-12"
      size_mib = 2048
    }
  }
}

output "node" {
  value = vm.web.status.node
}
"#;

async fn cloud() -> (Fake, Tamdao) {
    let fake = Fake::default();
    let tamdao = Tamdao::new(&[&fake.serve().await]);
    tamdao.file("main.tf", SITE.as_bytes());
    (fake, tamdao)
}

/// The VM as the cloud has it when the manifest was applied.
fn applied() -> Vm {
    let mut vm = running("web", "n2");
    let metadata = vm.metadata.as_mut().unwrap();
    metadata.labels =
        [("tier".to_owned(), "front".to_owned()), ("tamdao.vn/stack".to_owned(), "site".to_owned())].into();
    let spec = vm.spec.as_mut().unwrap();
    (spec.vcpus, spec.memory_mib) = (1, 512);
    spec.disks = vec![Disk { source: Some(disk::Source::Volume("web-0".to_owned())), ..Default::default() }];
    spec.disks[0].set_kind(DiskKind::Disk);
    spec.interfaces.clear();
    vm
}

#[tokio::test]
async fn a_plan_is_shown_and_applied() {
    let (fake, tamdao) = cloud().await;
    insta::assert_snapshot!("plan-of-a-new-vm", tamdao.story("plan").await);
    let detailed = tamdao.output("plan --detailed-exitcode").await;
    assert_eq!(detailed.status.code(), Some(2));
    let plan = tamdao.json("plan -o json").await;
    assert_eq!(plan["changes"][0]["address"], "vm.web");
    assert_eq!(plan["changes"][0]["action"], "create");
    assert_eq!(plan["summary"]["add"], 1);

    fake.world().watches.push_back(Script::Stays(vec![put(applied(), "c1")]));
    let output = tamdao.output("apply --yes").await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(
        out.contains(r#"node = "n2""#) && err.contains("done: 1 added, 0 changed, 0 destroyed"),
        "{out}{err}"
    );
    let made = fake.world().asked.iter().find(|(method, _)| *method == "create_vm").unwrap().1.clone();
    assert!(made.contains(r#""tamdao.vn/stack": "site""#), "{made}");
}

#[tokio::test]
async fn what_is_there_needs_nothing_or_an_update_of_its_revision() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![applied()];
    insta::assert_snapshot!("plan-without-changes", tamdao.story("plan --detailed-exitcode").await);
    tamdao.file("main.tf", SITE.replace("front", "back").as_bytes());
    insta::assert_snapshot!("plan-of-a-label", tamdao.story("plan").await);
    assert!(tamdao.output("apply -y").await.status.success());
    let (method, asked) = fake.world().asked.last().unwrap().clone();
    assert!(
        method == "update_vm" && asked.contains("revision: 10") && asked.contains("paths: []"),
        "{asked}"
    );

    // The cloud has written of it in between, and nobody else.
    let aborted = || ("update_vm", Status::aborted("vm web has changed"));
    fake.world().refusals.push_back(aborted());
    assert!(tamdao.output("apply -y").await.status.success());
    // And does not stop.
    fake.world().refusals.extend((0..9).map(|_| aborted()));
    insta::assert_snapshot!("apply-after-a-change-in-between", tamdao.story("apply -y").await);
}

#[tokio::test]
async fn what_is_resized_is_resized_first() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![applied()];
    insta::assert_snapshot!("plan-of-a-size", tamdao.story("plan --var size=1024").await);
    assert!(tamdao.output("apply -y --var size=1024").await.status.success());
    let methods: Vec<_> = fake.world().asked.iter().map(|(method, _)| *method).collect();
    assert!(methods.ends_with(&["resize_vm", "update_vm"]), "{methods:?}");
}

#[tokio::test]
async fn data_is_lost_only_by_consent() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![applied()];
    insta::assert_snapshot!("destroy-without-consent", tamdao.story("destroy --yes").await);
    assert!(fake.world().asked.iter().all(|(method, _)| *method != "delete_vm"));
    let asked = tamdao.output("destroy --allow-data-loss vm.web").await;
    assert_eq!(asked.status.code(), Some(2), "nobody is there to answer");
    let done = tamdao.output("destroy --allow-data-loss vm.web -y").await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let (method, asked) = fake.world().asked.last().unwrap().clone();
    assert!(method == "delete_vm" && asked.contains("revision: 10"), "{method} {asked}");
}

#[tokio::test]
async fn what_is_exported_changes_nothing() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![applied()];
    insta::assert_snapshot!("export-a-stack", tamdao.story("export site").await);
    let exported = tamdao.output("export site").await.stdout;
    tamdao.file("main.tf", &exported);
    assert_eq!(tamdao.output("plan --detailed-exitcode").await.status.code(), Some(0));
    insta::assert_snapshot!("export-nothing", tamdao.story("export other").await);

    // What an agency owns without a stack becomes one of its own, when it is taken in.
    fake.world().vms[0].metadata.as_mut().unwrap().labels.remove("tamdao.vn/stack");
    let output = tamdao.output("export --as lab").await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("stack = \"lab\"") && text.contains("resource \"vm\" \"web\""), "{output:?}");
    tamdao.file("main.tf", text.as_bytes());
    let plan = tamdao.json("plan --adopt vm.web -o json").await;
    assert_eq!(plan["summary"]["change"], 1, "{plan}");
    assert_eq!(plan["changes"][0]["fields"][0]["path"], "labels.tamdao.vn/stack", "{plan}");
}

#[tokio::test]
async fn manifests_are_checked_and_written_without_a_cloud() {
    let tamdao = Tamdao::new(&[]);
    tamdao.file("main.tf", SITE.as_bytes());
    insta::assert_snapshot!("validate", tamdao.story("validate").await);
    tamdao.file("main.tf", SITE.replace("vcpus ", "vcpu ").as_bytes());
    insta::assert_snapshot!("validate-a-fault", tamdao.story("validate").await);
    tamdao.file("main.tf", SITE.replace("  vcpus      =", "vcpus=").as_bytes());
    assert_eq!(tamdao.output("fmt --check").await.status.code(), Some(1));
    insta::assert_snapshot!("fmt", tamdao.story("fmt").await);
    assert_eq!(std::fs::read_to_string(tamdao.folder.path().join("main.tf")).unwrap(), SITE);
    assert_eq!(tamdao.output("fmt --check").await.status.code(), Some(0));
    assert_eq!(tamdao.output("plan --detailed-exitcode -f nowhere").await.status.code(), Some(1));
}

/// What is known of the VM since an apply.
fn known(state: StackState) -> StackResource {
    StackResource {
        stack: "site".into(),
        kind: "vm".into(),
        agency: "health".into(),
        name: "web".into(),
        state: state.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_plan_says_whether_it_would_fit() {
    let (fake, tamdao) = cloud().await;
    let place = PlannedOutcome { admitted: true, fits: true, ..Default::default() };
    let answer = |outcome| PreviewPlanResponse {
        outcomes: vec![outcome],
        guarded: vec!["node".into(), "rack".into()],
    };
    fake.world().preview = Some(answer(place.clone()));
    insta::assert_snapshot!("plan-that-fits", tamdao.story("plan").await);
    let asked = fake.world().asked.iter().find(|(method, _)| *method == "preview_plan").unwrap().1.clone();
    assert!(asked.contains("debian-12"), "{asked}");
    let waits = PlannedOutcome {
        fits: false,
        reason: "NoRoom".into(),
        message: "no place on any of 2 nodes: 2 not enough memory".into(),
        ..place
    };
    fake.world().preview = Some(answer(waits));
    insta::assert_snapshot!("plan-that-would-wait", tamdao.story("plan").await);
    let plan = tamdao.json("plan -o json").await;
    assert_eq!(plan["preview"]["unfit"][0]["address"], "vm.web");
    assert_eq!(plan["preview"]["unfit"][0]["reason"], "NoRoom");
}

#[tokio::test]
async fn what_was_applied_is_noted_and_what_has_drifted_is_told() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![applied()];
    insta::assert_snapshot!("stack-list-before-the-next-apply", tamdao.story("stack list").await);
    let noted = || fake.world().asked.iter().filter(|(method, _)| *method == "record_apply").count();
    fake.world().applied = Some(Vec::new());
    assert!(tamdao.output("apply -y").await.status.success());
    assert_eq!(noted(), 1, "nothing was to do, and what is there was not known yet");
    fake.world().applied = Some(vec![known(StackState::InSync)]);
    assert!(tamdao.output("apply -y").await.status.success());
    assert_eq!(noted(), 1, "it is known by now");
    let mut drifted = known(StackState::Drifted);
    let tier =
        FieldDifference { path: "labels.tier".into(), applied: "\"front\"".into(), ..Default::default() };
    drifted.differences = vec![tier];
    let gone = StackResource { name: "db".into(), ..known(StackState::Gone) };
    fake.world().applied = Some(vec![drifted, gone]);
    insta::assert_snapshot!("stack-list-with-drift", tamdao.story("stack list").await);
    let failed = StackResource { error: "agency health may have 2 vms".into(), ..known(StackState::Failed) };
    fake.world().applied = Some(vec![failed]);
    insta::assert_snapshot!("stack-list-with-a-failure", tamdao.story("stack list").await);
    let list = tamdao.json("stack list -o json").await;
    assert_eq!(list["stacks"][0]["state"], "failed");
}

#[tokio::test]
async fn a_file_in_the_apis_own_form_is_a_manifest() {
    let (fake, tamdao) = cloud().await;
    fake.world().vms = vec![applied()];
    let text = "stack: site\n---\nkind: vm\nmetadata: {name: web, labels: {tier: front}}\nspec:\n  vcpus: 1\n  \
                memory_mib: 512\n  disks:\n    - create: {image: debian-12, size_mib: 2048}\n";
    tamdao.file("site.yaml", text.as_bytes());
    let told = tamdao.story("plan -f site.yaml --detailed-exitcode").await;
    assert!(told.starts_with("exit code: 0\n") && told.contains("No changes."), "{told}");
    tamdao.file("site.yaml", text.replace("vcpus", "vcpu").as_bytes());
    let told = tamdao.story("validate -f site.yaml").await;
    assert!(told.contains("site.yaml:6:3") && told.contains("did you mean \"vcpus\"?"), "{told}");
}

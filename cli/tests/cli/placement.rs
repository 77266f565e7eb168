//! What decides where VMs go: a VM's own words, placement groups and the scheduling policy.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use insta::assert_snapshot;
use tamdao_proto::v1::*;
use tonic::{Request, Response, Status};

use crate::fake::*;
use crate::run::Tamdao;

#[tonic::async_trait]
impl scheduling_policy_service_server::SchedulingPolicyService for Fake {
    async fn get_scheduling_policy(
        &self,
        request: Request<GetSchedulingPolicyRequest>,
    ) -> Result<Response<SchedulingPolicy>, Status> {
        self.asked("get_scheduling_policy", &request)?;
        Ok(Response::new(policy()))
    }

    async fn update_scheduling_policy(
        &self,
        request: Request<UpdateSchedulingPolicyRequest>,
    ) -> Result<Response<SchedulingPolicy>, Status> {
        self.asked("update_scheduling_policy", &request)?;
        Ok(Response::new(request.into_inner().scheduling_policy.unwrap()))
    }

    type WatchSchedulingPolicyStream = BoxStream<'static, Result<WatchSchedulingPolicyResponse, Status>>;
    async fn watch_scheduling_policy(
        &self,
        request: Request<WatchSchedulingPolicyRequest>,
    ) -> Result<Response<Self::WatchSchedulingPolicyStream>, Status> {
        self.asked("watch_scheduling_policy", &request)?;
        Ok(Response::new(stream::pending().boxed()))
    }
}

fn policy() -> SchedulingPolicy {
    let part = |name: &str, weight, measures: &str| ScorePart {
        name: name.to_owned(),
        weight,
        default_weight: 10,
        measures: measures.to_owned(),
    };
    SchedulingPolicy {
        metadata: Some(Metadata { name: "default".to_owned(), revision: 7, ..Default::default() }),
        spec: Some(SchedulingPolicySpec {
            weights: [("tight".to_owned(), 12)].into(),
            guarded_failure_domains: vec!["node".to_owned()],
            cpu_model: String::new(),
        }),
        status: Some(SchedulingPolicyStatus {
            score_parts: vec![part("tight", 12, "how little stays free"), part("even", 10, "how alike")],
            ..Default::default()
        }),
    }
}

async fn cloud() -> (Fake, Tamdao) {
    let fake = Fake::default();
    let endpoint = fake.serve().await;
    let tamdao = Tamdao::new(&[&endpoint]);
    (fake, tamdao)
}

#[tokio::test]
async fn the_policy_is_shown_with_what_each_part_measures() {
    let (_fake, tamdao) = cloud().await;
    assert_snapshot!(tamdao.story("scheduling-policy get").await, @r#"
    exit code: 0
    ----- stdout -----
    Guarded failure domains:    node
    CPU model at a first start: the node's own

    A node's score
      PART   WEIGHT  DEFAULT  MEASURES
      tight  12      10       how little stays free
      even   10      -        how alike
    "#);
    assert_eq!(tamdao.json("scheduling-policy get -o json").await, serde_json::to_value(policy()).unwrap());
}

#[tokio::test]
async fn weights_and_guards_are_set_and_taken_back() {
    let (fake, tamdao) = cloud().await;
    let line = "scheduling-policy update --weight even=3 --weight tight- --guard rack --guard node- --cpu-model IvyBridge";
    assert_snapshot!(tamdao.story(line).await, @r#"
    exit code: 0
    ----- stderr -----
    scheduling policy: updated
    "#);
    let asked = fake.world().asked.last().unwrap().1.clone();
    for part in [
        "weights: {\"even\": 3}",
        "guarded_failure_domains: [\"rack\"]",
        "paths: [\"spec.weights\", \"spec.guarded_failure_domains\", \"spec.cpu_model\"]",
        "cpu_model: \"IvyBridge\"",
        "revision: 7",
    ] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    assert_snapshot!(tamdao.story("scheduling-policy update --weight even=3 --dry-run").await, @r#"
    exit code: 0
    ----- stdout -----
    @@ -5,3 +5,4 @@
       - node
       weights:
    +    even: 3
         tight: 12
    ----- stderr -----
    dry run: the scheduling policy would become so; nothing was changed
    "#);
    assert_snapshot!(tamdao.story("scheduling-policy update --weight heavy").await, @r#"
    exit code: 2
    ----- stderr -----
    error: --weight heavy: expected PART=WEIGHT, or PART- for its default

    hint: `tamdao scheduling-policy get` shows the parts
    "#);
    assert_snapshot!(tamdao.story("scheduling-policy update").await, @r#"
    exit code: 2
    ----- stderr -----
    error: nothing to change was given

    hint: see `tamdao scheduling-policy update --help`
    "#);
}

#[tokio::test]
async fn the_example_manifests_are_read() {
    let (fake, tamdao) = cloud().await;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests");
    for (line, part) in [
        ("placement-group create -f", "rules: [PlacementRule"),
        ("vm create --no-wait -f", "placement_groups: [\"patients-db\"]"),
    ] {
        let file = if line.starts_with("vm") { "pair-vm.yaml" } else { "pair-group.yaml" };
        let output = tamdao.output(&format!("{line} {manifests}/{file}")).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let asked = fake.world().asked.last().unwrap().1.clone();
        assert!(asked.contains(part), "{part} in {asked}");
    }
    // None is left out.
    assert_eq!(std::fs::read_dir(manifests).unwrap().count(), 2);
}

#[tokio::test]
async fn a_vm_tells_what_was_said_about_its_place() {
    let (fake, tamdao) = cloud().await;
    let mut web = running("web", "n2");
    let spec = web.spec.as_mut().unwrap();
    spec.priority = 500;
    spec.placement_groups = vec!["pair".to_owned(), "spread".to_owned()];
    spec.isolation_class = "health".to_owned();
    spec.forbidden_node_labels = [("disk".to_owned(), "hdd".to_owned())].into();
    spec.set_on_node_loss(OnNodeLoss::Stay);
    fake.world().vms = vec![web];
    let card = tamdao.story("vm get web").await;
    let about: Vec<&str> =
        card.lines().skip_while(|line| !line.contains("Running for")).skip(1).take(5).collect();
    assert_snapshot!(about.join("\n"), @r#"
    Priority:     500
    Groups:       pair, spread
    Isolation:    health
    Avoids:       disk=hdd
    On node loss: stays
    "#);
    let line = "vm create web --flavor s --image i --no-wait --priority 7 --group pair --group spread \
                --isolation health --on-node-loss stay --forbid-node-label disk=hdd";
    assert!(tamdao.output(line).await.status.success());
    let asked = fake.world().asked.last().unwrap().1.clone();
    for part in [
        "priority: 7",
        "placement_groups: [\"pair\", \"spread\"]",
        "isolation_class: \"health\"",
        "forbidden_node_labels: {\"disk\": \"hdd\"}",
        "on_node_loss: Stay",
    ] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    let line = "vm update web --group pair- --group third --isolation '' --priority 0 --node-label disk=ssd \
                --no-wait";
    assert!(tamdao.output(line).await.status.success());
    let asked = fake.world().asked.last().unwrap().1.clone();
    for part in [
        "placement_groups: [\"spread\", \"third\"]",
        "paths: [\"spec.node_labels\", \"spec.priority\", \"spec.placement_groups\", \"spec.isolation_class\"]",
    ] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
}

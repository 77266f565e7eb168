//! What users say about places: an apart group of three over two nodes, a group in use, weights that do not exist. The
//! nodes are sessions without hypervisors, because only the decisions are looked at.

use anyhow::{Context, ensure};
use serde_json::Value;
use tamdao_tests::cloud::AGENCY;
use tamdao_tests::process::said;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually, not_yet};

const NODES: usize = 2;

#[tokio::test]
async fn a_group_is_kept_apart_and_says_why_one_waits() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let _fleet = cloud.fleet(NODES).await?;
    cloud.cli.run(&["placement-group", "create", "pair", "--rule", "apart"]).await?;
    for name in ["a", "b", "c"] {
        create(&cloud, name).await?;
        if name != "c" {
            placed(&cloud, name).await?;
        }
    }
    ensure!(placed(&cloud, "a").await? != placed(&cloud, "b").await?, "they are on one node");
    let message = eventually("c says why it waits", SOON, async || {
        let vm = get(&cloud, "c").await?;
        let condition = condition(&vm, "Placed");
        match condition["reason"].as_str() {
            Some("TooCrowded") => Ok(condition["message"].as_str().unwrap_or_default().to_owned()),
            _ => not_yet(vm["status"].to_string()),
        }
    })
    .await?;
    ensure!(message.contains("group pair allows 1 on one node"), "{message}");
    let explained = cloud.cli.run(&["vm", "explain", "c"]).await?;
    ensure!(explained.contains("group pair allows 1 on one node"), "{explained}");

    // A group with members stays.
    let refused = cloud.cli.attempt(&["placement-group", "delete", "pair", "-y"]).await?;
    ensure!(
        refused.status.code() == Some(1) && said(&refused).contains("has the member"),
        "{}",
        said(&refused)
    );
    let group: Value = cloud.cli.json(&["placement-group", "get", "pair"]).await?;
    ensure!(group["status"]["vms"] == 3 && group["status"]["vms_placed"] == 2, "{group}");

    // A rule that allows more helps at once.
    cloud.cli.run(&["placement-group", "update", "pair", "--rule", "apart,at-most=2"]).await?;
    placed(&cloud, "c").await?;
    // One that allows less moves nobody, and says whose place breaks it.
    cloud.cli.run(&["placement-group", "update", "pair", "--rule", "apart"]).await?;
    let lonely = if placed(&cloud, "a").await? == placed(&cloud, "c").await? { "b" } else { "a" };
    let together = ["a", "b", "c"].into_iter().filter(|name| *name != lonely);
    for (name, fits) in together.map(|name| (name, "False")).chain([(lonely, "True")]) {
        fit(&cloud, name, fits).await?;
    }
    for name in ["a", "b", "c"] {
        cloud.cli.run(&["vm", "update", name, "--group", "pair-"]).await?;
    }
    cloud.cli.run(&["placement-group", "delete", "pair", "-y"]).await?;
    cloud.done()
}

#[tokio::test]
async fn isolation_classes_never_share_a_node() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let _fleet = cloud.fleet(NODES).await?;
    for (name, class) in [("h1", "health"), ("t1", "tax"), ("h2", "health")] {
        create_with(&cloud, name, &["--isolation", class]).await?;
        placed(&cloud, name).await?;
    }
    ensure!(placed(&cloud, "h1").await? == placed(&cloud, "h2").await?, "a class shares its node");
    ensure!(placed(&cloud, "h1").await? != placed(&cloud, "t1").await?, "two classes share a node");
    create(&cloud, "open").await?;
    let message = eventually("open says why it waits", SOON, async || {
        let vm = get(&cloud, "open").await?;
        let condition = condition(&vm, "Placed");
        match condition["reason"].as_str() {
            Some("IsolationShared") => Ok(condition["message"].to_string()),
            _ => not_yet(vm["status"].to_string()),
        }
    })
    .await?;
    ensure!(message.contains("it has no isolation class"), "{message}");
    cloud.done()
}

#[tokio::test]
async fn the_scheduling_policy_knows_its_parts() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let refused = cloud.cli.attempt(&["scheduling-policy", "update", "--weight", "tigth=3"]).await?;
    let told = said(&refused);
    ensure!(refused.status.code() == Some(1), "{told}");
    ensure!(told.contains("tigth") && told.contains("the parts are tight, even"), "{told}");
    cloud.cli.run(&["scheduling-policy", "update", "--weight", "tight=3", "--weight", "even=0"]).await?;
    let policy: Value = cloud.cli.json(&["scheduling-policy", "get"]).await?;
    let part = |name: &str| {
        let parts = policy["status"]["score_parts"].as_array().cloned().unwrap_or_default();
        parts.into_iter().find(|part| part["name"] == name).unwrap_or_default()
    };
    ensure!(part("tight")["weight"] == 3 && part("tight")["default_weight"] != 3, "{policy}");
    ensure!(part("even")["weight"].is_null(), "{policy}");
    ensure!(part("in-use")["weight"] == part("in-use")["default_weight"], "{policy}");
    let rest = cloud.rest(0)?.get("/v1/scheduling-policy").await?;
    ensure!(rest.code == 200 && rest.json()["spec"]["weights"]["tight"] == 3, "{rest:?}");
    cloud.cli.run(&["scheduling-policy", "update", "--weight", "tight-"]).await?;
    let policy: Value = cloud.cli.json(&["scheduling-policy", "get"]).await?;
    ensure!(policy["spec"]["weights"].get("tight").is_none(), "{policy}");
    cloud.done()
}

#[tokio::test]
async fn room_is_kept_for_the_loss_of_a_node() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let _fleet = cloud.fleet(NODES).await?;
    cloud.cli.run(&["pool", "create", "san", "--path", "/san", "--shared", "--timeout", "60s"]).await?;
    cloud.cli.run(&["scheduling-policy", "update", "--guard", "node"]).await?;
    // Two nodes of nearly 16 GiB hold four of these, and two of them when either may fail.
    for name in ["v1", "v2", "v3"] {
        let vm = [
            "vm",
            "create",
            name,
            "--vcpus",
            "1",
            "--memory",
            "6G",
            "--disk",
            "size=1G,pool=san",
            "--no-wait",
        ];
        cloud.cli.run(&vm).await?;
        if name != "v3" {
            placed(&cloud, name).await?;
        }
    }
    let message = eventually("v3 says why it waits", SOON, async || {
        let vm = get(&cloud, "v3").await?;
        let condition = condition(&vm, "Placed");
        match condition["reason"].as_str() {
            Some("RoomKeptForFailures") => Ok(condition["message"].to_string()),
            _ => not_yet(vm["status"].to_string()),
        }
    })
    .await?;
    ensure!(
        message.contains("the loss of node fleet-") && message.contains("leave a VM without a place"),
        "{message}"
    );
    let explained = cloud.cli.run(&["vm", "explain", "v3"]).await?;
    ensure!(explained.contains("its room is kept for failures"), "{explained}");
    let explained = cloud.cli.run(&["vm", "explain", "v1"]).await?;
    ensure!(explained.contains("if its node is lost, it stays down"), "a fleet has no keepers: {explained}");

    // The other node keeps 12 GiB for these two, so what stands there may grow by a little only.
    let full = placed(&cloud, "v1").await?;
    let nodes: Value = cloud.cli.json(&["node", "list"]).await?;
    let all = nodes["nodes"].as_array().cloned().unwrap_or_default();
    let mut names = all.iter().filter_map(|node| node["metadata"]["name"].as_str());
    let other = names.find(|name| *name != full).context("there are two nodes")?;
    let small = ["--memory", "1G", "--vcpus", "1", "--disk", "size=1G", "--pin-node", other, "--no-wait"];
    cloud.cli.run(&[&["vm", "create", "v4"], &small[..]].concat()).await?;
    placed(&cloud, "v4").await?;
    let refused = cloud.cli.attempt(&["vm", "resize", "v4", "--memory", "6G", "--no-wait"]).await?;
    let told = said(&refused);
    ensure!(told.contains(&format!("the loss of node {full} would leave a VM without a place")), "{told}");
    cloud.cli.run(&["vm", "resize", "v4", "--memory", "2G", "--no-wait"]).await?;

    cloud.cli.run(&["scheduling-policy", "update", "--guard", "node-"]).await?;
    placed(&cloud, "v3").await?;
    cloud.done()
}

#[tokio::test]
async fn every_decision_under_load_is_the_same_when_computed_again() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let _fleet = cloud.fleet(NODES).await?;
    cloud.cli.run(&["pool", "create", "san", "--path", "/san", "--shared", "--timeout", "60s"]).await?;
    cloud.cli.run(&["scheduling-policy", "update", "--guard", "node"]).await?;
    let names: Vec<String> = (0..24).map(|at| format!("v{at}")).collect();
    let created = names.iter().enumerate().map(|(at, name)| {
        let (cloud, memory) = (&cloud, ["256M", "512M", "2G"][at % 3]);
        let size = ["--vcpus", "1", "--memory", memory, "--disk", "size=1G,pool=san", "--no-wait"];
        async move { cloud.cli.run(&[&["vm", "create", name], &size[..]].concat()).await }
    });
    futures::future::try_join_all(created).await?;
    let replay = async || cloud.cli.json::<Value>(&["debug", "replay", "--last", "1000"]).await;
    let told = eventually("all VMs are placed or told why not", SOON, async || {
        let told = replay().await?["decisions"].as_array().cloned().unwrap_or_default();
        let all = names.iter().all(|name| told.iter().any(|one| one["vm"] == **name));
        if all { Ok(told) } else { not_yet(format!("{} decisions", told.len())) }
    })
    .await?;
    let placed =
        told.iter().filter(|one| one["recorded"].as_str().is_some_and(|it| it.starts_with("placed on")));
    ensure!(placed.count() >= 12 && told.len() >= names.len(), "{told:?}");
    let differs: Vec<_> = told.iter().filter(|one| !one["differs"].is_null()).collect();
    ensure!(differs.is_empty(), "{differs:?}");
    let one: Value = cloud.cli.json(&["debug", "replay", "--vm", "v3"]).await?;
    ensure!(
        one["decisions"][0]["vm"] == "v3" && one["decisions"].as_array().is_some_and(|all| all.len() < 9)
    );
    cloud.done()
}

async fn create(cloud: &Cloud, name: &str) -> Result<()> {
    let group: &[&str] = if name == "open" { &[] } else { &["--group", "pair"] };
    create_with(cloud, name, group).await
}

async fn create_with(cloud: &Cloud, name: &str, more: &[&str]) -> Result<()> {
    let vm = ["vm", "create", name, "--flavor", "tiny", "--disk", "size=1G", "--no-wait"];
    cloud.cli.run(&[&vm, more].concat()).await.map(drop)
}

async fn get(cloud: &Cloud, name: &str) -> Result<Value> {
    cloud.cli.json(&["vm", "get", name, "-a", AGENCY]).await
}

fn condition(vm: &Value, kind: &str) -> Value {
    let conditions = vm["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

/// Waits until the VM says whether its place keeps the rules.
async fn fit(cloud: &Cloud, name: &str, fits: &str) -> Result<()> {
    let status = format!("CONDITION_STATUS_{}", fits.to_ascii_uppercase());
    eventually(&format!("{name} says that PlaceFits is {fits}"), SOON, async || {
        let vm = get(cloud, name).await?;
        if condition(&vm, "PlaceFits")["status"] == status {
            Ok(())
        } else {
            not_yet(vm["status"].to_string())
        }
    })
    .await
}

/// The node of a VM, once it has one.
async fn placed(cloud: &Cloud, name: &str) -> Result<String> {
    eventually(&format!("{name} has a node"), SOON, async || {
        let vm = get(cloud, name).await?;
        match vm["status"]["node"].as_str() {
            Some(node) => Ok(node.to_owned()),
            None => not_yet(vm["status"].to_string()),
        }
    })
    .await
    .context("placement")
}

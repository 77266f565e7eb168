//! The dump of a living cloud is a file that the engine reads back equal, and what it says of that file is what the
//! cloud then does.

use tamdao_scheduler::text::Cluster;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually, not_yet};

const NODES: usize = 3;

#[tokio::test]
async fn a_dump_is_simulated() -> Result<()> {
    let cloud = Cloud::builder().controllers(3).start().await?;
    cloud.leader().await?;
    create(&cloud, "web").await?;
    let text = cloud.cli.run(&["debug", "dump"]).await?;
    let dumped = read(&text)?;
    assert_eq!(dumped.wants.iter().map(|vm| &*vm.name).collect::<Vec<_>>(), ["web"], "{text}");
    assert!(dumped.flavors.iter().any(|flavor| &*flavor.shape.name == "tiny"), "{text}");
    // Without a node the answer is no, as the exit code says.
    let output = cloud.cli.attempt(&["simulate", "place"]).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("the cluster has no node"), "{said}");

    let _fleet = cloud.fleet(NODES).await?;
    let placed = eventually("web has a place in the dump", SOON, async || {
        let text = cloud.cli.run(&["debug", "dump"]).await?;
        let dumped = read(&text)?;
        match dumped.nodes.iter().filter(|node| node.ready).count() == NODES && dumped.vms.len() == 1 {
            true => Ok(text),
            false => not_yet(text),
        }
    })
    .await?;
    for controller in 0..3 {
        let answer = cloud.rest(controller)?.get("/v1/cluster:dump").await?;
        assert!(answer.code == 200 && answer.text.contains("vm web "), "{controller}: {answer:?}");
    }
    let file = cloud.slot.directory.join("dump.cluster");
    std::fs::write(&file, &placed)?;
    let file = file.display().to_string();
    foretold(&cloud, &file).await?;
    cloud.done()
}

/// The engine, asked offline where the next VM goes, names the node on which the cloud then places it.
async fn foretold(cloud: &Cloud, file: &str) -> Result<()> {
    let arguments = ["simulate", "place", "--cluster", file, "--what-if", "add 1 tiny"];
    let said: serde_json::Value = cloud.cli.json(&arguments).await?;
    let node = said["placed"][0]["node"].as_str().unwrap_or_default().to_owned();
    assert!(node.starts_with("fleet-"), "{said}");
    create(cloud, "web2").await?;
    eventually(&format!("web2 is on {node}"), SOON, async || {
        let vm = cloud.vm("web2").await?;
        let on = vm.status.map(|status| status.node).unwrap_or_default();
        if on == node { Ok(()) } else { not_yet(format!("on {on:?}")) }
    })
    .await
}

async fn create(cloud: &Cloud, name: &str) -> Result<()> {
    let rest = ["--flavor", "tiny", "--disk", "size=1G", "--network", "lan", "--no-wait"];
    cloud.cli.run(&[&["vm", "create", name][..], &rest].concat()).await?;
    Ok(())
}

/// Reads a dump. But for its comment the engine would write it the same, so all that it says was read.
fn read(text: &str) -> Result<Cluster> {
    let cluster = Cluster::parse(text)?;
    let comment = text.lines().nth(1).unwrap_or_default();
    assert!(comment.starts_with("# cluster ") && comment.contains(" at revision "), "{text}");
    assert_eq!(cluster.write(comment.trim_start_matches("# ")), text);
    Ok(cluster)
}

//! Three controllers make one cloud: each answers, and what one accepted all know.

use anyhow::ensure;
use tamdao_proto::v1::ListVmsRequest;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually, not_yet};

#[tokio::test]
async fn three_controllers_answer_as_one() -> Result<()> {
    let cloud = Cloud::builder().controllers(3).start().await?;
    cloud.leader().await?;
    eventually("every controller is said to be reachable", SOON, async || {
        let list: serde_json::Value = cloud.cli.json(&["controller", "list"]).await?;
        let said = list["controllers"].as_array().cloned().unwrap_or_default();
        let reachable = said.iter().filter(|one| one["status"]["reachable"] == true).count();
        if reachable == 3 { Ok(()) } else { not_yet(list) }
    })
    .await?;
    let arguments =
        ["vm", "create", "web", "--flavor", "tiny", "--disk", "size=1G", "--network", "lan", "--no-wait"];
    cloud.cli.run(&arguments).await?;
    for controller in 0..3 {
        eventually(&format!("controller {controller} knows web"), SOON, async || {
            let mut client = VmServiceClient::new(cloud.api.wire(controller));
            let vms = client.list_vms(ListVmsRequest::default()).await?.into_inner().vms;
            if vms.len() == 1 { Ok(()) } else { not_yet(format!("{} VMs", vms.len())) }
        })
        .await?;
        let answer = cloud.rest(controller)?.get("/v1/agencies/lab/vms/web").await?;
        assert_eq!(answer.code, 200, "{answer:?}");
        assert_eq!(answer.json()["metadata"]["name"], "web");
    }
    cloud.done()
}

/// With a configuration of the command line that is broken, as on a bad day.
#[tokio::test]
async fn a_local_admin_comes_in_by_the_socket_of_any_controller() -> Result<()> {
    let cloud = Cloud::builder().controllers(3).start().await?;
    let broken = cloud.slot.directory.join("broken.toml");
    std::fs::write(&broken, "not a configuration")?;
    let leader = cloud.leader().await?;
    let follower = (leader + 1) % 3;
    for (at, agency) in [(leader, "works"), (follower, "health")] {
        let socket = cloud.controllers[at].data_dir.join("admin.sock").display().to_string();
        let lost = cloud.cli.with_config(&broken);
        lost.run(&["--socket", &socket, "--retry-for", "60s", "agency", "create", agency]).await?;
        let seen = lost.run(&["--socket", &socket, "agency", "list"]).await?;
        ensure!(seen.contains(agency), "{seen}");
        let told = lost.run(&["--socket", &socket, "audit", "list", "--who", "0"]).await?;
        ensure!(
            told.contains("local:0 (cloud-admin)") && told.contains("AgencyService/CreateAgency"),
            "{told}"
        );
        ensure!(told.contains("AgencyService/ListAgencies"), "{told}");
        ensure!(!lost.attempt(&["agency", "list"]).await?.status.success());
    }
    cloud.done()
}

//! Another controller leads in the middle of a move: the next leader goes on with what is written, and the guest has
//! noticed neither.

use anyhow::ensure;
use rustix::process::Signal;
use tamdao_proto::v1::MovePhase;
use tamdao_tests::process::signal;
use tamdao_tests::watcher::Watcher;
use tamdao_tests::{Cloud, Result, api};

use super::moves::{
    busy_guest_on_slow_links, gapless, log_file, one_guest_where_the_record_says, over, phase, read,
    under_way,
};

#[tokio::test]
async fn the_next_leader_goes_on_with_a_move() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).start().await?;
    let vm_id = busy_guest_on_slow_links(&mut cloud).await?;
    // One leader is killed; the next one stands still, is deposed, and comes back with what it believed.
    for dies in [true, false] {
        let from = api::node(&cloud.vm("web").await?).to_owned();
        let to = if from == "n1" { "n2" } else { "n1" };
        let kept = cloud.slot.directory.join(format!("kept-{dies}.log"));
        std::fs::hard_link(log_file(&cloud, &vm_id, &from)?, &kept)?;
        let watcher = Watcher::begin(&vm_id);
        cloud.cli.run(&["vm", "migrate", "web", "--to", to, "--no-wait"]).await?;
        under_way(&cloud).await?;
        let leader = cloud.leader().await?;
        let process = cloud.controllers[leader].id();
        match process.filter(|_| !dies) {
            Some(process) => signal(process, Signal::STOP)?,
            None => cloud.controllers[leader].kill()?,
        }
        let one = over(&cloud).await?;
        ensure!(phase(&one) == MovePhase::Done, "{:?}", one.status);
        ensure!(cloud.leader().await? != leader, "another one leads");
        match process.filter(|_| !dies) {
            Some(process) => signal(process, Signal::CONT)?,
            None => cloud.start_controller(leader)?,
        }
        cloud.controllers_ready(3).await?;
        let node = one_guest_where_the_record_says(&cloud, "web").await?;
        watcher.end()?;
        ensure!(node == to, "it is on {node}");
        let log = read(&kept) + &read(&log_file(&cloud, &vm_id, to)?);
        gapless(&log)?;
        ensure!(log.matches("tamdao-tiny: booted").count() <= 1, "it booted again");
    }
    cloud.done()
}

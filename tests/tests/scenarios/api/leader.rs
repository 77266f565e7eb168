//! The leader is killed amid a stream of creates: what was acknowledged is there exactly once, and writes go on.

use tamdao_tests::{Cloud, Result};

use super::creates::{check, during};

#[tokio::test]
async fn nothing_acknowledged_is_lost_with_the_leader() -> Result<()> {
    loses_nothing(Cloud::builder().controllers(3).start().await?).await
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_with_the_leader_on_etcd() -> Result<()> {
    loses_nothing(Cloud::builder().controllers(3).etcd().start().await?).await
}

async fn loses_nothing(mut cloud: Cloud) -> Result<()> {
    let api = cloud.api.clone();
    let kill = async {
        let leader = cloud.leader().await?;
        cloud.controllers[leader].kill()?;
        Ok(leader)
    };
    let (ids, leader) = during(&api, kill).await?;
    check(&cloud, &ids).await?;
    // The dead one comes back and tells the same.
    cloud.start_controller(leader)?;
    cloud.controllers_ready(3).await?;
    check(&cloud, &ids).await?;
    cloud.done()
}

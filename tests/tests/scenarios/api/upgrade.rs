//! Controllers are upgraded one by one from the release before, while requests go on.

use anyhow::ensure;
use tamdao_tests::binaries::Version;
use tamdao_tests::{Cloud, Result};

use super::creates::{check, during};

#[tokio::test]
async fn no_request_fails_while_controllers_are_upgraded() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).released().start().await?;
    let api = cloud.api.clone();
    let upgrade = async {
        for index in 0..3 {
            cloud.controllers[index].stop().await?;
            cloud.controllers[index].version = Version::Present;
            cloud.start_controller(index)?;
            cloud.controllers_ready(3).await?;
        }
        Ok(())
    };
    let (ids, ()) = during(&api, upgrade).await?;
    check(&cloud, &ids).await?;

    // What the new version alone knows works, and its records are there.
    let audit = cloud.cli.run(&["audit", "list", "--limit", "5"]).await?;
    ensure!(audit.contains("CreateVm"), "{audit}");
    cloud.done()
}

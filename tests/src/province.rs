//! The province of `deploy/examples/vinh-phuc` on a cloud: three controllers, two racks of new nodes on two power feeds,
//! and one rack of 2013. The nodes are sessions without hypervisors. The manifests are a copy, so that a test may change
//! them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use tempfile::TempDir;

use crate::fleet::{Fleet, Size};
use crate::process::said;
use crate::{Cloud, Result, binaries};

/// The racks, how many nodes each has, and what hardware that is. The nodes stand on the two feeds in turn.
pub const RACKS: [(&str, usize, &str); 3] = [("r1", 4, "2024"), ("r2", 4, "2024"), ("r3", 2, "2013")];
pub const FEEDS: [&str; 2] = ["a", "b"];
/// The hardware that is to be emptied.
pub const OLD: &str = "r3";

/// Those of the agencies and of the national network, which every node has.
const VLANS: (u32, u32) = (900, 1_300);
const NEW_NODE: Size = Size { cpus: 64, memory_mib: 524_288, pool_mib: 1 << 24, vlans: VLANS };
const OLD_NODE: Size = Size { cpus: 16, memory_mib: 65_536, pool_mib: 1 << 24, vlans: VLANS };
/// How long any command of the province may take; it is not asserted, it only ends what hangs.
const PATIENCE: Duration = Duration::from_secs(900);

/// The province on its cloud.
pub struct Province {
    pub cloud: Cloud,
    pub folder: TempDir,
    /// What every command on the manifests is given.
    pub variables: Vec<String>,
    _fleets: Vec<Fleet>,
}

/// What a command said, and how long it took.
pub struct Ended {
    pub told: String,
    pub took: Duration,
}

impl Province {
    /// Controllers, nodes, the guarantee and the image; nothing of the manifests yet.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start(variables: &[&str]) -> Result<Self> {
        let mut cloud = Cloud::builder().controllers(3).bare().start().await?;
        let mut fleets = Vec::new();
        for (rack, count, hardware) in RACKS {
            let size = if rack == OLD { OLD_NODE } else { NEW_NODE };
            fleets.push(cloud.fleet_of(rack, count, size).await?);
            for at in 0..count {
                let feed = FEEDS[at % FEEDS.len()];
                let (node, rack) = (format!("{rack}-{at}"), format!("rack={rack}"));
                let (feed, label) = (format!("feed={feed}"), format!("hardware={hardware}"));
                let stands = ["--failure-domain", &rack, "--failure-domain", &feed, "--label", &label];
                cloud.cli.run(&[&["node", "update", &node][..], &stands].concat()).await?;
            }
        }
        cloud.nodes_ready().await?;
        let folder = tempfile::tempdir()?;
        copy(&binaries::deploy().join("examples/vinh-phuc"), folder.path())?;
        let disk = folder.path().join("disk.raw");
        std::fs::write(&disk, vec![0; 1 << 20])?;
        let disk = disk.display().to_string();
        cloud.cli.run(&["image", "import", "debian-12", "--file", &disk]).await?;
        let variables = variables.iter().flat_map(|one| ["--var".to_owned(), (*one).to_owned()]).collect();
        let province = Self { cloud, folder, variables, _fleets: fleets };
        province.guard(true).await?;
        Ok(province)
    }

    /// Has room kept for the loss of any node, rack or feed, or not.
    ///
    /// # Errors
    /// When the policy cannot be changed.
    pub async fn guard(&self, guarded: bool) -> Result<()> {
        let keys = ["node", "rack", "feed"].map(|key| if guarded { key.into() } else { format!("{key}-") });
        let guards = keys.iter().flat_map(|key| ["--guard", key]);
        let update: Vec<&str> = ["scheduling-policy", "update"].into_iter().chain(guards).collect();
        self.cloud.cli.run(&update).await?;
        Ok(())
    }

    /// Runs `plan`, `apply` or `destroy` to its end; what it said and how long it took.
    ///
    /// # Errors
    /// When it ends with another code.
    pub async fn ends(&self, verb: &str, more: &[&str], code: i32) -> Result<Ended> {
        let folder = self.folder.path().display().to_string();
        let variables: Vec<&str> = self.variables.iter().map(String::as_str).collect();
        let arguments = [&[verb, "-f", &folder][..], &variables, more].concat();
        let began = Instant::now();
        let output = self.cloud.cli.within(PATIENCE, &arguments).await?;
        let (told, took) = (said(&output), began.elapsed());
        let ended = output.status.code();
        ensure!(ended == Some(code), "`{verb}` ended with {ended:?} and not {code}:\n{told}");
        Ok(Ended { told, took })
    }

    /// All VMs of the cloud, of all agencies.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn vms(&self) -> Result<Vec<Value>> {
        let list: Value = self.cloud.cli.json(&["vm", "list", "--all-agencies"]).await?;
        Ok(list["vms"].as_array().cloned().unwrap_or_default())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

//! A small stack, from nothing to nothing: previewed, applied, found as it should be, changed in place, changed behind its
//! back and told of it, replaced with consent, taken away in part and as a whole; and another stack that keeps its hands
//! off it.

use std::path::Path;

use anyhow::ensure;
use tamdao_tests::process::said;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually, not_yet};

const NODES: usize = 2;
const SITE: &str = r##"
tamdao {
  stack = "site"
}

resource "flavor" "mini" {
  vcpus      = 1
  memory_mib = 512
}

resource "placement_group" "apart" {
  rules {
    kind = "apart"
  }
}

resource "volume" "data" {
  size_mib = 64
}

resource "vm" "web" {
  count            = 2
  name             = "web-${count.index}"
  flavor           = flavor.mini.name
  user_data        = "#cloud-config\n"
  placement_groups = [placement_group.apart.name]
  labels           = { tier = "front" }
  disks {
    create {
      size_mib = 128
    }
  }
}

resource "vm" "db" {
  vcpus      = 1
  memory_mib = 512
  disks {
    volume = volume.data.name
  }
}

output "nodes" {
  value = [for vm in vm.web : vm.status.node]
}
"##;

#[tokio::test]
async fn a_stack_lives_and_goes() -> Result<()> {
    let cloud = Cloud::builder().start().await?;
    let _fleet = cloud.fleet(NODES).await?;
    let folder = tempfile::tempdir()?;
    let write = |text: &str| std::fs::write(folder.path().join("main.tf"), text);
    write(SITE)?;
    let stack = Stack { cloud: &cloud, folder: folder.path() };
    stack.ends("validate", &[], 0, "the manifest is right: 6 resources").await?;
    let told =
        stack.ends("plan", &["--detailed-exitcode"], 2, "Plan: 6 to add, 0 to change, 0 to destroy.").await?;
    ensure!(told.contains("Preview: a place for 3 VMs now"), "{told}");
    // A third one could not be kept apart from both.
    write(&SITE.replace("count            = 2", "count            = 3"))?;
    let told = stack.ends("plan", &["-o", "json"], 0, "\"TooCrowded\"").await?;
    ensure!(told.contains("vm.web[2]"), "{told}");
    write(SITE)?;
    let told = stack.ends("apply", &["--yes"], 0, "done: 6 added").await?;
    ensure!(told.contains("fleet-0") && told.contains("fleet-1"), "the outputs are known now: {told}");
    // User data is never shown, and still nothing is to do.
    stack.ends("plan", &["--detailed-exitcode"], 0, "No changes.").await?;
    stack.ends("apply", &["--yes"], 0, "No changes.").await?;

    // In place: labels, user data, the size of a VM and of its volume.
    let changed = SITE
        .replace("front", "back")
        .replace("#cloud-config\\n", "#cloud-config\\nhostname: x\\n")
        .replace("size_mib = 64", "size_mib = 96");
    write(&changed)?;
    let told =
        stack.ends("plan", &["--detailed-exitcode"], 2, "Plan: 0 to add, 3 to change, 0 to destroy.").await?;
    ensure!(told.contains("user_data") && !told.contains("hostname: x"), "{told}");
    stack.ends("apply", &["--yes"], 0, "done: 0 added, 3 changed").await?;
    stack.ends("plan", &["--detailed-exitcode"], 0, "No changes.").await?;

    // Somebody else's change is found and put right.
    let listed = cloud.cli.run(&["stack", "list"]).await?;
    ensure!(listed.contains("in sync"), "{listed}");
    cloud.cli.run(&["vm", "update", "web-0", "--label", "tier=mine"]).await?;
    // Who it was is told by the journal, which is written behind the change.
    eventually("the drift is told with who it was", SOON, async || {
        let listed = cloud.cli.run(&["stack", "list"]).await?;
        let row = listed.lines().find(|line| line.contains("labels.tier")).unwrap_or_default();
        let told = ["\"back\"", "\"mine\"", "admin"].iter().all(|word| row.contains(word));
        if listed.contains("drifted") && told { Ok(()) } else { not_yet(listed) }
    })
    .await?;
    stack.ends("plan", &["--detailed-exitcode"], 2, "\"mine\" -> \"back\"").await?;
    stack.ends("apply", &["--yes"], 0, "1 changed").await?;

    // What loses data needs a word for it.
    let fewer = changed.replace("count            = 2", "count            = 1");
    write(&fewer)?;
    stack.ends("apply", &["--yes"], 1, "--allow-data-loss 'vm.web-1'").await?;
    stack.ends("apply", &["--yes", "--allow-data-loss", "vm.web-1"], 0, "1 destroyed").await?;
    stack.ends("plan", &["--detailed-exitcode"], 0, "No changes.").await?;

    // Another stack cannot take what this one has, by its plan or by a label.
    write(&fewer.replace("\"site\"", "\"other\""))?;
    stack.ends("plan", &[], 1, "belongs to stack \"site\"").await?;
    let taken = ["vm", "update", "web-0", "--label", "tamdao.vn/stack=other"];
    let refused = cloud.cli.attempt(&taken).await?;
    ensure!(said(&refused).contains("belongs to stack \"site\""), "{}", said(&refused));
    let listed = cloud.cli.run(&["stack", "list"]).await?;
    ensure!(listed.contains("in sync") && listed.contains("vm 2"), "{listed}");

    write(&fewer)?;
    stack.ends("destroy", &["--yes"], 1, "would lose data").await?;
    let lose = ["--yes", "--allow-data-loss", "vm.web[0]", "--allow-data-loss", "volume.data"];
    stack.ends("destroy", &lose, 0, "5 destroyed").await?;
    let listed = said(&cloud.cli.attempt(&["stack", "list"]).await?);
    ensure!(listed.contains("there are no stacks"), "{listed}");
    cloud.done()
}

struct Stack<'a> {
    cloud: &'a Cloud,
    folder: &'a Path,
}

impl Stack<'_> {
    /// Runs a command that ends with a code and says something.
    async fn ends(&self, verb: &str, more: &[&str], code: i32, says: &str) -> Result<String> {
        let folder = self.folder.display().to_string();
        let output = self.cloud.cli.attempt(&[&[verb, "-f", &folder][..], more].concat()).await?;
        let told = said(&output);
        ensure!(
            output.status.code() == Some(code) && told.contains(says),
            "`{verb}` ended with {:?} and not {code}, or did not say {says:?}:\n{told}",
            output.status.code()
        );
        Ok(told)
    }
}

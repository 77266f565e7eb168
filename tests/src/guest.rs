//! The tiny guest (deploy/images/tiny) as tests see it: its serial log, and what a line on its console answers.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::wait::{BOOT, eventually};
use crate::{Cloud, Result};

/// What the guest says when it is up.
pub const READY: &str = "tamdao-tiny: ready";

/// One VM that runs the tiny guest.
pub struct Guest<'a> {
    cloud: &'a Cloud,
    name: String,
}

impl<'a> Guest<'a> {
    pub fn new(cloud: &'a Cloud, name: &str) -> Self {
        Self { cloud, name: name.to_owned() }
    }

    /// What the guest has written since its first start, as the node keeps it.
    ///
    /// # Errors
    /// When there is no such VM, or it has no log yet.
    pub async fn log(&self) -> Result<String> {
        let path = self.log_file().await?;
        let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }

    /// The file of the log; the node's directories are this host's.
    ///
    /// # Errors
    /// When the VM is nowhere.
    pub async fn log_file(&self) -> Result<PathBuf> {
        let vm = self.cloud.vm(&self.name).await?;
        let id = vm.metadata.as_ref().map_or("", |metadata| &metadata.id);
        let agent = self.cloud.agent(crate::api::node(&vm))?;
        Ok(agent.data_dir.join("serial").join(format!("{id}.log")))
    }

    /// Waits until the guest has written `text` at least `times` times.
    ///
    /// # Errors
    /// When it does not.
    pub async fn says(&self, text: &str, times: usize) -> Result<String> {
        eventually(&format!("{} says {text:?} {times} times", self.name), BOOT, async || {
            let log = self.log().await?;
            if log.matches(text).count() < times {
                let all: Vec<&str> = log.lines().collect();
                let last = all[all.len().saturating_sub(8)..].join("\n");
                bail!("it said {} times so; its last lines:\n{last}", log.matches(text).count());
            }
            Ok(log)
        })
        .await
    }

    /// Types a line on the console through the cloud, and waits until an answer with `expected` comes.
    ///
    /// # Errors
    /// When no such answer comes.
    pub async fn answers(&self, line: &str, expected: &str) -> Result<String> {
        let input = format!("{line}\n");
        let arguments = ["vm", "console", &self.name, "--force"];
        // What was typed comes back as an echo, which is not the answer.
        let found =
            |heard: &str| heard.lines().any(|heard| heard.contains(expected) && !heard.contains(line));
        self.cloud.cli.converse(&arguments, input.as_bytes(), BOOT, found).await
    }

    /// The numbers of the ticks since the last boot, in order.
    ///
    /// # Errors
    /// As [`Self::log`].
    pub async fn ticks(&self) -> Result<Vec<u64>> {
        let log = self.log().await?;
        let last = log.rsplit("tamdao-tiny: booted").next().unwrap_or_default();
        Ok(last.lines().filter_map(|line| line.strip_prefix("tick ")?.trim().parse().ok()).collect())
    }

    /// The numbers of the ticks that one node has kept, in order.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn ticks_on(&self, node: &str) -> Result<Vec<u64>> {
        let dir = self.cloud.agent(node)?.data_dir.join("serial");
        let mut ticks = Vec::new();
        for file in std::fs::read_dir(dir)?.flatten() {
            let log = String::from_utf8_lossy(&std::fs::read(file.path())?).replace('\r', "");
            let own = log.lines().filter_map(|line| line.strip_prefix("tick ")?.trim().parse().ok());
            ticks.extend(own.collect::<Vec<u64>>());
        }
        Ok(ticks)
    }

    /// How often the guest has booted since its disk was made, as the disk says.
    ///
    /// # Errors
    /// When the guest has not said so.
    pub async fn boots(&self) -> Result<u64> {
        let log = self.log().await?;
        let said = log.rsplit("tamdao-tiny: boot-count ").next().and_then(|rest| rest.split(' ').next());
        said.and_then(|count| count.parse().ok()).context("the guest has not said how often it booted")
    }
}

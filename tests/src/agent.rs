//! One node's agent as a process inside its host's namespaces.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::Signal;

use crate::Result;
use crate::binaries::Version;
use crate::process::{Process, children, run, signal};
use crate::testbed::Testbed;
use crate::wait::{SOON, eventually, not_yet};

/// The agent of one node.
pub struct Agent {
    /// The node's name, also that of its host.
    pub name: String,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    /// Counts from the next start.
    pub version: Version,
    config: PathBuf,
    testbed: Testbed,
    process: Option<Process>,
}

impl Agent {
    /// Writes the configuration of a node's agent.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn plan(directory: &Path, testbed: &Testbed, name: &str, acceleration: &str) -> Result<Self> {
        let home = directory.join(name);
        std::fs::create_dir_all(&home)?;
        let (config, data_dir) = (home.join("agent.toml"), home.join("data"));
        let text = format!("name = {name:?}\ndata_dir = {data_dir:?}\nacceleration = {acceleration:?}\n");
        std::fs::write(&config, text)?;
        let (name, log, version) = (name.to_owned(), home.join("log"), Version::default());
        Ok(Self { name, data_dir, log, version, config, testbed: testbed.clone(), process: None })
    }

    /// Limits what its moves may send, from its next start on.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn limit_moves(&self, mib: u32) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with("moves_bandwidth_mib")).collect();
        std::fs::write(&self.config, format!("{}\nmoves_bandwidth_mib = {mib}\n", rest.join("\n")))?;
        Ok(())
    }

    /// Adds a line to the configuration; it counts from the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, line: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        Ok(std::fs::write(&self.config, format!("{text}{line}\n"))?)
    }

    /// Sends a signal to the agent, which is the only child of what was started.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, how: Signal) -> Result<()> {
        let process = self.process.as_ref().context("the agent is not started")?;
        children(process.id())?.into_iter().try_for_each(|child| signal(child, how))?;
        // `nsenter` stands still with what it has started, and goes on by itself only when it is told to.
        if how == Signal::CONT { signal(process.id(), how) } else { Ok(()) }
    }

    /// Forgets an agent whose host's power was cut.
    pub fn forget(&mut self) {
        self.process = None;
    }

    /// Makes the host a node of the cloud.
    ///
    /// # Errors
    /// When it cannot.
    pub fn join(&self, controllers: &[String], token: &str) -> Result<()> {
        let mut command = self.testbed.inside(&self.name);
        command.arg(self.version.find("tamdao-agent")?).arg("--config").arg(&self.config);
        command.args(["join", "--token", token]);
        for controller in controllers {
            command.args(["--controller", controller]);
        }
        run(&mut command).with_context(|| format!("{} joins", self.name))?;
        Ok(())
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts the process so that it dies when it reaches a checkpoint.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_to_die_at(&mut self, checkpoint: &str) -> Result<()> {
        self.start_with(&[("TAMDAO_CRASH_AT", checkpoint)])
    }

    fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        if self.process.is_some() {
            bail!("the agent of {} is started already", self.name);
        }
        let mut command = self.testbed.inside(&self.name);
        command.arg(self.version.find("tamdao-agent")?).arg("--config").arg(&self.config).arg("run");
        command.envs(environment.iter().copied());
        self.process = Some(Process::start(&format!("the agent of {}", self.name), &mut command, &self.log)?);
        Ok(())
    }

    /// Ends it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When it stays.
    pub async fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL).await
    }

    /// Asks it to end and waits until it is gone.
    ///
    /// # Errors
    /// When it stays.
    pub async fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM).await
    }

    async fn end(&mut self, how: Signal) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        // What was started waits for the agent, which is its only child.
        for child in children(process.id())? {
            signal(child, how)?;
        }
        process.wait(SOON).await?;
        Ok(())
    }

    /// Waits until it has died by itself, at the checkpoint that it was started for.
    ///
    /// # Errors
    /// When it lives on.
    pub async fn dies(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            bail!("the agent of {} is not started", self.name)
        };
        let what = format!("the agent of {} has died at its checkpoint", self.name);
        eventually(&what, 2 * SOON, async || match process.ended()? {
            Some(_) => Ok(()),
            None => not_yet("it runs; was it built with the feature test-hooks?"),
        })
        .await
    }

    /// # Errors
    /// When it has ended by itself, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if let Some(status) = process.ended()? {
            let words = format!("the agent of {} ended with {status}:\n{}", self.name, process.tail(15));
            return Err(crate::Hopeless(words).into());
        }
        Ok(())
    }

    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }
}

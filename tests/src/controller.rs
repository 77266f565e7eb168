//! One controller as a process: its configuration, its life and its death.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::Result;
use crate::binaries::Version;
use crate::island::Island;
use crate::process::{Process, run};
use crate::slot::Slot;

/// One seat of the control plane.
pub struct Controller {
    pub name: String,
    /// host:port.
    pub address: String,
    /// Where /metrics, /healthz and /readyz are, host:port.
    pub metrics: String,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    /// Counts from the next start.
    pub version: Version,
    config: PathBuf,
    /// What its commands begin with, if it has a network of its own.
    entry: Vec<String>,
    process: Option<Process>,
}

impl Controller {
    /// Writes the configuration of a controller that will listen on a free port of `host`.
    ///
    /// # Errors
    /// When no port is free, or the file cannot be written.
    pub fn plan(directory: &Path, name: &str, host: Ipv4Addr) -> Result<Self> {
        Self::planned(directory, name, free(host)?.to_string(), Vec::new())
    }

    /// The same for a controller with a network of its own.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn plan_on(directory: &Path, name: &str, island: &Island) -> Result<Self> {
        Self::planned(directory, name, format!("{}:7440", island.address), island.entry())
    }

    fn planned(directory: &Path, name: &str, address: String, entry: Vec<String>) -> Result<Self> {
        let metrics = free(Ipv4Addr::LOCALHOST)?.to_string();
        let home = directory.join(name);
        std::fs::create_dir_all(&home)?;
        let (config, data_dir) = (home.join("controller.toml"), home.join("data"));
        let text = format!(
            "name = {name:?}\naddress = {address:?}\nlisten = {address:?}\ndata_dir = {data_dir:?}\n\
             [metrics]\nlisten = {metrics:?}\n"
        );
        std::fs::write(&config, text)?;
        let log = home.join("log");
        let (name, version) = (name.to_owned(), Version::default());
        Ok(Self { name, address, metrics, data_dir, log, version, config, entry, process: None })
    }

    /// Sets a key outside all sections; it counts from the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, line: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        Ok(std::fs::write(&self.config, format!("{line}\n{text}"))?)
    }

    /// Adds sections to the configuration; they count from the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, sections: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        Ok(std::fs::write(&self.config, format!("{text}{sections}\n"))?)
    }

    /// Founds a cloud.
    ///
    /// # Errors
    /// When it cannot.
    pub fn init(&self) -> Result<()> {
        run(self.command("init")?.args(["--cluster-name", "test"])).context("the founding of the cluster")?;
        Ok(())
    }

    /// Becomes a further controller of a cloud.
    ///
    /// # Errors
    /// When it cannot.
    pub fn join(&self, meet: &str, token: &str) -> Result<()> {
        run(self.command("join")?.args(["--controller", meet, "--token", token]))
            .with_context(|| format!("{} joins", self.name))?;
        Ok(())
    }

    /// Becomes the first controller of a cloud that comes back from a backup, which `key` opens.
    ///
    /// # Errors
    /// When it cannot.
    pub fn restore(&self, backup: &Path, key: &Path) -> Result<()> {
        run(self.command("restore")?.arg("--from").arg(backup).arg("--identity").arg(key))
            .context("the restore")?;
        Ok(())
    }

    /// Its power and its disks are lost.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn lose(&mut self) -> Result<()> {
        self.kill()?;
        Ok(std::fs::remove_dir_all(&self.data_dir)?)
    }

    /// Starts the process; it need not be ready yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, slot: &Slot) -> Result<()> {
        let process = Process::start(&self.name, &mut self.command("run")?, &self.log)?;
        slot.note(process.id())?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When the system does not know it.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop().await,
            None => Ok(()),
        }
    }

    /// # Errors
    /// When it has ended by itself, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if let Some(status) = process.ended()? {
            let words = format!("{} ended with {status}:\n{}", self.name, process.tail(15));
            return Err(crate::Hopeless(words).into());
        }
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// The program with a subcommand and the configuration.
    fn command(&self, verb: &str) -> Result<Command> {
        let program = self.version.find("tamdao-controller")?;
        let mut words = self.entry.iter().map(OsString::from).chain([program.into()]);
        let mut command = Command::new(words.next().expect("there is at least the program"));
        command.args(words);
        command.arg(verb).arg("--config").arg(&self.config);
        Ok(command)
    }
}

/// A port that nobody listens on now. Another process may take it before it is used; then the test fails and says so.
fn free(host: Ipv4Addr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((host, 0)).with_context(|| format!("no free port on {host}"))?;
    Ok(listener.local_addr()?)
}

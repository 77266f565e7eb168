//! Three real etcd servers on loopback, for controllers that have their records there; fsync is on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::Result;
use crate::process::{Process, tail};
use crate::slot::Slot;

const MEMBERS: usize = 3;

/// The servers; they end with it.
pub struct Etcd {
    urls: Vec<String>,
    logs: Vec<PathBuf>,
    /// How each is started.
    arguments: Vec<Vec<String>>,
    members: Vec<Process>,
}

impl Etcd {
    /// Starts them on free ports; they need not be ready yet.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(slot: &Slot) -> Result<Self> {
        // All ports are bound at once, so that they differ, and freed for the servers.
        let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port");
        let bound: Vec<TcpListener> = (0..2 * MEMBERS).map(bind).collect::<Result<_>>()?;
        let ports: Vec<SocketAddr> =
            bound.iter().map(|socket| Ok(socket.local_addr()?)).collect::<Result<_>>()?;
        drop(bound);
        let (clients, peers) = ports.split_at(MEMBERS);
        let names: Vec<String> =
            peers.iter().enumerate().map(|(at, peer)| format!("e{at}=http://{peer}")).collect();
        let (mut logs, mut arguments) = (Vec::new(), Vec::new());
        for (at, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let name = format!("e{at}");
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let directory = slot.directory.join(&name).display().to_string();
            let named = ["--logger", "zap", "--log-level", "warn", "--initial-cluster-state", "new"];
            let more = [
                ["--name", &name],
                ["--initial-cluster", &names.join(",")],
                ["--data-dir", &directory],
                ["--listen-client-urls", &client],
                ["--advertise-client-urls", &client],
                ["--listen-peer-urls", &peer],
                ["--initial-advertise-peer-urls", &peer],
            ];
            arguments.push(named.into_iter().chain(more.concat()).map(str::to_owned).collect());
            logs.push(slot.directory.join(format!("{name}.log")));
        }
        let urls = clients.iter().map(|client| format!("http://{client}")).collect();
        let mut etcd = Self { urls, logs, arguments, members: Vec::new() };
        etcd.begin(slot)?;
        Ok(etcd)
    }

    /// Starts all members, after [`Self::end`].
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn begin(&mut self, slot: &Slot) -> Result<()> {
        for (at, (arguments, log)) in self.arguments.iter().zip(&self.logs).enumerate() {
            let process = Process::start(&format!("e{at}"), Command::new("etcd").args(arguments), log)
                .context("etcd is not installed: run deploy/install-packages")?;
            slot.note(process.id())?;
            self.members.push(process);
        }
        Ok(())
    }

    /// Ends all members in order.
    ///
    /// # Errors
    /// When one does not end.
    pub async fn end(&mut self) -> Result<()> {
        for mut member in std::mem::take(&mut self.members) {
            member.stop().await?;
        }
        Ok(())
    }

    /// Where the members' data are, below the slot's directory.
    pub fn directories() -> impl Iterator<Item = String> {
        (0..MEMBERS).map(|at| format!("e{at}"))
    }

    /// Ends a member as a crash would.
    ///
    /// # Errors
    /// When the system does not know it.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.members[member].kill()
    }

    /// What a controller's configuration says of them.
    pub fn section(&self) -> String {
        format!("[store]\nbackend = \"etcd\"\n[store.etcd]\nendpoints = {:?}\nlease_s = 2\n", self.urls)
    }

    /// The ends of their logs.
    pub fn tails(&self) -> Vec<(String, String)> {
        let named = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.logs.iter().map(|log| (named(log), tail(log, 20))).collect()
    }
}

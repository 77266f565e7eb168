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
        let (mut logs, mut members) = (Vec::new(), Vec::new());
        for (at, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let (name, log) = (format!("e{at}"), slot.directory.join(format!("e{at}.log")));
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let mut command = Command::new("etcd");
            command.args(["--logger", "zap", "--log-level", "warn", "--initial-cluster-state", "new"]);
            command.args(["--name", &name, "--initial-cluster", &names.join(",")]);
            command.arg("--data-dir").arg(slot.directory.join(&name));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            let process = Process::start(&name, &mut command, &log)
                .context("etcd is not installed: run deploy/install-packages")?;
            slot.note(process.id())?;
            members.push(process);
            logs.push(log);
        }
        let urls = clients.iter().map(|client| format!("http://{client}")).collect();
        Ok(Self { urls, logs, members })
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

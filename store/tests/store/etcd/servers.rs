//! Real etcd servers on loopback, each a process of its own with its own directory; fsync is on.
//!
//! A server ends with the value that stands for it, and with the thread that started it if that dies first.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use tamdao_store::backend::etcd::{EtcdConfig, EtcdStore, EtcdTls, Me};
use tamdao_store::contract::DEADLINE;

/// Some servers that form one cluster, and the folder that they live in.
pub struct Servers {
    folder: tempfile::TempDir,
    members: Vec<Server>,
    tls: Option<Tls>,
}

/// What servers with TLS are started with, and what their clients need.
pub struct Tls {
    /// Trusted on both sides, PEM.
    pub ca: String,
    /// A certificate for 127.0.0.1 and its key, PEM; servers and clients use the same.
    pub identity: (String, String),
}

struct Server {
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Servers {
    /// Three servers with default limits, quick to notice a death.
    pub fn three() -> Servers {
        Servers::start(3, None)
    }

    pub fn start(count: usize, tls: Option<Tls>) -> Servers {
        // All ports are bound at once, so that they differ, and freed for the servers.
        let bound: Vec<TcpListener> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<SocketAddr> = bound.iter().map(|socket| socket.local_addr().unwrap()).collect();
        drop(bound);
        let members = ports.chunks(2).map(|pair| Server { client: pair[0], peer: pair[1], child: None });
        let mut servers = Servers { folder: tempfile::tempdir().unwrap(), members: members.collect(), tls };
        if let Some(tls) = &servers.tls {
            std::fs::write(servers.path("ca.pem"), &tls.ca).unwrap();
            std::fs::write(servers.path("cert.pem"), &tls.identity.0).unwrap();
            std::fs::write(servers.path("key.pem"), &tls.identity.1).unwrap();
        }
        (0..count).for_each(|at| servers.run(at));
        servers
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a member with whatever its directory holds.
    pub fn run(&mut self, at: usize) {
        let names = self.members.iter().enumerate();
        let all: Vec<String> = names.map(|(at, member)| format!("e{at}=http://{}", member.peer)).collect();
        let (client, peer) = (self.url(at), format!("http://{}", self.members[at].peer));
        let log = std::fs::File::create(self.path(&format!("e{at}.log"))).unwrap();
        // Only setpriv can tie a process to its parent's life without unsafe code here.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--log-level", "error"]);
        command.args([
            "--heartbeat-interval",
            "50",
            "--election-timeout",
            "500",
            "--initial-cluster-state",
            "new",
        ]);
        command.args(["--name", &format!("e{at}"), "--initial-cluster", &all.join(",")]);
        command.arg("--data-dir").arg(self.path(&format!("e{at}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        if self.tls.is_some() {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.path("ca.pem"));
            command.arg("--cert-file").arg(self.path("cert.pem")).arg("--key-file").arg(self.path("key.pem"));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.members[at].child = Some(child.expect("etcd is installed: deploy/install-packages"));
    }

    /// Kills a member's process, as a power cut does.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn url(&self, at: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.members[at].client)
    }

    /// How a controller reaches them, `first` before the others.
    pub fn config(&self, first: usize) -> EtcdConfig {
        let count = self.members.len();
        EtcdConfig {
            endpoints: (0..count).map(|at| self.url((first + at) % count)).collect(),
            root: "/tamdao".into(),
            user: None,
            tls: self
                .tls
                .as_ref()
                .map(|tls| EtcdTls { ca: tls.ca.clone(), identity: Some(tls.identity.clone()) }),
            lease: Duration::from_secs(2),
            patience: Duration::from_secs(5),
            compact: true,
        }
    }

    /// A controller's store that asks the member `first` before the others.
    pub async fn open(&self, name: &str, first: usize) -> EtcdStore {
        let store = EtcdStore::open(self.config(first), me(name)).unwrap();
        ready(&store).await;
        store
    }

    /// The member that leads etcd.
    pub async fn leader(&self) -> usize {
        let find = async {
            loop {
                for (at, _) in self.members.iter().enumerate().filter(|(_, member)| member.child.is_some()) {
                    let mut client = Client::connect([self.url(at)], None).await.unwrap();
                    if let Ok(status) = client.status().await
                        && status.header().is_some_and(|header| header.member_id() == status.leader())
                    {
                        return at;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(DEADLINE, find).await.expect("somebody leads etcd")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|at| self.kill(at));
    }
}

/// A controller of the cloud of these tests; its name begins with one letter and ends with its id.
pub fn me(name: &str) -> Me {
    Me {
        cloud: uuid::Uuid::from_u128(1),
        found: true,
        id: name[1..].parse().unwrap(),
        name: name.into(),
        address: format!("{name}.example:7443"),
    }
}

/// Waits until a store answers.
pub async fn ready(store: &EtcdStore) {
    use tamdao_store::kv::Kv as _;
    let answered = async {
        while store.barrier().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.expect("etcd answers");
}

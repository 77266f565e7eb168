//! Several real members in one process: each with its own directory, its own server on port 0 and
//! real connections, whose links a test can cut or mute.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use tamdao_store::backend::raft::{Dial, DialError, RaftConfig, RaftStore, tune};
use tamdao_store::contract::within;
use tamdao_store::kv::{Kv, Membership, Revision, Role};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use uuid::Uuid;

/// Which links do not work; shared by all members of a cluster.
#[derive(Clone, Default)]
pub struct Links(Arc<Mutex<Broken>>);

#[derive(Default)]
struct Broken {
    isolated: HashSet<String>,
    held: HashSet<String>,
    mute: HashSet<(String, String)>,
}

impl Links {
    /// Cuts an address off from all others, in both directions.
    pub fn isolate(&self, address: &str) {
        self.0.lock().unwrap().isolated.insert(address.into());
    }

    /// Holds back all that comes from an address, until the links are healed.
    pub fn hold(&self, address: &str) {
        self.0.lock().unwrap().held.insert(address.into());
    }

    /// Lets requests from one address to another pass, and loses the answers.
    pub fn mute(&self, from: &str, to: &str) {
        self.0.lock().unwrap().mute.insert((from.into(), to.into()));
    }

    pub fn heal(&self) {
        *self.0.lock().unwrap() = Broken::default();
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        let broken = self.0.lock().unwrap();
        broken.isolated.contains(from) || broken.isolated.contains(to)
    }

    fn is_held(&self, from: &str, to: &str) -> bool {
        let broken = self.0.lock().unwrap();
        broken.held.contains(from) || broken.held.contains(to)
    }

    fn is_mute(&self, from: &str, to: &str) -> bool {
        self.0.lock().unwrap().mute.contains(&(from.into(), to.into()))
    }
}

struct LinkDial {
    from: String,
    links: Links,
}

impl Dial for LinkDial {
    fn dial(&self, address: &str) -> Result<Channel, DialError> {
        let (from, to, links) = (self.from.clone(), address.to_owned(), self.links.clone());
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| DialError { address: to.clone(), reason: error.to_string() })?;
        let connect = tower::service_fn(move |_| {
            let (from, to, links) = (from.clone(), to.clone(), links.clone());
            async move {
                if links.is_cut(&from, &to) {
                    return Err(io::Error::from(io::ErrorKind::HostUnreachable));
                }
                let stream = TcpStream::connect(&to).await?;
                stream.set_nodelay(true)?;
                Ok(TokioIo::new(Link { stream, from, to, links }))
            }
        });
        Ok(tune(endpoint).connect_with_connector_lazy(connect))
    }
}

struct Link {
    stream: TcpStream,
    from: String,
    to: String,
    links: Links,
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.links.is_cut(&self.from, &self.to) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.links.is_mute(&self.from, &self.to) {
            return Poll::Pending;
        }
        if self.links.is_held(&self.from, &self.to) {
            let waker = cx.waker().clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                waker.wake();
            });
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.links.is_cut(&self.from, &self.to) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One running member.
pub struct Running {
    pub store: RaftStore,
    pub config: RaftConfig,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

/// A cluster and the folder that it lives in.
pub struct Cluster {
    pub id: Uuid,
    pub links: Links,
    folder: PathBuf,
    _scratch: Option<tempfile::TempDir>,
    tune: fn(&mut RaftConfig),
}

impl Cluster {
    pub fn new(tune: fn(&mut RaftConfig)) -> Cluster {
        let scratch = tempfile::tempdir().unwrap();
        let cluster = Cluster::at(scratch.path().into(), tune);
        Cluster { _scratch: Some(scratch), ..cluster }
    }

    /// One whose folder is somebody else's.
    pub fn at(folder: PathBuf, tune: fn(&mut RaftConfig)) -> Cluster {
        Cluster { id: Uuid::new_v4(), links: Links::default(), folder, _scratch: None, tune }
    }

    pub fn config(&self, name: &str, address: &str) -> RaftConfig {
        let mut config = RaftConfig::new(self.folder.join(name), name, address);
        config.heartbeat = Duration::from_millis(100);
        config.election_min = Duration::from_millis(1000);
        config.election_max = Duration::from_millis(2000);
        config.commit_timeout = Duration::from_secs(30);
        config.read_timeout = Duration::from_secs(30);
        (self.tune)(&mut config);
        config
    }

    /// Starts a member on a new port, with whatever its directory holds.
    pub async fn start(&self, name: &str) -> Running {
        self.start_at(name, "127.0.0.1:0").await
    }

    pub async fn start_at(&self, name: &str, address: &str) -> Running {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = self.config(name, &address);
        let dial = LinkDial { from: address, links: self.links.clone() };
        let store = RaftStore::open(config.clone(), Arc::new(dial)).await.unwrap();
        let service = store.service();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener).inspect(|accepted| {
                // Without this each answer waits for the other side's delayed acknowledgement.
                if let Ok(stream) = accepted {
                    let _ = stream.set_nodelay(true);
                }
            });
            let stopped = async { drop(stopped.await) };
            Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .unwrap();
        });
        Running { store, config, stop, server }
    }

    /// Founds the cluster with one member.
    pub async fn found(&self, name: &str) -> Running {
        let member = self.start(name).await;
        member.store.init(self.id).await.unwrap();
        within("the founder leads", leads(&member.store)).await;
        member
    }

    /// Starts a new member and has the leader seat it.
    pub async fn add(&self, leader: &RaftStore, name: &str) -> Running {
        let member = self.start(name).await;
        member.store.join(self.id).await.unwrap();
        within("a seat", leader.add_member(member.store.seat())).await.unwrap();
        member
    }

    /// Three members, the first of which leads.
    pub async fn three(&self) -> [Running; 3] {
        let a = self.found("a").await;
        let b = self.add(&a.store, "b").await;
        let c = self.add(&a.store, "c").await;
        [a, b, c]
    }
}

impl Running {
    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// Stops the member at once; its directory stays. Nothing is saved on the way out, so to the
    /// data this is the same as a kill.
    pub async fn kill(self) -> RaftConfig {
        self.store.shutdown().await;
        drop(self.stop);
        self.server.abort();
        self.config
    }
}

/// Waits until a member's status is as wanted; looked at again whenever time has passed, since a
/// status is a level and not an event.
pub async fn until(store: &RaftStore, what: &str, wanted: impl Fn(&tamdao_store::kv::Status) -> bool) {
    let look = async {
        while !wanted(&store.status()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(tamdao_store::contract::DEADLINE, look).await.is_err() {
        panic!("{what} did not come about: {:?}", store.status());
    }
}

pub async fn leads(store: &RaftStore) {
    until(store, "leading", |status| status.role == Role::Leader).await;
}

pub async fn applied(store: &RaftStore, revision: Revision) {
    until(store, "applying", |status| status.revision >= revision).await;
}

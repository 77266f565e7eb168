//! A real S3 server, the Python package `moto`, which judges every signature and what its holder may do; and a line to it
//! that can be cut in the middle of an upload.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tamdao_backup::{Access, Credentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::eventually;

/// Pinned, because each version answers in its own way.
const VERSION: &str = "5.2.5";
const BUCKET: &str = "backups";
/// What is asked before credentials are judged: the bucket, a user, its key and what it may.
const UNJUDGED: &str = "4";
/// All that is looked at of who asks for these.
const ANYBODY: &str = "AWS4-HMAC-SHA256 Credential=nobody/20261122/us-east-1/SERVICE/aws4_request, \
                       SignedHeaders=host, Signature=none";
const MAY_ALL: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#;

/// Ends with the test.
pub struct S3 {
    process: Child,
    address: SocketAddr,
    credentials: Credentials,
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program, installed on first use beside the build.
fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let home = target.join(format!("moto-{VERSION}"));
    let (program, whole) = (home.join("bin/moto_server"), home.join("whole"));
    if !whole.is_file() {
        let done = Command::new("python3").args(["-m", "venv"]).arg(&home).status().unwrap();
        assert!(done.success(), "a Python environment; Debian's package is python3-venv");
        // Its extra `server` brings what the other services need, and is many times larger.
        let packages = [&format!("moto[s3]=={VERSION}"), "flask", "flask-cors"];
        let mut pip = Command::new(home.join("bin/pip"));
        let done =
            pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(packages).status().unwrap();
        assert!(done.success(), "{packages:?} from the Python package index");
        std::fs::write(whole, "").unwrap();
    }
    program
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("{text}")).1;
    rest.split_once(after).unwrap().0
}

impl S3 {
    /// With an empty bucket and credentials for it.
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let program = tokio::task::spawn_blocking(program).await.unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", UNJUDGED);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut s3 = Self { process, address, credentials: Credentials::default() };
        eventually("the S3 server answers", || async { TcpStream::connect(address).await.ok() }).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{address}");
        let made =
            client.put(format!("{url}/{BUCKET}")).header("authorization", ANYBODY.replace("SERVICE", "s3"));
        assert_eq!(made.send().await.unwrap().status(), 200);
        let ask = async |action: &str, more: &[(&str, &str)]| {
            let text: Vec<String> = [("Action", action), ("UserName", "cloud"), ("Version", "2010-05-08")]
                .iter()
                .chain(more)
                .map(|(key, value)| format!("{key}={}", value.replace('"', "%22").replace('*', "%2A")))
                .collect();
            let asked = client.post(&url).header("authorization", ANYBODY.replace("SERVICE", "iam"));
            let asked =
                asked.header("content-type", "application/x-www-form-urlencoded").body(text.join("&"));
            let answer = asked.send().await.unwrap();
            assert_eq!(answer.status(), 200, "{action}");
            answer.text().await.unwrap()
        };
        ask("CreateUser", &[]).await;
        let key = ask("CreateAccessKey", &[]).await;
        ask("PutUserPolicy", &[("PolicyName", "all"), ("PolicyDocument", MAY_ALL)]).await;
        s3.credentials = Credentials {
            key_id: between(&key, "<AccessKeyId>", "</").to_owned(),
            secret: between(&key, "<SecretAccessKey>", "</").to_owned(),
        };
        s3
    }

    /// A part of the bucket.
    pub fn place(&self) -> tamdao_backup::Place {
        tamdao_backup::Place::parse(&format!("s3://{BUCKET}/clouds/north")).unwrap()
    }

    /// How it is reached.
    pub fn access(&self) -> Access {
        self.access_by(self.address)
    }

    /// How it is reached by a line to it.
    pub fn access_by(&self, address: SocketAddr) -> Access {
        Access {
            endpoint: format!("http://{address}"),
            region: "us-east-1".into(),
            credentials: self.credentials.clone(),
            ca_pem: String::new(),
        }
    }
}

/// A line to a server. Once it is cut nobody comes through until it is mended.
#[derive(Clone)]
pub struct Line {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    to: SocketAddr,
    /// Uploads that still come through.
    uploads: AtomicUsize,
    is_cut: AtomicBool,
}

impl Line {
    /// Cut in the middle of the upload after so many.
    pub async fn to(s3: &S3, uploads: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            State { to: s3.address, uploads: AtomicUsize::new(uploads), is_cut: AtomicBool::new(false) };
        let line = Self { address, state: Arc::new(state) };
        let state = line.state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !state.is_cut.load(Ordering::SeqCst) {
                    tokio::spawn(carry(client, state.clone()));
                }
            }
        });
        line
    }

    pub fn is_cut(&self) -> bool {
        self.state.is_cut.load(Ordering::SeqCst)
    }

    pub fn mend(&self) {
        self.state.uploads.store(usize::MAX, Ordering::SeqCst);
        self.state.is_cut.store(false, Ordering::SeqCst);
    }
}

/// Until one end closes, or it is cut.
async fn carry(client: TcpStream, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(state.to).await else { return };
    let ((mut said, mut told), (mut heard, mut asked)) = (client.into_split(), server.into_split());
    let answers = tokio::spawn(async move { tokio::io::copy(&mut heard, &mut told).await });
    let mut part = vec![0; 2_000];
    while let Ok(bytes @ 1..) = said.read(&mut part).await {
        // A request begins with a part of its own, since each waits for the answer to the one before.
        if part.starts_with(b"PUT ") && state.uploads.fetch_sub(1, Ordering::SeqCst) == 0 {
            // Its head and something of its body have gone when everything breaks.
            let _ = asked.write_all(&part[..bytes]).await;
            state.is_cut.store(true, Ordering::SeqCst);
            break;
        }
        if state.is_cut.load(Ordering::SeqCst) || asked.write_all(&part[..bytes]).await.is_err() {
            break;
        }
    }
    answers.abort();
}

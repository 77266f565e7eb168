//! Real controllers in this process, each on its own port and directory, with real TLS and the real store; and the
//! clients that speak to them.

pub mod bmc;
pub mod node;
pub mod provider;
pub mod rsyslog;
pub mod s3;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use serde_json::Value;
use sha2::Digest;
use tamdao_controller::assembly::Controller;
use tamdao_controller::clock::{Clock, SystemClock};
use tamdao_controller::config::Config;
use tamdao_controller::identity::{self, Identity};
use tamdao_controller::join;
use tamdao_controller::peers::Connector;
use tamdao_controller::pki::{self, Credentials};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::enroll_service_client::EnrollServiceClient;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take at most; only a failing test waits so long.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Cloud {
    pub directory: tempfile::TempDir,
    pub token: String,
    pub ca: String,
    pub running: Vec<Running>,
}

pub struct Running {
    pub config: Config,
    pub controller: Controller,
}

/// A client with one set of credentials.
#[derive(Clone)]
pub struct User {
    client: Client<Connector, Body>,
    connector: Connector,
    token: Option<String>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// None between two leaders, when one has to ask again: a group that gets no processor for a second elects anew.
    pub fn of_a_leader(self) -> Option<Self> {
        let again = self.status == 503 && self.json()["details"][0]["reason"] == "Unavailable";
        (!again).then_some(self)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// The hint of an error.
    pub fn hint(&self) -> String {
        self.json()["details"][0]["metadata"]["hint"].as_str().unwrap_or_default().to_owned()
    }

    /// The fields that an error blames.
    pub fn fields(&self) -> Vec<String> {
        let json = self.json();
        let bad =
            json["details"].as_array().into_iter().flatten().find_map(|d| d["field_violations"].as_array());
        bad.into_iter().flatten().map(|v| v["field"].as_str().unwrap().to_owned()).collect()
    }
}

pub fn config(directory: &Path, name: &str) -> Config {
    config_with(directory, name, "")
}

/// With more keys in its last table, which is the images'.
pub fn config_with(directory: &Path, name: &str, more: &str) -> Config {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let data = directory.join(name);
    let text = format!(
        "name = '{name}'\nlisten = '127.0.0.1:{port}'\naddress = '127.0.0.1:{port}'\ndata_dir = '{}'\n\
         [store]\nheartbeat_ms = 50\nelection_min_ms = 400\nelection_max_ms = 800\n\
         [metrics]\nlisten = '127.0.0.1:0'\n[images]\nmax_size_mib = 8\nmax_virtual_size_mib = 64\n{more}\n",
        data.display()
    );
    Config::parse(&text, Path::new("test.toml")).unwrap()
}

/// Waits until it holds, whatever that takes, up to a generous deadline.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

impl Cloud {
    /// One controller that leads.
    pub async fn found() -> Self {
        Self::found_with("").await
    }

    /// The same, with more keys in the table of images.
    pub async fn found_with(more: &str) -> Self {
        Self::found_as(more, |_| {}).await
    }

    /// The same, with a configuration that is changed by hand.
    pub async fn found_as(more: &str, change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let mut config = config_with(directory.path(), "c1", more);
        change(&mut config);
        let (identity, token) = identity::found(&config, "test", SystemClock.now()).unwrap();
        let ca = identity.ca.clone();
        let controller = Controller::start(&config, identity).await.unwrap();
        let mut cloud = Self {
            directory,
            token: token.expose().to_owned(),
            ca,
            running: vec![Running { config, controller }],
        };
        cloud.settled().await;
        cloud
    }

    /// Adds a controller and waits until it serves as a voter.
    pub async fn join(&mut self, name: &str) {
        self.join_with(name, "").await;
    }

    /// The same, with more keys in its table of images.
    pub async fn join_with(&mut self, name: &str, more: &str) {
        self.join_config(config_with(self.directory.path(), name, more)).await;
    }

    /// The same, with a configuration that is changed by hand.
    pub async fn join_as(&mut self, name: &str, change: impl FnOnce(&mut Config)) {
        let mut config = config(self.directory.path(), name);
        change(&mut config);
        self.join_config(config).await;
    }

    async fn join_config(&mut self, config: Config) {
        let token = self.join_token(&self.admin(), "JOIN_TOKEN_KIND_CONTROLLER", 1).await;
        join::join(&config, &token, self.address(0)).await.unwrap();
        let controller = Controller::start(&config, Identity::of(&config).unwrap()).await.unwrap();
        self.running.push(Running { config, controller });
        let voters = self.running.len();
        eventually("the controller is a voter", || async {
            let members = self.running[0].controller.shared.kv.status().members;
            (members.iter().filter(|member| member.voter).count() == voters).then_some(())
        })
        .await;
        self.settled().await;
    }

    /// Waits until every controller can serve.
    pub async fn settled(&mut self) {
        let admin = self.admin();
        for at in 0..self.running.len() {
            eventually("the controller is ready", || async {
                let answer = admin.try_get(self.address(at), "/readyz").await?;
                (answer.status == 200).then_some(())
            })
            .await;
        }
    }

    pub fn address(&self, at: usize) -> &str {
        &self.running[at].config.address
    }

    /// The one that does not lead.
    pub fn follower(&self) -> usize {
        self.running.iter().position(|running| !running.controller.shared.leads()).unwrap()
    }

    fn digest(&self) -> [u8; 32] {
        sha2::Sha256::digest(pki::der_of(&self.ca).unwrap()).into()
    }

    pub fn anonymous(&self) -> User {
        User::new(pki::pinned_client(self.digest()).unwrap(), None)
    }

    pub fn with_token(&self, token: &str) -> User {
        User::new(pki::pinned_client(self.digest()).unwrap(), Some(token.to_owned()))
    }

    pub fn admin(&self) -> User {
        self.with_token(&self.token)
    }

    pub async fn join_token(&self, admin: &User, kind: &str, uses: u32) -> String {
        let body = format!("{{\"kind\": \"{kind}\", \"uses\": {uses}}}");
        let answer = eventually("a leader answers", || async {
            admin.call(self.address(0), Method::POST, "/v1/join-tokens", &body).await.of_a_leader()
        })
        .await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer.json()["secret"].as_str().unwrap().to_owned()
    }

    /// A node's certificate, as its agent gets it.
    pub async fn node(&self, name: &str) -> (String, User) {
        let (id, user, _) = self.host(name).await;
        (id, user)
    }

    /// The same, with the UUID of its host.
    pub async fn host(&self, name: &str) -> (String, User, uuid::Uuid) {
        let token = self.join_token(&self.admin(), "JOIN_TOKEN_KIND_NODE", 1).await;
        let (request, key) = node_request(&token, name);
        let host_uuid = request.host_uuid.parse().unwrap();
        let mut enroll = EnrollServiceClient::new(self.anonymous().channel(self.address(0)));
        let given = enroll.enroll_node(request).await.unwrap().into_inner();
        let credentials = Credentials::new(&given.ca, &given.certificate, &key).unwrap();
        (given.node_id, User::new(credentials.client().unwrap(), None), host_uuid)
    }
}

pub fn node_request(token: &str, name: &str) -> (agent::EnrollNodeRequest, String) {
    let made = pki::request().unwrap();
    let request = agent::EnrollNodeRequest {
        secret: token.into(),
        name: name.into(),
        csr: made.request,
        host_uuid: uuid::Uuid::new_v4().to_string(),
        addresses: vec!["127.0.0.1".into()],
    };
    (request, made.key)
}

impl User {
    pub fn new(tls: Arc<ClientConfig>, token: Option<String>) -> Self {
        let connector = Connector::new(tls);
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build(connector.clone());
        Self { client, connector, token }
    }

    pub fn channel(&self, address: &str) -> Channel {
        Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_with_connector_lazy(self.connector.clone())
    }

    /// A gRPC request with the user's token.
    pub fn ask<M>(&self, message: M) -> tonic::Request<M> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }

    pub fn request(&self, address: &str, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("https://{address}{path}"));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        self.try_send(request).await.unwrap()
    }

    async fn try_send(&self, request: Request<Body>) -> Result<Answer, String> {
        let response = self.client.request(request).await.map_err(|error| format!("{error:?}"))?;
        let (parts, body) = response.into_parts();
        let body =
            axum::body::to_bytes(Body::new(body), usize::MAX).await.map_err(|error| error.to_string())?;
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// The status, if there is one: a request that breaks off may get none.
    pub async fn try_open(&self, request: Request<Body>) -> Option<StatusCode> {
        self.client.request(request).await.ok().map(|response| response.status())
    }

    /// An answer whose body is read as it comes.
    pub async fn open(&self, request: Request<Body>) -> http::Response<hyper::body::Incoming> {
        self.client.request(request).await.unwrap()
    }

    pub async fn call(&self, address: &str, method: Method, path: &str, body: &str) -> Answer {
        self.send(self.request(address, method, path).body(Body::from(body.to_owned())).unwrap()).await
    }

    pub async fn get(&self, address: &str, path: &str) -> Answer {
        self.call(address, Method::GET, path, "").await
    }

    pub async fn post(&self, address: &str, path: &str, body: &str) -> Answer {
        self.call(address, Method::POST, path, body).await
    }

    async fn try_get(&self, address: &str, path: &str) -> Option<Answer> {
        let request = self.request(address, Method::GET, path).body(Body::empty()).unwrap();
        self.try_send(request).await.ok()
    }
}

//! A BMC for a host of the testbed: a small Redfish service on the loopback that takes the host's power for real.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::Result;
use crate::testbed::Testbed;

const SYSTEM: &str = "/redfish/v1/Systems/1";

/// The service, until it goes.
pub struct Bmc {
    pub url: String,
    host: Arc<Host>,
    serves: JoinHandle<()>,
}

struct Host {
    testbed: Testbed,
    node: String,
    uuid: String,
    off: AtomicBool,
    commands: AtomicUsize,
}

impl Bmc {
    /// Serves for a host that runs.
    ///
    /// # Errors
    /// When the host does not tell its UUID, or no port is free.
    pub async fn start(testbed: &Testbed, node: &str) -> Result<Self> {
        let told = testbed.shell(node, "virsh -q -c qemu:///system capabilities")?;
        let uuid = told.split("<uuid>").nth(1).and_then(|rest| rest.split('<').next());
        let host = Arc::new(Host {
            testbed: testbed.clone(),
            node: node.to_owned(),
            uuid: uuid.context("a host has a UUID")?.to_owned(),
            off: AtomicBool::new(false),
            commands: AtomicUsize::new(0),
        });
        let routes = axum::Router::new()
            .route("/redfish/v1/", get(async || Json(json!({ "Systems": link("/redfish/v1/Systems") }))))
            .route("/redfish/v1/Systems", get(async || Json(json!({ "Members": [link(SYSTEM)] }))))
            .route(SYSTEM, get(system))
            .route(&format!("{SYSTEM}/Actions/ComputerSystem.Reset"), post(reset))
            .with_state(host.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let serves = tokio::spawn(async move {
            axum::serve(listener, routes).await.ok();
        });
        Ok(Self { url, host, serves })
    }

    /// Refuses that it was never told to take the power.
    ///
    /// # Errors
    /// When it was not.
    pub fn has_cut(&self) -> Result<()> {
        let commands = self.host.commands.load(Ordering::SeqCst);
        ensure!(commands > 0 && self.host.off.load(Ordering::SeqCst), "{commands} commands");
        Ok(())
    }
}

impl Drop for Bmc {
    fn drop(&mut self) {
        self.serves.abort();
    }
}

fn link(path: &str) -> Value {
    json!({ "@odata.id": path })
}

async fn system(State(host): State<Arc<Host>>) -> Json<Value> {
    let power = if host.off.load(Ordering::SeqCst) { "Off" } else { "On" };
    Json(json!({
        "@odata.id": SYSTEM, "UUID": host.uuid, "PowerState": power,
        "Actions": {"#ComputerSystem.Reset": {
            "target": format!("{SYSTEM}/Actions/ComputerSystem.Reset"),
            "ResetType@Redfish.AllowableValues": ["ForceOff"],
        }},
    }))
}

async fn reset(State(host): State<Arc<Host>>, Json(asked): Json<Value>) -> StatusCode {
    if asked["ResetType"] != "ForceOff" {
        return StatusCode::BAD_REQUEST;
    }
    host.commands.fetch_add(1, Ordering::SeqCst);
    let cut = tokio::task::spawn_blocking(move || {
        let cut = host.testbed.cut(&host.node);
        host.off.fetch_or(cut.is_ok(), Ordering::SeqCst);
        cut
    });
    match cut.await {
        Ok(Ok(())) => StatusCode::NO_CONTENT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

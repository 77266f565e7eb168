//! Redfish, as little of it as fencing needs: from the service root to the systems, a system's UUID and power, and the
//! action ForceOff (DMTF DSP0266; the answers' forms from DSP0268).
//!
//! Invariants: only status 200 with a whole document of bounded length is an answer to a look; links are followed on the
//! BMC's own origin only, redirects and proxies never; every call begins on a connection of its own, so that no answer
//! belongs to an earlier question; the machine's UUID is read again before the action is asked for.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tamdao_model::bmc::{Power, Seen, is_same_machine};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{Access, Bmc, COMMAND_WITHIN, Fault, LOOK_WITHIN, trust};
use crate::peers::chain;

/// The one path that every Redfish service has.
const ROOT: &str = "/redfish/v1/";
/// The largest document that is read, bytes.
const DOCUMENT_BYTES: usize = 1 << 20;
/// Systems of one BMC that are looked at.
const SYSTEMS: usize = 32;

/// BMCs that speak Redfish.
pub struct Redfish {
    look_within: Duration,
    command_within: Duration,
}

impl Default for Redfish {
    fn default() -> Self {
        Self { look_within: LOOK_WITHIN, command_within: COMMAND_WITHIN }
    }
}

impl Redfish {
    /// With other deadlines.
    pub fn within(look_within: Duration, command_within: Duration) -> Self {
        Self { look_within, command_within }
    }
}

#[async_trait]
impl Bmc for Redfish {
    async fn look(&self, access: &Access, host: Uuid) -> Result<Seen, Fault> {
        let access = access.clone();
        run(self.look_within, async move {
            let found = Service::new(&access)?.find(host).await?;
            Ok(Seen { system_uuid: found.uuid, power: found.power })
        })
        .await
    }

    async fn force_off(&self, access: &Access, host: Uuid) -> Result<(), Fault> {
        let access = access.clone();
        run(self.command_within, async move {
            let service = Service::new(&access)?;
            let found = service.find(host).await?;
            if !is_same_machine(host, found.uuid) {
                return Err(Fault::WrongMachine(found.uuid));
            }
            service.reset(&found.reset.ok_or(Fault::NoForceOff)?).await
        })
        .await
    }
}

/// Runs a call in a task of its own, so that it goes on while nobody asks for its result, and not without anybody who
/// would.
async fn run<T: Send + 'static>(
    within: Duration,
    call: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    let task = AbortOnDropHandle::new(tokio::spawn(tokio::time::timeout(within, call)));
    match task.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Fault::TooSlow(within)),
        Err(error) => Err(Fault::Unreachable(error.to_string())),
    }
}

/// One BMC for the length of one call.
struct Service<'a> {
    client: Client,
    base: Url,
    access: &'a Access,
}

/// A system that was found.
struct Found {
    uuid: Uuid,
    power: Power,
    /// Where ForceOff is asked for.
    reset: Option<String>,
}

#[derive(Deserialize)]
struct Root {
    #[serde(rename = "Systems")]
    systems: Link,
}

#[derive(Deserialize)]
struct Link {
    #[serde(rename = "@odata.id")]
    id: String,
}

#[derive(Deserialize)]
struct Collection {
    #[serde(rename = "Members")]
    members: Vec<Link>,
}

#[derive(Deserialize)]
struct System {
    #[serde(rename = "UUID")]
    uuid: Uuid,
    #[serde(rename = "PowerState")]
    power: String,
    #[serde(rename = "Actions", default)]
    actions: Actions,
}

#[derive(Deserialize, Default)]
struct Actions {
    #[serde(rename = "#ComputerSystem.Reset")]
    reset: Option<Reset>,
}

#[derive(Deserialize)]
struct Reset {
    target: String,
    #[serde(rename = "ResetType@Redfish.AllowableValues", default)]
    allowed: Vec<String>,
}

impl<'a> Service<'a> {
    fn new(access: &'a Access) -> Result<Self, Fault> {
        let base: Url = access.url.parse().map_err(|_| Fault::Malformed("its url"))?;
        let client = Client::builder()
            .use_preconfigured_tls(trust::client(&access.trust)?)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .user_agent(concat!("tamdao-controller/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Fault::Unreachable(chain(&error)))?;
        Ok(Self { client, base, access })
    }

    /// The system of this UUID, else the first that there is.
    async fn find(&self, host: Uuid) -> Result<Found, Fault> {
        let given = self.base.path();
        if given != "/" {
            return self.system(given).await;
        }
        let root: Root = self.get(ROOT).await?;
        let collection: Collection = self.get(&root.systems.id).await?;
        let mut other = None;
        for link in collection.members.iter().take(SYSTEMS) {
            let found = self.system(&link.id).await?;
            if is_same_machine(host, found.uuid) {
                return Ok(found);
            }
            other = other.or(Some(found));
        }
        other.ok_or(Fault::Malformed("it has no systems"))
    }

    async fn system(&self, path: &str) -> Result<Found, Fault> {
        let System { uuid, power, actions } = self.get(path).await?;
        let power = match power.as_str() {
            "On" => Power::On,
            "Off" => Power::Off,
            _ => Power::Between,
        };
        let offers =
            |reset: &Reset| reset.allowed.is_empty() || reset.allowed.iter().any(|one| one == "ForceOff");
        let reset = actions.reset.filter(offers).map(|reset| reset.target);
        Ok(Found { uuid, power, reset })
    }

    async fn reset(&self, target: &str) -> Result<(), Fault> {
        let body = r#"{"ResetType": "ForceOff"}"#;
        match self.ask(Method::POST, target, Some(body)).await?.status() {
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(()),
            other => Err(Fault::Status(other.as_u16())),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        let mut response = self.ask(Method::GET, path, None).await?;
        if response.status() != StatusCode::OK {
            return Err(Fault::Status(response.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| Fault::Unreachable(chain(&error)))? {
            if document.len() + part.len() > DOCUMENT_BYTES {
                return Err(Fault::Malformed("a document without end"));
            }
            document.extend_from_slice(&part);
        }
        serde_json::from_slice(&document).map_err(|_| Fault::Malformed("no such document as Redfish has"))
    }

    /// Sends one request. What its answer is worth is the caller's to say, but for what nobody builds on.
    async fn ask(&self, method: Method, path: &str, body: Option<&'static str>) -> Result<Response, Fault> {
        let url = self.base.join(path).map_err(|_| Fault::Malformed("a link that is none"))?;
        if url.origin() != self.base.origin() {
            return Err(Fault::Malformed("a link that leads elsewhere"));
        }
        let mut request = self.client.request(method, url);
        request = request.basic_auth(&self.access.username, Some(&self.access.password.0));
        request = request.header("accept", "application/json").header("cache-control", "no-cache");
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.map_err(|error| {
            // The library does not say it of itself: a certificate that is not believed is a failed connection to it.
            let text = chain(&error.without_url());
            if text.contains("certificate") { Fault::Untrusted(text) } else { Fault::Unreachable(text) }
        })?;
        match response.status() {
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(Fault::Denied(status.as_u16()))
            }
            status if status.is_redirection() => Err(Fault::Redirected(status.as_u16())),
            _ => Ok(response),
        }
    }
}

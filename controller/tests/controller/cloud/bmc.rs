//! A Redfish service of one or two systems, in this process, which is honest or does what BMCs do when they are not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const USER: &str = "fencer";
pub const PASSWORD: &str = "a word of its own";

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Says Off whatever is.
    SaysOff,
    /// Is off so long after the command.
    OffAfter(Duration),
    /// Refuses the command when the power is off already, as many do.
    RefusesWhenOff,
    Hangs,
    /// Answers with this status.
    Status(u16),
    HalfJson,
    NotJson,
    NoPowerState,
    /// Sends to another place, which says Off.
    Redirects,
    /// Names a system on another host.
    LeadsElsewhere,
    Endless,
}

pub struct Machine {
    pub uuid: Uuid,
    /// When it goes off, or went.
    pub off_at: Option<Instant>,
    pub manner: Manner,
    /// How often it was told to power off.
    pub commands: usize,
    /// A machine beside it, which is never the one that is meant.
    pub neighbour: Option<Uuid>,
}

/// The service; a clone is another handle.
#[derive(Clone)]
pub struct FakeBmc(Arc<Mutex<Machine>>);

impl FakeBmc {
    pub fn new(uuid: Uuid, manner: Manner) -> Self {
        Self(Arc::new(Mutex::new(Machine { uuid, off_at: None, manner, commands: 0, neighbour: None })))
    }

    /// Serves by plain HTTP. Answers the URL.
    pub async fn serve(&self) -> String {
        let listen = "127.0.0.1:0".parse().unwrap();
        let stop = CancellationToken::new();
        let address = tamdao_controller::serve::plain(listen, self.router(), stop).await.unwrap();
        format!("http://{address}")
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/redfish/v1/", get(root))
            .route("/redfish/v1/Systems", get(systems))
            .route("/redfish/v1/Systems/{id}", get(system))
            .route("/redfish/v1/Systems/{id}/Actions/ComputerSystem.Reset", post(reset))
            .with_state(self.clone())
    }

    pub fn with<T>(&self, of: impl FnOnce(&mut Machine) -> T) -> T {
        of(&mut self.0.lock().unwrap())
    }

    pub fn is_off(&self) -> bool {
        self.with(|machine| machine.off_at.is_some_and(|at| at <= Instant::now()))
    }
}

/// What every path does before it answers anything of its own.
async fn misbehave(bmc: &FakeBmc, headers: &HeaderMap) -> Option<Response> {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    if headers.get("authorization").is_none_or(|given| given != &format!("Basic {login}")) {
        return Some(StatusCode::UNAUTHORIZED.into_response());
    }
    match bmc.with(|machine| machine.manner) {
        Manner::Hangs => std::future::pending().await,
        Manner::Status(status) => Some(StatusCode::from_u16(status).unwrap().into_response()),
        _ => None,
    }
}

async fn root(State(bmc): State<FakeBmc>, headers: HeaderMap) -> Response {
    if let Some(answer) = misbehave(&bmc, &headers).await {
        return answer;
    }
    axum::Json(json!({"Systems": {"@odata.id": "/redfish/v1/Systems"}})).into_response()
}

async fn systems(State(bmc): State<FakeBmc>, headers: HeaderMap) -> Response {
    if let Some(answer) = misbehave(&bmc, &headers).await {
        return answer;
    }
    let neighbour = bmc.with(|machine| machine.neighbour).map(|_| "/redfish/v1/Systems/2");
    let own = match bmc.with(|machine| machine.manner) {
        Manner::LeadsElsewhere => "https://192.0.2.1/redfish/v1/Systems/1",
        _ => "/redfish/v1/Systems/1",
    };
    let members: Vec<Value> = neighbour.into_iter().chain([own]).map(|id| json!({"@odata.id": id})).collect();
    axum::Json(json!({"Members": members, "Members@odata.count": members.len()})).into_response()
}

async fn system(State(bmc): State<FakeBmc>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if let Some(answer) = misbehave(&bmc, &headers).await {
        return answer;
    }
    let off = bmc.is_off();
    let (manner, uuid) = bmc
        .with(|machine| (machine.manner, if id == "2" { machine.neighbour.unwrap() } else { machine.uuid }));
    let says_off = match manner {
        Manner::SaysOff => true,
        _ => off && id != "2",
    };
    let target = format!("/redfish/v1/Systems/{id}/Actions/ComputerSystem.Reset");
    let mut document = json!({
        "@odata.id": format!("/redfish/v1/Systems/{id}"), "UUID": uuid.to_string().to_uppercase(),
        "PowerState": if says_off { "Off" } else { "On" },
        "Actions": {"#ComputerSystem.Reset": {"target": target,
            "ResetType@Redfish.AllowableValues": ["On", "ForceOff", "GracefulShutdown"]}},
    });
    match manner {
        Manner::HalfJson => {
            let text = document.to_string();
            text[..text.len() / 2].to_owned().into_response()
        }
        Manner::NotJson => "<html>Off</html>".into_response(),
        Manner::NoPowerState => {
            document.as_object_mut().unwrap().remove("PowerState");
            axum::Json(document).into_response()
        }
        Manner::Redirects => {
            (StatusCode::TEMPORARY_REDIRECT, [("location", "/redfish/v1/Systems/off")]).into_response()
        }
        Manner::Endless => {
            let spaces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 65_536]));
            Body::from_stream(spaces).into_response()
        }
        _ => axum::Json(document).into_response(),
    }
}

async fn reset(
    State(bmc): State<FakeBmc>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(answer) = misbehave(&bmc, &headers).await {
        return answer;
    }
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (body["ResetType"].as_str(), id.as_str()),
        (Some("ForceOff"), "1"),
        "nothing else is ever asked for"
    );
    let off = bmc.is_off();
    let refused = bmc.with(|machine| {
        machine.commands += 1;
        let now = Instant::now();
        match machine.manner {
            Manner::SaysOff => {}
            Manner::OffAfter(after) => machine.off_at = machine.off_at.or(Some(now + after)),
            _ => machine.off_at = machine.off_at.or(Some(now)),
        }
        machine.manner == Manner::RefusesWhenOff && off
    });
    if refused { StatusCode::CONFLICT.into_response() } else { StatusCode::NO_CONTENT.into_response() }
}

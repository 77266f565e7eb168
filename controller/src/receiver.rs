//! What the cloud is told of the receiver of the audit log, as events about the controller whose records he lacks.
//!
//! Its invariant: a controller speaks of itself only; the leader writes it. Deliberately absent: who finds it out
//! (`reconcile/courier.rs`).

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use tamdao_model::ControllerId;
use tamdao_model::event::Severity;

use crate::admission::Writer;
use crate::answer;
use crate::auth::{self, Principal};
use crate::decide;
use crate::forward::Forward;
use crate::refusal::Refusal;
use crate::shared::Shared;

const PATH: &str = "/internal/audit/receiver";

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// It has taken nothing for so long; so many entries of the journal wait.
    Silent { seconds: u64, left: u64, trouble: String },
    /// It takes records again.
    Back { receiver: String },
    /// These entries went for their size before it had taken them.
    Lost { from: u64, to: u64 },
}

impl News {
    fn told(&self) -> (Severity, &'static str, String) {
        match self {
            Self::Silent { seconds, left, trouble } => (
                Severity::Warning,
                "AuditReceiverSilent",
                format!("{trouble}; for {seconds} s, {left} entries of this controller's journal wait"),
            ),
            Self::Back { receiver } => {
                (Severity::Info, "AuditReceiverBack", format!("{receiver} takes audit records again"))
            }
            Self::Lost { from, to } => (
                Severity::Warning,
                "AuditRecordsLost",
                format!(
                    "entries {from} to {to} of this controller's journal went by its size before the receiver had \
                     them; the others' journals have the changes"
                ),
            ),
        }
    }
}

/// Tells it, to the leader where another one leads.
///
/// # Errors
/// When nobody leads or does not answer.
pub async fn tell(shared: &Shared, forward: &Forward, news: &News) -> Result<(), Refusal> {
    if shared.leads() {
        return write(&shared.writer, shared.me.id, news.clone()).await;
    }
    let request = Request::builder().method(Method::POST).uri(PATH).header(CONTENT_TYPE, "application/json");
    let (parts, ()) = request.body(()).expect("a constant path").into_parts();
    let body = serde_json::to_vec(news).expect("plain data");
    let response = forward.ask(parts, body.into()).await?;
    match response.status().is_success() {
        true => Ok(()),
        false => Err(Refusal::unavailable(format!("the leader answered {}", response.status()))),
    }
}

/// The route by which followers tell their leader; who may call it is decided by the gate in front.
pub fn routes(writer: Writer) -> Router {
    Router::new().route(PATH, post(heard)).with_state(writer)
}

async fn heard(State(writer): State<Writer>, headers: HeaderMap, Json(news): Json<News>) -> Response {
    let written = match auth::of_headers(&headers) {
        Principal::Controller(controller) => write(&writer, controller, news).await,
        other => Err(Refusal::internal(format!("{other} is no controller"))),
    };
    match written {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => answer::refuse(&headers, refusal),
    }
}

async fn write(writer: &Writer, about: ControllerId, news: News) -> Result<(), Refusal> {
    let written = writer.submit(move |draft, moment| {
        let record = draft.view().controllers.get(about).map(|row| (*row.value).clone());
        if let Some(record) = record {
            let (severity, reason, message) = news.told();
            decide::event(draft, moment, &record, severity, reason, message, &record.meta.name);
        }
        Ok(())
    });
    written.await.map(drop)
}

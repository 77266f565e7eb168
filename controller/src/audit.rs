//! The audit log: what is written of each request, on every face and for every method.
//!
//! Its invariant: while a request is carried out, a slip with who asks, from where and by which method is at hand in its
//! task, and each change that the request hands to the one writer gets its record in the same transaction, so that what
//! was acknowledged has one. What is refused, and what is allowed and changes no record (a console), goes to this
//! controller's trail alone; so does all that a local admin only reads. Only names are taken from requests, never values. Deliberately absent: the loops' own
//! changes, which have events, and how records are kept (`trail`).

use std::sync::{Arc, Mutex};

use axum::response::Response;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use tamdao_model::audit::{Audit, Change, OK};
use tamdao_model::{ControllerId, TimeMs};
use tamdao_store::typed::Draft;
use tamdao_store::view::{Record, View};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::access;
use crate::admission::Moment;
use crate::answer;
use crate::auth::Principal;
use crate::forward::NOT_LEADER;
use crate::methods::Method;

/// Of what a request names no more is kept; our own names are shorter.
const NAME_CHARS: usize = 200;

tokio::task_local! {
    static SLIP: Arc<Slip>;
}

/// What is known of a request while it is carried out.
#[derive(Debug)]
pub struct Slip {
    pub principal: Principal,
    /// Address and port.
    pub peer: String,
    pub via: Option<ControllerId>,
    pub controller: ControllerId,
    pub subject: Subject,
    named: Mutex<Named>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// "VmService/CreateVm", or verb and sort of path of what is no method.
    pub method: String,
    /// It may change something, or opens a console.
    pub changes: bool,
    /// People and programs ask it: every refusal counts. Of what agents and controllers ask without end, only those
    /// count that say who may not come in.
    pub public: bool,
}

/// What the request's own words say.
#[derive(Debug, Default, Clone)]
struct Named {
    agency: String,
    name: String,
    request_id: Option<Uuid>,
    validate_only: bool,
    /// It has a record in a transaction.
    written: bool,
}

impl Subject {
    /// Of a method of ours, or of a path that is none.
    pub fn of(method: Option<&Method>, verb: &http::Method, path: &str) -> Self {
        match method {
            Some(method) => {
                let renews = method.path.ends_with("/Renew");
                let enrols = method.service == "tamdao.agent.v1.EnrollService" && !renews;
                let public = enrols || method.service.starts_with("tamdao.v1.");
                let name = method.path.rsplit('.').next().unwrap_or_default();
                Self { method: name.to_owned(), changes: method.changes, public }
            }
            None => {
                let public = path.starts_with("/v1/") || path.starts_with("/tamdao.v1.");
                let changes = verb != http::Method::GET && verb != http::Method::HEAD;
                Self { method: format!("{verb} {}", form(path)), changes, public }
            }
        }
    }
}

impl Slip {
    pub fn new(
        principal: Principal,
        peer: String,
        via: Option<ControllerId>,
        controller: ControllerId,
        subject: Subject,
    ) -> Self {
        Self { principal, peer, via, controller, subject, named: Mutex::default() }
    }

    /// Carries a request out with this slip at hand.
    pub async fn carry<F: Future>(self: Arc<Self>, request: F) -> F::Output {
        SLIP.scope(self, request).await
    }

    fn named(&self) -> std::sync::MutexGuard<'_, Named> {
        self.named.lock().expect("no holder of the lock panics")
    }

    fn record(&self, view: &View, id: Uuid, now: TimeMs) -> Audit {
        let named = self.named().clone();
        let held = access::held(view, &self.principal, now);
        Audit {
            id: id.into(),
            time: now,
            principal: self.principal.to_string(),
            role: held.map(|grant| grant.role),
            role_agency: held.and_then(|grant| grant.at),
            peer: self.peer.clone(),
            via: self.via,
            controller: self.controller,
            method: self.subject.method.clone(),
            agency: named.agency,
            name: named.name,
            request_id: named.request_id,
            code: OK.into(),
            reason: String::new(),
            changes: Vec::new(),
            count: 1,
        }
    }

    /// Drafts the record of what a decision has just drafted; `before` is how the draft was before it.
    pub fn draft(&self, before: &Draft, draft: &mut Draft, moment: &mut Moment) {
        let changes: Vec<Change> = draft.since(before).into_iter().filter_map(change).collect();
        if !changes.is_empty() {
            let record = self.record(draft.view(), moment.id(), moment.now);
            draft.put(Audit { changes, ..record });
            self.named().written = true;
        }
    }

    /// The record of an answer that has none in a transaction; none where nothing is to be told.
    pub fn answered(
        &self,
        view: &View,
        now: TimeMs,
        headers: &HeaderMap,
        response: &Response,
    ) -> Option<Audit> {
        // Whoever answered in our place has told it, and who took us for the leader asks again.
        if response.extensions().get::<AnsweredElsewhere>().is_some()
            || response.headers().contains_key(NOT_LEADER)
        {
            return None;
        }
        let (code, reason) = outcome(headers, response);
        let told = match code {
            Code::Ok => {
                let named = self.named();
                // Who came in by breaking the glass is seen at whatever he looks, too.
                let local = matches!(self.principal, Principal::Local { .. });
                let done = self.subject.changes && !named.validate_only;
                self.subject.public && !named.written && (done || local)
            }
            Code::Unauthenticated | Code::PermissionDenied => true,
            _ => self.subject.public,
        };
        told.then(|| {
            let record = self.record(view, tamdao_seams::fresh_id(), now);
            Audit { code: format!("{code:?}"), reason, ..record }
        })
    }
}

/// Put into a response that another controller gave.
#[derive(Debug, Clone, Copy)]
pub struct AnsweredElsewhere;

/// Put into a response by whoever turned a refusal into one.
#[derive(Debug, Clone)]
pub struct Refused {
    pub code: Code,
    pub reason: String,
}

impl Refused {
    pub fn of(status: &Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason);
        Self { code: status.code(), reason: reason.unwrap_or_default() }
    }
}

/// The slip of the request that this task carries out; none in loops.
pub fn slip() -> Option<Arc<Slip>> {
    SLIP.try_with(Arc::clone).ok()
}

/// Notes what the request names.
pub fn names(agency: &str, name: &str) {
    // Outside a request nobody keeps a record of it.
    let _ = SLIP.try_with(|slip| {
        let mut named = slip.named();
        (named.agency, named.name) = (short(agency), short(name));
    });
}

/// Notes what each change carries.
pub fn asked(request_id: Option<Uuid>, validate_only: bool) {
    // As above.
    let _ = SLIP.try_with(|slip| {
        let mut named = slip.named();
        (named.request_id, named.validate_only) = (request_id, validate_only);
    });
}

/// The sort of a path that is no method's. The path itself is not told: nobody knows what was written there.
fn form(path: &str) -> &'static str {
    match path {
        _ if path.starts_with("/v1/") && path.ends_with("/content") => "/v1/.../content",
        _ if path.starts_with("/v1/") => "/v1/...",
        _ if path.starts_with("/images/") => "/images/...",
        _ if path.starts_with("/internal/") => "/internal/...",
        _ if path.starts_with("/tamdao.") => "/tamdao...",
        _ => "/...",
    }
}

fn short(text: &str) -> String {
    text.chars().take(NAME_CHARS).collect()
}

/// What became of one record; none for those that only follow from others.
fn change((before, after): (Option<Record>, Option<Record>)) -> Option<Change> {
    let record = after.as_ref().or(before.as_ref())?;
    let name = record.scoped_name();
    let told = match record {
        Record::Cluster(_) | Record::JoinToken(_) => true,
        _ => name.is_some(),
    };
    let (before, after) = (digest(before.as_ref()), digest(after.as_ref()));
    (told && before != after).then(|| Change {
        kind: record.kind().into(),
        agency: match record {
            // An agency itself is its own.
            Record::Agency(agency) => Some(agency.id()),
            _ => name.and_then(|(scope, _)| scope.agency()),
        },
        name: name.map(|(_, name)| name.to_string()).unwrap_or_default(),
        id: record.key(),
        before,
        after,
    })
}

fn digest(record: Option<&Record>) -> String {
    record.map(|record| hex::encode(Sha256::digest(record.json()))).unwrap_or_default()
}

/// How a response ended, on either face. `headers` are the request's.
fn outcome(headers: &HeaderMap, response: &Response) -> (Code, String) {
    if let Some(refused) = response.extensions().get::<Refused>() {
        return (refused.code, refused.reason.clone());
    }
    if answer::is_grpc(headers) {
        // Without the header the status follows in the trailers, and is OK unless a stream breaks.
        return match Status::from_header_map(response.headers()) {
            Some(status) => {
                let refused = Refused::of(&status);
                (refused.code, refused.reason)
            }
            None => (Code::Ok, String::new()),
        };
    }
    match response.status() {
        status if status.is_client_error() || status.is_server_error() => {
            (Code::Unknown, format!("Http{}", status.as_u16()))
        }
        _ => (Code::Ok, String::new()),
    }
}

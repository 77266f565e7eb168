//! AuditService: this controller's journal as the audit log, and whether it is what was written.
//!
//! Its invariant: what was answered here before a stream was asked for is in it. A reader is a cursor in the journal's
//! files and holds nobody up.

use std::time::Duration;

use tamdao_model::AgencyId;
use tamdao_model::audit::Audit;
use tamdao_model::convert::audit as shown;
use tamdao_model::{ControllerId, TimeMs};
use tamdao_proto::v1;
use tamdao_proto::v1::audit_service_server::AuditService;
use tamdao_store::journal::{JournalError, Reader, Told, verify};
use tamdao_store::view::View;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::watch::AHEAD;
use super::{Api, Events, agency_of};
use crate::access::{self, Asking, Caller};
use crate::refusal::Refusal;
use crate::trail::Export;
use crate::trail::read::{read_on, unreadable};

/// How long the journal may take to have what was answered before.
const PATIENCE: Duration = Duration::from_secs(10);
/// An idle reader looks this often whether he still may, and gets a bookmark.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Entries that are read at once.
const AT_ONCE: usize = 1_000;

/// Which records are asked for.
struct Filter {
    agency: Option<AgencyId>,
    principal: String,
    method: String,
    since: TimeMs,
    refused_only: bool,
}

impl Filter {
    fn read(view: &View, request: &v1::WatchAuditRequest) -> Result<Self, Refusal> {
        let agency = match request.agency.as_str() {
            "" => None,
            name => Some(agency_of(view, name)?),
        };
        let since = request.since.as_ref().map_or(0, |since| {
            u64::try_from(since.seconds * 1_000 + i64::from(since.nanos) / 1_000_000).unwrap_or(0)
        });
        Ok(Self {
            agency,
            principal: request.principal.clone(),
            method: request.method.clone(),
            since: TimeMs(since),
            refused_only: request.refused_only,
        })
    }

    fn takes(&self, audit: &Audit, caller: &Caller, view: &View) -> bool {
        let lines = owners(audit, view);
        let who = [audit.principal.as_str()].into_iter().chain(audit.principal.split(':'));
        let method = audit.method.rsplit('/').next().unwrap_or_default();
        lines.iter().all(|line| caller.sees(line))
            && self.agency.is_none_or(|agency| lines.iter().any(|line| line.contains(&agency)))
            && (self.principal.is_empty() || who.into_iter().any(|who| who == self.principal))
            && (self.method.is_empty() || self.method == audit.method || self.method == method)
            && audit.time >= self.since
            && (!self.refused_only || audit.is_refused())
    }
}

/// Whose business a record is: of all whose records were changed; where nothing was, of those whom the caller belongs
/// to. Each is an agency with those above it, and empty for the cloud.
fn owners(audit: &Audit, view: &View) -> Vec<Vec<AgencyId>> {
    let line = |agency: Option<AgencyId>| agency.map(|id| access::owners(view, id)).unwrap_or_default();
    match audit.changes.is_empty() {
        true => vec![line(audit.role_agency)],
        false => audit.changes.iter().map(|change| line(change.agency)).collect(),
    }
}

#[tonic::async_trait]
impl AuditService for Api {
    type WatchAuditStream = Events<v1::WatchAuditResponse>;

    async fn watch_audit(
        &self,
        request: Request<v1::WatchAuditRequest>,
    ) -> Result<Response<Self::WatchAuditStream>, Status> {
        let asking = Asking::of(&request);
        let request = request.into_inner();
        let noted = self.shared.trail.noted();
        let (view, _) = self.admitted(&asking).await?;
        let filter = Filter::read(&view, &request)?;
        let after = read_cursor(self.shared.me.id, &request.cursor)?;
        let mut reached = self.shared.trail.reached();
        let caught_up = reached.wait_for(|at| at.through >= view.revision && at.noted >= noted);
        if !matches!(timeout(PATIENCE, caught_up).await, Ok(Ok(_))) {
            return Err(Refusal::unavailable("this controller's journal is behind").into());
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (api, until_now) = (self.clone(), request.until_now);
        tokio::spawn(async move {
            if let Err(refusal) = api.follow_audit(&sender, after, &filter, &asking, until_now).await {
                // The reader may be gone; then nobody wants to know.
                let _ = sender.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        self.admitted(&Asking::of(&request)).await?;
        let trail = self.shared.trail.clone();
        let end = trail.reached().borrow().end.clone();
        let read = tokio::task::spawn_blocking(move || verify(&trail.directory, end.as_ref()));
        let controller = self.shared.me.name.to_string();
        let answer = match read.await.map_err(|error| Refusal::internal(error.to_string()))? {
            Ok(found) => v1::VerifyAuditResponse {
                controller,
                entries: found.entries,
                files: u32::try_from(found.files).unwrap_or(u32::MAX),
                first: found.first,
                last: found.last,
                hash: found.hash,
                ..Default::default()
            },
            Err(damage @ JournalError::Damaged { .. }) => {
                v1::VerifyAuditResponse { controller, damage: damage.to_string(), ..Default::default() }
            }
            Err(error) => return Err(unreadable(&error).into()),
        };
        let export = self.shared.trail.export();
        Ok(Response::new(match export {
            None => answer,
            Some(Export { receiver, delivered, trouble }) => {
                v1::VerifyAuditResponse { receiver, delivered, trouble, ..answer }
            }
        }))
    }
}

impl Api {
    async fn follow_audit(
        &self,
        sender: &mpsc::Sender<Result<v1::WatchAuditResponse, Status>>,
        after: u64,
        filter: &Filter,
        asking: &Asking,
        until_now: bool,
    ) -> Result<(), Refusal> {
        let controller = self.shared.me.id;
        let mut reader = Reader::new(&self.shared.trail.directory, after, filter.since);
        let mut reached = self.shared.trail.reached();
        let mut at = after;
        loop {
            reached.borrow_and_update();
            let view = self.shared.cache.view();
            let caller = asking.judge(&view, self.shared.clock.now())?;
            let (back, page) = read_on(reader, AT_ONCE).await?;
            reader = back;
            for told in page.audits {
                at = told.sequence;
                let Ok(audit) = serde_json::from_str::<Audit>(&told.record) else { continue };
                if !filter.takes(&audit, &caller, &view) {
                    continue;
                }
                let message = message(controller, &audit, told, &view);
                if sender.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
            }
            if page.entries == AT_ONCE {
                continue;
            }
            let bookmark = v1::WatchAuditResponse {
                event: v1::WatchEvent::Bookmark.into(),
                cursor: cursor(controller, at),
                ..Default::default()
            };
            if sender.send(Ok(bookmark)).await.is_err() || until_now {
                return Ok(());
            }
            // Whether it came further or the time is over, it is looked at.
            let _ = timeout(LOOK_EVERY, reached.changed()).await;
        }
    }
}

/// What is told of a record in a controller's journal.
pub(crate) fn message(
    controller: ControllerId,
    audit: &Audit,
    told: Told,
    view: &View,
) -> v1::WatchAuditResponse {
    // What is in no commit stands behind one in the journal, and is no part of it.
    let revision = if audit.changes.is_empty() { 0 } else { told.revision.0 };
    v1::WatchAuditResponse {
        event: v1::WatchEvent::Put.into(),
        record: Some(shown::show(audit, revision, view)),
        cursor: cursor(controller, told.sequence),
        sequence: told.sequence,
        hash: told.hash,
    }
}

/// The cursor behind an entry of a controller's journal.
fn cursor(controller: ControllerId, sequence: u64) -> String {
    format!("{}.{sequence}", controller.0.simple())
}

fn read_cursor(controller: ControllerId, text: &str) -> Result<u64, Refusal> {
    if text.is_empty() {
        return Ok(0);
    }
    let foreign =
        || Refusal::field("cursor", "is not one of this controller's").hint("each has a journal of its own");
    let (of, sequence) = text.split_once('.').ok_or_else(foreign)?;
    match sequence.parse() {
        Ok(sequence) if of == controller.0.simple().to_string() => Ok(sequence),
        _ => Err(foreign()),
    }
}

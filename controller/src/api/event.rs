//! EventService: the story of the resources, the newest first, or as it goes on.

use tamdao_model::convert::event as shown;
use tamdao_model::event::Event;
use tamdao_model::{AgencyId, Kind, Stored};
use tamdao_proto::v1;
use tamdao_proto::v1::event_service_server::EventService;
use tamdao_store::cache::Commit;
use tamdao_store::kv::Revision;
use tamdao_store::view::{Record, View};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::page::{Token, cursor, page_size, read_cursor};
use super::watch::AHEAD;
use super::{Api, Events, agency_of};
use crate::access::{self, Asking, Caller};
use crate::refusal::Refusal;

/// Which events are asked for.
#[derive(Debug, Clone)]
struct Filter {
    agency: Option<AgencyId>,
    kind: Option<Kind>,
    /// A name or an id; empty means all.
    name: String,
}

impl Filter {
    fn read(view: &View, agency: &str, kind: &str, name: &str) -> Result<Self, Refusal> {
        let agency = if agency.is_empty() { None } else { Some(agency_of(view, agency)?) };
        let kind = match kind {
            "" if !name.is_empty() => return Err(Refusal::field("kind", "must be given with name")),
            "" => None,
            word => {
                let known = Kind::ALL.into_iter().find(|kind| kind.word() == word);
                let words: Vec<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
                let message = format!("is {word:?}; one of {} is allowed", words.join(", "));
                Some(known.ok_or_else(|| Refusal::field("kind", message))?)
            }
        };
        Ok(Self { agency, kind, name: name.to_owned() })
    }

    fn takes(&self, event: &Event, caller: &Caller, view: &View) -> bool {
        let owner = match event.kind {
            // That of an agency itself is its own.
            Kind::Agency => Some(AgencyId(event.subject)),
            _ => event.agency,
        };
        let seen = match owner {
            Some(agency) => caller.sees(&access::owners(view, agency)),
            None => caller.sees_hosts(),
        };
        seen && self.agency.is_none_or(|agency| event.agency == Some(agency))
            && self.kind.is_none_or(|kind| event.kind == kind)
            && (self.name.is_empty()
                || event.name.as_str() == self.name
                || Uuid::parse_str(&self.name).is_ok_and(|id| id == event.subject))
    }
}

#[tonic::async_trait]
impl EventService for Api {
    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let asking = Asking::of(&request);
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (view, caller) = self.admitted(&asking).await?;
        let cluster = self.cluster_id();
        let filter = Filter::read(&view, &request.agency, &request.kind, &request.name)?;
        let token = Token::decode(cluster, &request.page_token)?;
        let first = token.as_ref().map_or(view.revision.0, |token| token.revision);
        let before = token.map(|token| token.last);
        let rows = view.events.iter().rev();
        let older = rows.filter(|row| before.as_ref().is_none_or(|before| row.key() < *before));
        let mut found: Vec<_> =
            older.filter(|row| filter.takes(row, &caller, &view)).take(size + 1).collect();
        let more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| more).map(|row| row.key());
        Ok(Response::new(v1::ListEventsResponse {
            events: found.iter().map(|row| shown::show(row, row.revision.0, &*view)).collect(),
            next_page_token: last
                .map(|key| Token::after_key(cluster, first, &key).encode())
                .unwrap_or_default(),
            cursor: cursor(cluster, Revision(first)),
        }))
    }

    type WatchEventsStream = Events<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let asking = Asking::of(&request);
        let request = request.into_inner();
        let (view, _) = self.admitted(&asking).await?;
        let cluster = self.cluster_id();
        let filter = Filter::read(&view, &request.agency, &request.kind, &request.name)?;
        let from = read_cursor(cluster, &request.cursor)?.unwrap_or(view.revision);
        self.shared.cache.after(from).map_err(Refusal::from)?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let api = self.clone();
        tokio::spawn(async move {
            if let Err(refusal) = api.follow_events(&sender, from, &filter, &asking).await {
                // The reader may be gone; then nobody wants to know.
                let _ = sender.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Api {
    async fn follow_events(
        &self,
        sender: &mpsc::Sender<Result<v1::WatchEventsResponse, Status>>,
        from: Revision,
        filter: &Filter,
        asking: &Asking,
    ) -> Result<(), Refusal> {
        let message = |watch_event: v1::WatchEvent, event, cursor| v1::WatchEventsResponse {
            watch_event: watch_event as i32,
            event,
            cursor,
        };
        let bookmark = message(v1::WatchEvent::Bookmark, None, cursor(self.cluster_id(), from));
        if sender.send(Ok(bookmark)).await.is_err() {
            return Ok(());
        }
        let new_events = |commit: &Commit, caller: &Caller, newest: &View| {
            let events = commit.deltas.iter().filter_map(|delta| match &delta.after {
                Some(Record::Event(event)) if filter.takes(event, caller, newest) => Some(event),
                _ => None,
            });
            events.map(|event| (v1::WatchEvent::Put, shown::show(event, commit.revision.0, newest))).collect()
        };
        self.tell(sender, asking, from, message, new_events).await
    }
}

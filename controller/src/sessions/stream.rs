//! One session's stream: hello, its commit, welcome, the whole assignment, then changes out and reports in.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, TryFutureExt};
use prost::Message as _;
use sha2::{Digest, Sha256};
use tamdao_model::NodeId;
use tamdao_model::convert::agent::{read_inventory, read_pool, read_reading, read_vm, read_volume};
use tamdao_model::convert::metadata::timestamp;
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::agent_service_server::AgentService;
use tamdao_proto::agent::v1::session_request::Message as FromAgent;
use tamdao_proto::agent::v1::session_response::Message as ToAgent;
use tamdao_store::typed::Draft;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::tunnel::{FromNode, NodeEnd, ToNode};
use super::{Deaf, Dirty, Heard, LeaseTold, Session, TO_AGENT, expand, read_id};
use crate::admission::Moment;
use crate::api::open_user_data;
use crate::auth::{self, Principal};
use crate::decide::node::{self as decide, CLONED, Opening, SECOND};
use crate::decide::recovery;
use crate::decide::report::{self, CHUNK, Part};
use crate::decide::went_back;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// How long an agent may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// Reports that wait to be committed; an agent that sends faster loses its session and reports anew.
const REPORTS: usize = 1_024;
/// Reports folded into one decision at most.
const FOLD: usize = 64;

/// What controllers offer to agents.
#[derive(Clone)]
pub struct AgentApi {
    shared: Arc<Shared>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl AgentApi {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// The node that speaks, by its certificate.
fn node_of<T>(request: &Request<T>) -> Result<NodeId, Refusal> {
    match auth::principal(request.metadata()) {
        Principal::Node(node) => Ok(node),
        other => Err(Refusal::new(
            tonic::Code::PermissionDenied,
            "NotANode",
            format!("{other} is not a node of this cluster"),
        )),
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    type SessionStream = Responses<agent::SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<agent::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = node_of(&request)?;
        let (to_agent, responses) = mpsc::channel(TO_AGENT);
        let shared = self.shared.clone();
        tokio::spawn(hold(shared, node, request.into_inner(), to_agent));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    type TunnelStream = Responses<agent::TunnelResponse>;

    async fn tunnel(
        &self,
        request: Request<Streaming<agent::TunnelRequest>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let node = node_of(&request)?;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|message| message.part);
        let Some(agent::tunnel_request::Part::TunnelId(id)) = first else {
            return Err(Refusal::field("tunnel_id", "must come first").into());
        };
        let id = read_id("tunnel_id", &id)?;
        let end = self.shared.sessions.tunnels.claim(node, id);
        let end =
            end.ok_or_else(|| Refusal::precondition("NoTunnel", "nobody waits for this tunnel any more"))?;
        let NodeEnd { from_client, to_client } = end;
        tokio::spawn(async move {
            while let Ok(Some(message)) = parts.message().await {
                let part = match message.part {
                    Some(agent::tunnel_request::Part::Data(data)) => FromNode::Data(data),
                    Some(agent::tunnel_request::Part::Error(error)) => FromNode::Failed(error),
                    Some(agent::tunnel_request::Part::TunnelId(_)) | None => break,
                };
                if to_client.send(part).await.is_err() {
                    break;
                }
            }
        });
        let responses = ReceiverStream::new(from_client).map(|part| {
            let part = match part {
                ToNode::Data(data) => agent::tunnel_response::Part::Data(data),
                ToNode::Resize { rows, columns } => {
                    agent::tunnel_response::Part::Resize(agent::TunnelResize { rows, columns })
                }
            };
            Ok(agent::TunnelResponse { part: Some(part) })
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// Why a session does not begin or go on.
enum Ending {
    Redirect(agent::Redirect),
    Refused(Refusal),
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type ToAgents = mpsc::Sender<Result<agent::SessionResponse, Status>>;

/// Holds one session from its hello to its end, and says why where it does not begin or go on.
pub async fn hold(
    shared: Arc<Shared>,
    node: NodeId,
    requests: impl Stream<Item = Result<agent::SessionRequest, Status>> + Send + Unpin,
    to_agent: ToAgents,
) {
    let Err(ending) = serve(shared.clone(), node, requests, to_agent.clone()).await else { return };
    let now = shared.clock.instant();
    let message = match ending {
        Ending::Redirect(redirect) => ToAgent::Redirect(redirect),
        Ending::Refused(refusal) => {
            tracing::warn!(%node, error = %refusal, "session refused");
            if matches!(refusal.reason, CLONED | SECOND)
                && shared.sessions.is_news_of_clone(node, refusal.reason, now)
            {
                let (reason, message) = (refusal.reason, refusal.message.clone());
                let decided = shared.writer.submit(move |draft, moment| {
                    decide::tell_of_clone(draft, moment, node, reason, &message);
                    Ok(())
                });
                // It will speak again, and be told of then.
                if let Err(error) = decided.await {
                    tracing::warn!(%node, %error, "refused clone not recorded");
                }
            }
            ToAgent::Refusal(agent::Refusal { reason: refusal.reason.into(), message: refusal.message })
        }
    };
    // The agent may be gone already.
    let _ = to_agent.send(Ok(agent::SessionResponse { message: Some(message) })).await;
}

async fn serve(
    shared: Arc<Shared>,
    node: NodeId,
    mut requests: impl Stream<Item = Result<agent::SessionRequest, Status>> + Send + Unpin,
    to_agent: ToAgents,
) -> Result<(), Ending> {
    let first = tokio::select! {
        biased;
        first = requests.next() => first,
        () = shared.clock.sleep(HELLO) => None,
    };
    let Some(Ok(agent::SessionRequest { message: Some(FromAgent::Hello(hello)) })) = first else {
        return Err(Refusal::field("hello", "must come first, within 10 s").into());
    };
    let arriving = shared.sessions.arrive(node);
    let Some(session) = open(&shared, node, &hello, to_agent).await? else {
        return Err(Ending::Redirect(redirect(&shared)));
    };
    tracing::info!(%node, session = %session.id, epoch = %session.epoch, "session opened");
    shared.sessions.open(session.clone());
    drop(arriving);
    // Records that went back since end the sessions that are open: this one may have been too late for that.
    if super::went_back::is_void(&shared.cache.view(), &session) {
        shared.sessions.close(&session);
    }
    let (reports, waiting) = mpsc::channel(REPORTS);
    let listening = async {
        let goodbye = listen(&shared, &session, &mut requests, &reports).await;
        // The teller ends by it. What was reported is still committed; then the session is over.
        shared.sessions.close(&session);
        drop(reports);
        goodbye
    };
    let reporting = take_reports(shared.clone(), session.clone(), waiting);
    let telling = tell(shared.clone(), session.clone());
    let (goodbye, (), ()) = futures::join!(listening, reporting, telling);
    tracing::info!(%node, session = %session.id, ?goodbye, "session ended");
    if goodbye.is_some_and(|goodbye| goodbye.nothing_runs) {
        let id = session.id;
        let decided = shared.writer.submit(move |draft, moment| {
            decide::take_goodbye(draft, moment, node, id);
            Ok(())
        });
        // Without it the node's silence tells the same, later.
        if let Err(error) = decided.await {
            tracing::warn!(%node, %error, "goodbye not recorded");
        }
    }
    Ok(())
}

/// Commits the hello. None when this controller does not lead.
async fn open(
    shared: &Arc<Shared>,
    node: NodeId,
    hello: &agent::Hello,
    to_agent: ToAgents,
) -> Result<Option<Arc<Session>>, Refusal> {
    let Some(office) = shared.office.borrow().clone().filter(|office| !office.is_lost()) else {
        return Ok(None);
    };
    let opening = Opening {
        session: read_id("session_id", &hello.session_id)?,
        boot_id: hello.boot_id.chars().take(64).collect(),
        address: hello.address.chars().take(256).collect(),
        host_uuid: read_id("host_uuid", &hello.host_uuid)?,
        moves_port: u16::try_from(hello.moves_port).unwrap_or_default(),
        carries_files: hello.carries_files,
    };
    let now = shared.kv.barrier().await?;
    // Where a newer leader exists nothing is decided here: its office guards each commit.
    match super::went_back::judge(shared, node, hello, office.epoch, now).await {
        Err(refusal) if refusal.code == tonic::Code::Unavailable => return Ok(None),
        judged => judged?,
    }
    // One with another UUID is refused for good, and told so, where the hello is committed.
    let known = shared.cache.view().nodes.get(node).map(|row| row.status.host_uuid);
    if let Some(present) = shared.sessions.get(node)
        && present.boot_id != opening.boot_id
        && known == Some(opening.host_uuid)
        && present.silence(shared.clock.instant()) < Duration::from_secs(3)
    {
        let message = "another machine speaks in this node's name right now".to_owned();
        return Err(Refusal::precondition(SECOND, message).hint(
            "a machine was cloned with its certificate: remove the agent's data directory on one of them",
        ));
    }
    let (boot_id, id) = (opening.boot_id.clone(), opening.session);
    let decided =
        shared.writer.submit(move |draft, moment| decide::open_session(draft, moment, node, &opening));
    let revision = match decided.await {
        Ok((_, revision)) => revision,
        Err(refusal) if refusal.code == tonic::Code::Unavailable => return Ok(None),
        Err(refusal) => return Err(refusal),
    };
    let view = shared.cache.at_least(revision).await?;
    let base = went_back::base(&view);
    let heard = Heard { at: shared.clock.instant(), time: shared.clock.now() };
    let session = Session {
        id,
        node,
        boot_id,
        epoch: office.epoch,
        to_agent,
        heard: Mutex::new(heard),
        dirty: Mutex::new(Dirty { all: true, ..Dirty::default() }),
        wake: Notify::new(),
        closed: tokio_util::sync::CancellationToken::new(),
    };
    let welcome = agent::Welcome {
        epoch: base + office.epoch.0,
        revision: base + revision.0,
        controllers: addresses(shared),
        session_timeout_ms: u32::try_from(shared.sessions.timeout.as_millis()).unwrap_or(u32::MAX),
        cluster_id: view.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
    };
    session
        .send(ToAgent::Welcome(welcome))
        .map_err(|Deaf| Refusal::unavailable("the agent does not listen"))?;
    Ok(Some(Arc::new(session)))
}

fn addresses(shared: &Shared) -> Vec<String> {
    shared.cache.view().controllers.iter().map(|controller| controller.address.clone()).collect()
}

fn redirect(shared: &Shared) -> agent::Redirect {
    agent::Redirect { leader: shared.leader_address().unwrap_or_default(), controllers: addresses(shared) }
}

/// Hears the agent until the session ends. Says how it said goodbye, if it did.
async fn listen(
    shared: &Shared,
    session: &Session,
    requests: &mut (impl Stream<Item = Result<agent::SessionRequest, Status>> + Unpin),
    reports: &mpsc::Sender<FromAgent>,
) -> Option<agent::Goodbye> {
    loop {
        let message = tokio::select! {
            biased;
            () = session.closed.cancelled() => return None,
            message = requests.next() => message,
        };
        let Some(Ok(agent::SessionRequest { message: Some(message) })) = message else { return None };
        session.hear(shared.clock.instant(), shared.clock.now());
        match message {
            FromAgent::Heartbeat(heartbeat) => {
                let answer = agent::HeartbeatAnswer {
                    sequence: heartbeat.sequence,
                    sent_time: timestamp(shared.clock.now()),
                    revision: went_back::told(&shared.cache.view()).0,
                };
                if session.send(ToAgent::Heartbeat(answer)).is_err() {
                    return None;
                }
            }
            FromAgent::Goodbye(goodbye) => return Some(goodbye),
            FromAgent::MoveProgress(report) => {
                shared.sessions.progress.take(&shared.cache.view(), session.node, report);
            }
            FromAgent::Hello(_) => return None,
            FromAgent::LeaseReading(told) => match read_reading(session.node, session.id, &told) {
                Ok((pool, node, reading)) => {
                    shared.sessions.keep_reading(LeaseTold { reader: session.node, node, pool, reading });
                }
                Err(error) => tracing::warn!(node = %session.node, %error, "lease reading not understood"),
            },
            report @ (FromAgent::Report(_) | FromAgent::Inventory(_)) => {
                if reports.try_send(report).is_err() {
                    tracing::warn!(node = %session.node, "agent reports faster than can be committed");
                    return None;
                }
            }
        }
    }
}

/// Commits reports in order. All that has come is handed in at once, so that the writer folds it into few
/// transactions.
async fn take_reports(shared: Arc<Shared>, session: Arc<Session>, mut waiting: mpsc::Receiver<FromAgent>) {
    let mut batch = Vec::with_capacity(FOLD);
    while waiting.recv_many(&mut batch, FOLD).await > 0 {
        let mut handed_in = Vec::new();
        let mut taken = Ok(());
        for message in batch.drain(..) {
            taken = taken.and_then(|()| match message {
                FromAgent::Inventory(inventory) => {
                    handed_in.push(take_inventory(&shared, session.node, &inventory));
                    Ok(())
                }
                FromAgent::Report(report) => take_report(&shared, &session, report, &mut handed_in),
                FromAgent::Hello(_)
                | FromAgent::Heartbeat(_)
                | FromAgent::Goodbye(_)
                | FromAgent::MoveProgress(_)
                | FromAgent::LeaseReading(_) => Ok(()),
            });
        }
        let committed = futures::future::try_join_all(handed_in).await;
        if let Err(refusal) = taken.and(committed) {
            // The next session's complete report tells all of it again.
            tracing::warn!(node = %session.node, error = %refusal, "report not taken");
            session.closed.cancel();
            return;
        }
    }
}

/// What became of a part of a report that was handed in.
type Taken = BoxFuture<'static, Result<(), Refusal>>;

fn hand_in(shared: &Shared, mut decide: impl FnMut(&mut Draft, &mut Moment) + Send + 'static) -> Taken {
    let decided = shared.writer.submit(move |draft, moment| {
        decide(draft, moment);
        Ok(())
    });
    decided.map_ok(|_| ()).boxed()
}

fn take_inventory(shared: &Shared, id: NodeId, inventory: &tamdao_proto::v1::Inventory) -> Taken {
    let inventory = read_inventory(inventory);
    hand_in(shared, move |draft, _| decide::take_inventory(draft, id, &inventory))
}

fn take_report(
    shared: &Shared,
    session: &Session,
    report: agent::Report,
    handed_in: &mut Vec<Taken>,
) -> Result<(), Refusal> {
    let (id, session) = (session.node, session.id);
    let bad = |error: tamdao_model::convert::agent::ReportError| Refusal::field("report", error.to_string());
    let vms = report.vms.iter().map(read_vm).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let volumes = report.volumes.iter().map(read_volume).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let pools = report.pools.iter().map(read_pool).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let keeper = report.keeper.map(|keeper| keeper.version).unwrap_or_default();
    let whole = report.complete.then(|| recovery::living(&vms));
    let first = Part { pools, foreign: Some(report.foreign), keeper: Some(keeper), whole, ..Part::default() };
    let mut parts = vec![first];
    // A deleted VM goes when its last volume has, so volumes come after the VMs' own news.
    parts.extend(vms.chunks(CHUNK).map(|vms| Part { vms: vms.to_vec(), ..Part::default() }));
    parts.extend(volumes.chunks(CHUNK).map(|volumes| Part { volumes: volumes.to_vec(), ..Part::default() }));
    for part in parts {
        handed_in.push(hand_in(shared, move |draft, moment| report::take(draft, moment, id, session, &part)));
    }
    if report.complete {
        handed_in.push(hand_in(shared, move |draft, _| recovery::heard_all(draft, id, session)));
    }
    let (health, steady_ms) = (report.health, shared.sessions.steady_ms());
    handed_in.push(hand_in(shared, move |draft, moment| {
        decide::set_health(draft, moment, id, session, &health, steady_ms);
    }));
    Ok(())
}

/// Tells the agent what is new, whenever something is.
async fn tell(shared: Arc<Shared>, session: Arc<Session>) {
    let open = |sealed: &tamdao_model::sealed::Sealed| open_user_data(&shared.key, sealed);
    // A digest of what was sent last, by entry: an entry that is as it was is not sent again.
    let mut sent: BTreeMap<String, [u8; 32]> = BTreeMap::new();
    let mut first = true;
    loop {
        let dirty = session.take_dirty();
        if dirty.all || !dirty.vms.is_empty() || !dirty.volumes.is_empty() {
            let view = shared.cache.view();
            let only = (!dirty.all).then_some((&dirty.vms, &dirty.volumes));
            let mut assignment = expand::assignment(&view, session.node, only, &open);
            assignment.epoch = went_back::base(&view) + session.epoch.0;
            let whole = std::mem::replace(&mut first, false);
            if !whole {
                leave_out_known(&mut assignment, &mut sent);
            } else {
                leave_out_known(&mut assignment.clone(), &mut sent);
            }
            let news = whole
                || !(assignment.vms.is_empty()
                    && assignment.volumes.is_empty()
                    && assignment.pools.is_empty());
            if news && session.send(ToAgent::Assignment(assignment)).is_err() {
                session.closed.cancel();
                return;
            }
        }
        tokio::select! {
            biased;
            () = session.closed.cancelled() => return,
            () = session.wake.notified() => {}
        }
    }
}

/// Leaves out of a later assignment what the agent knows, and remembers the rest.
fn leave_out_known(assignment: &mut agent::Assignment, sent: &mut BTreeMap<String, [u8; 32]>) {
    let mut is_news = |key: String, bytes: Vec<u8>| {
        let digest = Sha256::digest(bytes).into();
        sent.insert(key, digest) != Some(digest)
    };
    assignment.complete = false;
    assignment.vms.retain(|vm| is_news(format!("vm/{}", vm.vm_id), vm.encode_to_vec()));
    assignment
        .volumes
        .retain(|volume| is_news(format!("volume/{}", volume.volume_id), volume.encode_to_vec()));
    assignment.pools.retain(|pool| is_news(format!("pool/{}", pool.pool_id), pool.encode_to_vec()));
}

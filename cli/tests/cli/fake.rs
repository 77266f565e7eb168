//! A fake cloud: it answers with what a test has put into it and writes down what it was asked. Only the methods that the
//! tests need do anything; the others answer UNIMPLEMENTED.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tamdao_proto::v1::*;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// What a watch does when it is opened.
pub enum Script {
    /// Sends these and stays open.
    Stays(Vec<WatchVmsResponse>),
    /// Sends these and breaks with the status.
    Breaks(Vec<WatchVmsResponse>, Status),
}

/// What the cloud holds, is to answer, and was asked.
#[derive(Default)]
pub struct World {
    pub vms: Vec<Vm>,
    pub nodes: Vec<Node>,
    /// What a drain or return comes to.
    pub plan: DrainPlan,
    pub images: Vec<Image>,
    pub controllers: Vec<Controller>,
    pub events: Vec<Event>,
    pub explain: ExplainVmResponse,
    pub log: Vec<&'static [u8]>,
    /// The parts of the cluster's text.
    pub dump: Vec<String>,
    /// The next requests, of this method if one is named, get these instead of an answer.
    pub refusals: VecDeque<(&'static str, Status)>,
    pub watches: VecDeque<Script>,
    /// Each request: its method and itself.
    pub asked: Vec<(&'static str, String)>,
    pub request_ids: Vec<String>,
    pub uploaded: Vec<u8>,
    pub tokens: Vec<String>,
    pub console_sizes: Vec<TerminalSize>,
    /// What stacks have applied, and what a preview says; none where the cloud is too old for either.
    pub applied: Option<Vec<StackResource>>,
    pub preview: Option<PreviewPlanResponse>,
}

/// One controller of the fake cloud.
#[derive(Clone, Default)]
pub struct Fake {
    world: Arc<Mutex<World>>,
}

impl Fake {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Serves in plaintext and returns the endpoint.
    pub async fn serve(&self) -> String {
        self.serve_with(None).await
    }

    /// Serves with TLS if there is an identity, and returns the endpoint.
    pub async fn serve_with(&self, identity: Option<Identity>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if identity.is_some() { "https" } else { "http" };
        let mut server = Server::builder();
        if let Some(identity) = identity {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        let router = server
            .add_service(vm_service_server::VmServiceServer::new(self.clone()))
            .add_service(node_service_server::NodeServiceServer::new(self.clone()))
            .add_service(image_service_server::ImageServiceServer::new(self.clone()))
            .add_service(controller_service_server::ControllerServiceServer::new(self.clone()))
            .add_service(cluster_service_server::ClusterServiceServer::new(self.clone()))
            .add_service(event_service_server::EventServiceServer::new(self.clone()))
            .add_service(transfer_service_server::TransferServiceServer::new(self.clone()))
            .add_service(agency_service_server::AgencyServiceServer::new(self.clone()))
            .add_service(flavor_service_server::FlavorServiceServer::new(self.clone()))
            .add_service(network_service_server::NetworkServiceServer::new(self.clone()))
            .add_service(placement_group_service_server::PlacementGroupServiceServer::new(self.clone()))
            .add_service(scheduling_policy_service_server::SchedulingPolicyServiceServer::new(self.clone()))
            .add_service(stack_service_server::StackServiceServer::new(self.clone()))
            .add_service(pool_service_server::PoolServiceServer::new(self.clone()))
            .add_service(volume_service_server::VolumeServiceServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("{scheme}://{address}")
    }

    /// Writes a request down and gives the refusal that is due, if one is.
    pub fn asked<T: std::fmt::Debug>(
        &self,
        method: &'static str,
        request: &Request<T>,
    ) -> Result<(), Status> {
        let mut world = self.world();
        let token = request.metadata().get("authorization").map_or("", |value| value.to_str().unwrap());
        world.tokens.push(token.to_owned());
        world.asked.push((method, format!("{:?}", request.get_ref())));
        match world.refusals.front() {
            Some((due, _)) if due.is_empty() || *due == method => Err(world.refusals.pop_front().unwrap().1),
            _ => Ok(()),
        }
    }

    /// The VM after a verb, as the test has put it there.
    fn verb(&self, name: &str) -> Result<Response<Vm>, Status> {
        found(&self.world().vms, name, |vm| &vm.metadata)
    }
}

fn found<T: Clone>(
    all: &[T],
    name: &str,
    of: impl Fn(&T) -> &Option<Metadata>,
) -> Result<Response<T>, Status> {
    let same = |metadata: &Metadata| metadata.name == name || metadata.id == name;
    let one = all.iter().find(|one| of(one).as_ref().is_some_and(same));
    one.cloned()
        .map(Response::new)
        .ok_or_else(|| Status::not_found(format!("there is nothing named {name:?}")))
}

/// What `async_trait` makes of an async method; it does not look into the macros below.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

macro_rules! verbs {
    ($($method:ident $request:ident),*) => {
        $(fn $method<'a, 'b>(&'a self, request: Request<$request>) -> Answer<'b, Vm> where 'a: 'b, Self: 'b {
            Box::pin(async move {
                self.asked(stringify!($method), &request)?;
                self.verb(&request.get_ref().name)
            })
        })*
    };
}

macro_rules! missing {
    ($($method:ident $request:ident $answer:ident),*) => {
        $(fn $method<'a, 'b>(&'a self, request: Request<$request>) -> Answer<'b, $answer> where 'a: 'b, Self: 'b {
            Box::pin(async move {
                self.asked(stringify!($method), &request)?;
                Err(Status::unimplemented(""))
            })
        })*
    };
}

macro_rules! silent {
    ($($stream:ident $method:ident $request:ident $answer:ident),*) => {
        $(
            type $stream = BoxStream<'static, Result<$answer, Status>>;
            fn $method<'a, 'b>(&'a self, request: Request<$request>) -> Answer<'b, Self::$stream> where 'a: 'b, Self: 'b {
                Box::pin(async move {
                    self.asked(stringify!($method), &request)?;
                    Ok(Response::new(stream::pending().boxed()))
                })
            }
        )*
    };
}

#[tonic::async_trait]
impl vm_service_server::VmService for Fake {
    verbs!(start_vm StartVmRequest, stop_vm StopVmRequest, reboot_vm RebootVmRequest, reset_vm ResetVmRequest,
        pause_vm PauseVmRequest, resume_vm ResumeVmRequest, resize_vm ResizeVmRequest, get_vm GetVmRequest,
        delete_vm DeleteVmRequest, hand_over_vm HandOverVmRequest);

    async fn list_vms(&self, request: Request<ListVmsRequest>) -> Result<Response<ListVmsResponse>, Status> {
        self.asked("list_vms", &request)?;
        let request = request.into_inner();
        let of_agency =
            |vm: &&Vm| request.agency.is_empty() || vm.metadata.as_ref().unwrap().agency == request.agency;
        let vms: Vec<Vm> = self.world().vms.iter().filter(of_agency).cloned().collect();
        // Pages of two at most, so that every walk has several.
        let start: usize = request.page_token.parse().unwrap_or(0);
        let end = (start + (request.page_size as usize).min(2)).min(vms.len());
        let next_page_token = if end < vms.len() { end.to_string() } else { String::new() };
        Ok(Response::new(ListVmsResponse {
            vms: vms[start..end].to_vec(),
            next_page_token,
            cursor: "c9".to_owned(),
        }))
    }

    async fn create_vm(&self, request: Request<CreateVmRequest>) -> Result<Response<Vm>, Status> {
        self.world().request_ids.push(request.get_ref().request_id.clone());
        self.asked("create_vm", &request)?;
        let request = request.into_inner();
        let mut vm = request.vm.unwrap();
        let metadata = vm.metadata.as_mut().unwrap();
        metadata.agency = request.agency;
        metadata.id = "3f1c0000-0000-4000-8000-000000000001".to_owned();
        metadata.revision = 10;
        vm.status = Some(VmStatus { phase: VmPhase::Pending.into(), ..Default::default() });
        Ok(Response::new(vm))
    }

    async fn update_vm(&self, request: Request<UpdateVmRequest>) -> Result<Response<Vm>, Status> {
        self.asked("update_vm", &request)?;
        Ok(Response::new(request.into_inner().vm.unwrap()))
    }

    missing!(migrate_vm MigrateVmRequest Move);

    async fn explain_vm(
        &self,
        request: Request<ExplainVmRequest>,
    ) -> Result<Response<ExplainVmResponse>, Status> {
        self.asked("explain_vm", &request)?;
        Ok(Response::new(self.world().explain.clone()))
    }

    type WatchVmsStream = BoxStream<'static, Result<WatchVmsResponse, Status>>;
    async fn watch_vms(
        &self,
        request: Request<WatchVmsRequest>,
    ) -> Result<Response<Self::WatchVmsStream>, Status> {
        self.asked("watch_vms", &request)?;
        Ok(Response::new(match self.world().watches.pop_front() {
            None => stream::pending().boxed(),
            Some(Script::Stays(changes)) => {
                stream::iter(changes.into_iter().map(Ok)).chain(stream::pending()).boxed()
            }
            Some(Script::Breaks(changes, status)) => {
                stream::iter(changes.into_iter().map(Ok)).chain(stream::once(async { Err(status) })).boxed()
            }
        }))
    }
}

#[tonic::async_trait]
impl node_service_server::NodeService for Fake {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        self.asked("get_node", &request)?;
        found(&self.world().nodes, &request.get_ref().name, |node| &node.metadata)
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        self.asked("list_nodes", &request)?;
        Ok(Response::new(ListNodesResponse { nodes: self.world().nodes.clone(), ..Default::default() }))
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Result<Response<Node>, Status> {
        self.asked("update_node", &request)?;
        Ok(Response::new(request.into_inner().node.unwrap()))
    }

    async fn drill_fencing(&self, request: Request<DrillFencingRequest>) -> Result<Response<Node>, Status> {
        self.asked("drill_fencing", &request)?;
        found(&self.world().nodes, &request.get_ref().name, |node| &node.metadata)
    }

    async fn cordon_node(&self, request: Request<CordonNodeRequest>) -> Result<Response<Node>, Status> {
        self.asked("cordon_node", &request)?;
        found(&self.world().nodes, &request.get_ref().name, |node| &node.metadata)
    }

    async fn drain_nodes(
        &self,
        request: Request<DrainNodesRequest>,
    ) -> Result<Response<DrainNodesResponse>, Status> {
        self.asked("drain_nodes", &request)?;
        let world = self.world();
        Ok(Response::new(DrainNodesResponse { nodes: world.nodes.clone(), plan: Some(world.plan.clone()) }))
    }

    async fn cancel_drain(
        &self,
        request: Request<CancelDrainRequest>,
    ) -> Result<Response<CancelDrainResponse>, Status> {
        self.asked("cancel_drain", &request)?;
        Ok(Response::new(CancelDrainResponse { nodes: self.world().nodes.clone() }))
    }

    async fn return_nodes(
        &self,
        request: Request<ReturnNodesRequest>,
    ) -> Result<Response<ReturnNodesResponse>, Status> {
        self.asked("return_nodes", &request)?;
        let world = self.world();
        Ok(Response::new(ReturnNodesResponse { nodes: world.nodes.clone(), plan: Some(world.plan.clone()) }))
    }

    missing!(delete_node DeleteNodeRequest Node, uncordon_node UncordonNodeRequest Node,
        attest_node_gone AttestNodeGoneRequest Node);
    silent!(WatchNodesStream watch_nodes WatchNodesRequest WatchNodesResponse);
}

#[tonic::async_trait]
impl image_service_server::ImageService for Fake {
    async fn get_image(&self, request: Request<GetImageRequest>) -> Result<Response<Image>, Status> {
        self.asked("get_image", &request)?;
        found(&self.world().images, &request.get_ref().name, |image| &image.metadata)
    }

    async fn create_image(&self, request: Request<CreateImageRequest>) -> Result<Response<Image>, Status> {
        self.asked("create_image", &request)?;
        let mut image = request.into_inner().image.unwrap();
        image.status = Some(ImageStatus { phase: ImagePhase::Pending.into(), ..Default::default() });
        Ok(Response::new(image))
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        self.asked("list_images", &request)?;
        Ok(Response::new(ListImagesResponse { images: self.world().images.clone(), ..Default::default() }))
    }

    missing!(update_image UpdateImageRequest Image,
        delete_image DeleteImageRequest Image);
    silent!(WatchImagesStream watch_images WatchImagesRequest WatchImagesResponse);
}

#[tonic::async_trait]
impl controller_service_server::ControllerService for Fake {
    async fn list_controllers(
        &self,
        request: Request<ListControllersRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        self.asked("list_controllers", &request)?;
        let controllers = self.world().controllers.clone();
        Ok(Response::new(ListControllersResponse { controllers, ..Default::default() }))
    }

    missing!(get_controller GetControllerRequest Controller, remove_controller RemoveControllerRequest Controller,
        transfer_leadership TransferLeadershipRequest Controller);
    silent!(WatchControllersStream watch_controllers WatchControllersRequest WatchControllersResponse);
}

#[tonic::async_trait]
impl cluster_service_server::ClusterService for Fake {
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        self.asked("create_join_token", &request)?;
        let secret = "id.secret.digest".to_owned();
        Ok(Response::new(CreateJoinTokenResponse { join_token: Some(JoinToken::default()), secret }))
    }

    type DumpClusterStream = BoxStream<'static, Result<DumpClusterResponse, Status>>;
    async fn dump_cluster(
        &self,
        request: Request<DumpClusterRequest>,
    ) -> Result<Response<Self::DumpClusterStream>, Status> {
        self.asked("dump_cluster", &request)?;
        let parts = self.world().dump.clone().into_iter().map(|text| Ok(DumpClusterResponse { text }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    missing!(get_cluster GetClusterRequest Cluster, disarm_ha DisarmHaRequest Cluster, arm_ha ArmHaRequest Cluster,
        list_join_tokens ListJoinTokensRequest ListJoinTokensResponse,
        revoke_join_token RevokeJoinTokenRequest JoinToken, list_loops ListLoopsRequest ListLoopsResponse,
        replay_decisions ReplayDecisionsRequest ReplayDecisionsResponse);
}

#[tonic::async_trait]
impl event_service_server::EventService for Fake {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        self.asked("list_events", &request)?;
        let events = self.world().events.clone();
        Ok(Response::new(ListEventsResponse { events, cursor: "e1".to_owned(), ..Default::default() }))
    }

    silent!(WatchEventsStream watch_events WatchEventsRequest WatchEventsResponse);
}

#[tonic::async_trait]
impl transfer_service_server::TransferService for Fake {
    async fn upload_image(
        &self,
        request: Request<Streaming<UploadImageRequest>>,
    ) -> Result<Response<UploadImageResponse>, Status> {
        self.asked("upload_image", &Request::new("a stream"))?;
        let mut stream = request.into_inner();
        let mut image = Image::default();
        while let Some(message) = stream.message().await? {
            match message.part {
                Some(upload_image_request::Part::Target(target)) => {
                    self.world().asked.push(("target", format!("{target:?}")));
                    image.metadata =
                        Some(Metadata { name: target.name, agency: target.agency, ..Default::default() });
                }
                Some(upload_image_request::Part::Chunk(chunk)) => {
                    assert!(chunk.len() <= 1 << 20);
                    self.world().uploaded.extend_from_slice(&chunk);
                }
                None => return Err(Status::invalid_argument("an empty message")),
            }
        }
        image.status = Some(ImageStatus { phase: ImagePhase::Available.into(), ..Default::default() });
        Ok(Response::new(UploadImageResponse { image: Some(image) }))
    }

    type OpenConsoleStream = BoxStream<'static, Result<OpenConsoleResponse, Status>>;
    /// A guest that answers each line with itself in upper case, and to "bye" closes the console.
    async fn open_console(
        &self,
        request: Request<Streaming<OpenConsoleRequest>>,
    ) -> Result<Response<Self::OpenConsoleStream>, Status> {
        let world = self.world.clone();
        let answers = request.into_inner().filter_map(move |message| {
            let answer = match message.ok().and_then(|message| message.part) {
                Some(open_console_request::Part::Target(target)) => {
                    Some(format!("login on {}: ", target.name))
                }
                Some(open_console_request::Part::Input(input)) => {
                    Some(String::from_utf8_lossy(&input).to_ascii_uppercase())
                }
                Some(open_console_request::Part::Size(size)) => {
                    world.lock().unwrap().console_sizes.push(size);
                    Some(format!("{}x{}\r\n", size.columns, size.rows))
                }
                None => None,
            };
            async move { answer.map(|text| Ok(OpenConsoleResponse { output: text.into() })) }
        });
        // To "die" the controller goes away in the middle of it.
        let answers = answers.map(|answer: Result<OpenConsoleResponse, Status>| match answer {
            Ok(answer) if answer.output.starts_with(b"DIE") => Err(Status::unavailable("stopping")),
            answer => answer,
        });
        let until_bye = answers.take_while(|answer: &Result<OpenConsoleResponse, Status>| {
            let bye = answer.as_ref().is_ok_and(|answer| answer.output.starts_with(b"BYE"));
            async move { !bye }
        });
        Ok(Response::new(until_bye.boxed()))
    }

    type ReadSerialLogStream = BoxStream<'static, Result<ReadSerialLogResponse, Status>>;
    async fn read_serial_log(
        &self,
        request: Request<ReadSerialLogRequest>,
    ) -> Result<Response<Self::ReadSerialLogStream>, Status> {
        self.asked("read_serial_log", &request)?;
        let chunks: Vec<&[u8]> = self.world().log.clone();
        let chunks = chunks.into_iter().map(|chunk| Ok(ReadSerialLogResponse { chunk: chunk.into() }));
        Ok(Response::new(stream::iter(chunks.collect::<Vec<_>>()).boxed()))
    }
}

/// A time so many seconds ago.
pub fn ago(seconds: i64) -> Option<pbjson_types::Timestamp> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Some(pbjson_types::Timestamp { seconds: now.as_secs() as i64 - seconds, nanos: 0 })
}

pub fn metadata(agency: &str, name: &str) -> Option<Metadata> {
    Some(Metadata {
        id: "3f1c0000-0000-4000-8000-000000000001".to_owned(),
        name: name.to_owned(),
        agency: agency.to_owned(),
        revision: 10,
        generation: 1,
        create_time: ago(3 * 3_600 + 60),
        labels: [("tier".to_owned(), "front".to_owned()), ("app".to_owned(), "web".to_owned())].into(),
        ..Default::default()
    })
}

pub fn vm(name: &str, phase: VmPhase) -> Vm {
    Vm {
        metadata: metadata("health", name),
        spec: Some(VmSpec {
            vcpus: 2,
            memory_mib: 2_048,
            disks: vec![Disk {
                source: Some(disk::Source::Create(DiskTemplate {
                    size_mib: 10_240,
                    image: "debian-12".to_owned(),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            interfaces: vec![Interface { network: "lan".to_owned(), ..Default::default() }],
            ..Default::default()
        }),
        status: Some(VmStatus { phase: phase.into(), observed_generation: 1, ..Default::default() }),
    }
}

pub fn running(name: &str, node: &str) -> Vm {
    let mut vm = vm(name, VmPhase::Running);
    let status = vm.status.as_mut().unwrap();
    node.clone_into(&mut status.node);
    status.vcpus = 2;
    status.memory_mib = 2_048;
    status.volumes = vec![format!("{name}-0")];
    status.interfaces = vec![InterfaceStatus {
        network: "lan".to_owned(),
        mac: "52:54:00:00:00:05".to_owned(),
        addresses: vec!["10.20.0.5/24".to_owned()],
    }];
    status.conditions = vec![condition("Placed", true, "Placed", "placed on n2")];
    status.started_time = ago(3_000);
    vm
}

pub fn with_condition(mut vm: Vm, condition: Condition) -> Vm {
    vm.status.as_mut().unwrap().conditions.push(condition);
    vm
}

pub fn condition(kind: &str, holds: bool, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status: if holds { ConditionStatus::True } else { ConditionStatus::False }.into(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: 1,
        last_transition_time: ago(600),
    }
}

pub fn put(vm: Vm, cursor: &str) -> WatchVmsResponse {
    WatchVmsResponse { event: WatchEvent::Put.into(), vm: Some(vm), cursor: cursor.to_owned() }
}

pub fn deleted(vm: Vm) -> WatchVmsResponse {
    WatchVmsResponse { event: WatchEvent::Deleted.into(), vm: Some(vm), cursor: "gone".to_owned() }
}

#[tonic::async_trait]
impl stack_service_server::StackService for Fake {
    async fn list_stack_resources(
        &self,
        _: Request<ListStackResourcesRequest>,
    ) -> Result<Response<ListStackResourcesResponse>, Status> {
        let applied = self.world().applied.clone().ok_or_else(|| Status::unimplemented(""))?;
        Ok(Response::new(ListStackResourcesResponse { stack_resources: applied, ..Default::default() }))
    }

    async fn record_apply(
        &self,
        request: Request<RecordApplyRequest>,
    ) -> Result<Response<RecordApplyResponse>, Status> {
        self.asked("record_apply", &request)?;
        Ok(Response::new(RecordApplyResponse {}))
    }

    async fn preview_plan(
        &self,
        request: Request<PreviewPlanRequest>,
    ) -> Result<Response<PreviewPlanResponse>, Status> {
        let preview = self.world().preview.clone().ok_or_else(|| Status::unimplemented(""))?;
        self.asked("preview_plan", &request)?;
        Ok(Response::new(preview))
    }
}

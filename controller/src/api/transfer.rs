//! TransferService: images in, consoles and logs out. The bytes of consoles and logs come from the VM's node
//! through its session with the leader.

use futures::StreamExt;
use tamdao_model::convert::Shown;
use tamdao_model::image::Image;
use tamdao_model::vm::Vm;
use tamdao_model::{NodeId, Scope, VmId};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::v1;
use tamdao_proto::v1::transfer_service_server::TransferService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, Events, agency_of, find, scope_of};
use crate::access::Asking;
use crate::auth;
use crate::refusal::Refusal;
use crate::sessions::tunnel::{FromNode, ToNode, Tunnel};

/// How much of a serial log is sent when nobody said, bytes.
const TAIL_BYTES: u64 = 65_536;

impl Api {
    /// The VM and the node on which it is.
    async fn placed(&self, asking: &Asking, agency: &str, name: &str) -> Result<(VmId, NodeId), Refusal> {
        let (view, _) = self.admitted(asking).await?;
        let scope = Scope::Agency(agency_of(&view, agency)?);
        let vm = find::<Vm>(&view, scope, name)?;
        let node = vm.status.node.ok_or_else(|| {
            let message = format!("vm {:?} has no node yet", vm.meta.name.as_str());
            Refusal::precondition("NotPlaced", message).hint(format!("tamdao vm explain {name} tells why"))
        })?;
        Ok((vm.id(), node))
    }

    fn tunnel(&self, node: NodeId, purpose: agent::open_tunnel::Purpose) -> Result<Tunnel, Refusal> {
        self.shared.sessions.open_tunnel(node, purpose)
    }
}

#[tonic::async_trait]
impl TransferService for Api {
    async fn upload_image(
        &self,
        request: Request<Streaming<v1::UploadImageRequest>>,
    ) -> Result<Response<v1::UploadImageResponse>, Status> {
        let principal = auth::principal(request.metadata());
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|message| message.part);
        let Some(v1::upload_image_request::Part::Target(target)) = first else {
            return Err(Refusal::field("target", "must come first").into());
        };
        let asking = Asking::streaming(principal, "TransferService/UploadImage", &target.agency);
        let (view, _) = self.admitted(&asking).await?;
        let image = find::<Image>(&view, scope_of(&view, &target.agency)?, &target.name)?.id();
        let chunks = parts.map(|message| match message?.part {
            Some(v1::upload_image_request::Part::Chunk(chunk)) => Ok(chunk),
            _ => Err(Status::from(Refusal::field("chunk", "must follow the target"))),
        });
        let revision = self.shared.images.receive(image, chunks, target.gzip).await?;
        let view = self.shared.cache.at_least(revision).await.map_err(Refusal::from)?;
        let row = view
            .images
            .get(image)
            .ok_or_else(|| Refusal::not_found(tamdao_model::Kind::Image, &target.name))?;
        let shown = row.value.show(row.revision.0, &*view);
        Ok(Response::new(v1::UploadImageResponse { image: Some(shown) }))
    }

    type OpenConsoleStream = Events<v1::OpenConsoleResponse>;

    async fn open_console(
        &self,
        request: Request<Streaming<v1::OpenConsoleRequest>>,
    ) -> Result<Response<Self::OpenConsoleStream>, Status> {
        let principal = auth::principal(request.metadata());
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|message| message.part);
        let Some(v1::open_console_request::Part::Target(target)) = first else {
            return Err(Refusal::field("target", "must come first").into());
        };
        let asking = Asking::streaming(principal, "TransferService/OpenConsole", &target.agency);
        let (vm, node) = self.placed(&asking, &target.agency, &target.name).await?;
        let purpose = agent::ConsoleTunnel { vm_id: vm.to_string(), force: target.force };
        let tunnel = self.tunnel(node, agent::open_tunnel::Purpose::Console(purpose))?;
        let Tunnel { to_node, from_node } = tunnel;
        tokio::spawn(async move {
            while let Ok(Some(message)) = parts.message().await {
                let part = match message.part {
                    Some(v1::open_console_request::Part::Input(input)) => ToNode::Data(input),
                    Some(v1::open_console_request::Part::Size(size)) => {
                        ToNode::Resize { rows: size.rows, columns: size.columns }
                    }
                    Some(v1::open_console_request::Part::Target(_)) | None => break,
                };
                if to_node.send(part).await.is_err() {
                    break;
                }
            }
        });
        let output = relay(from_node, |output| v1::OpenConsoleResponse { output });
        Ok(Response::new(output))
    }

    type ReadSerialLogStream = Events<v1::ReadSerialLogResponse>;

    async fn read_serial_log(
        &self,
        request: Request<v1::ReadSerialLogRequest>,
    ) -> Result<Response<Self::ReadSerialLogStream>, Status> {
        let asking = Asking::of(&request);
        let request = request.into_inner();
        let (vm, node) = self.placed(&asking, &request.agency, &request.name).await?;
        let purpose = agent::SerialLogTunnel {
            vm_id: vm.to_string(),
            tail_bytes: if request.tail_bytes == 0 { TAIL_BYTES } else { request.tail_bytes },
            follow: request.follow,
        };
        let tunnel = self.tunnel(node, agent::open_tunnel::Purpose::SerialLog(purpose))?;
        let Tunnel { to_node, from_node } = tunnel;
        let stream = relay(from_node, |chunk| v1::ReadSerialLogResponse { chunk });
        // The node reads nothing from us, but it ends when our side is gone.
        let held = stream.map(move |item| {
            let _ = &to_node;
            item
        });
        Ok(Response::new(Box::pin(held)))
    }
}

/// Hands on what the node sends.
fn relay<M: Send + 'static>(
    from_node: mpsc::Receiver<FromNode>,
    message: fn(bytes::Bytes) -> M,
) -> Events<M> {
    Box::pin(ReceiverStream::new(from_node).map(move |part| match part {
        FromNode::Data(data) => Ok(message(data)),
        FromNode::Failed(error) => Err(Refusal::precondition("NodeRefused", error).into()),
    }))
}

//! The agent's end of tunnels: a guest's serial port, its serial log, or one measurement of it.
//!
//! Invariants: the first message names the tunnel; an error that can be told is sent as the last message; a tunnel
//! ends when either side does, and with the session. Deliberately absent: who may open one, which the leader has
//! decided.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tamdao_proto::agent::v1::agent_service_client::AgentServiceClient;
use tamdao_proto::agent::v1::open_tunnel::Purpose;
use tamdao_proto::agent::v1::tunnel_request::Part as Sent;
use tamdao_proto::agent::v1::tunnel_response::Part as Received;
use tamdao_proto::agent::v1::{OpenTunnel, TunnelRequest, TunnelResponse};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::hypervisor::Hypervisor;
use crate::moves::Moves;
use crate::operate::serial_log;

/// Bytes in one message.
const PIECE: usize = 16 * 1024;
/// How often a followed log is looked at; virtlogd writes it, and tells nobody.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error("{0:?} is not a UUID")]
    Vm(String),
    #[error("the tunnel has no purpose that this agent knows")]
    Purpose,
    #[error(transparent)]
    Hypervisor(#[from] crate::hypervisor::HypervisorError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The other side has gone, so that there is nobody to tell.
    #[error("the other side has gone")]
    Gone,
}

type Say = mpsc::Sender<TunnelRequest>;

async fn send(say: &Say, part: Sent) -> Result<(), TunnelError> {
    say.send(TunnelRequest { part: Some(part) }).await.map_err(|_| TunnelError::Gone)
}

/// What tunnels can lead to.
pub struct Ends {
    pub hypervisor: Arc<dyn Hypervisor>,
    pub moves: Arc<Moves>,
    pub data_dir: PathBuf,
}

/// Opens the tunnel and carries it until its end.
pub async fn run(channel: Channel, ends: Ends, open: OpenTunnel) {
    let Ends { hypervisor, moves, data_dir } = ends;
    let (say, said) = mpsc::channel(16);
    if send(&say, Sent::TunnelId(open.tunnel_id.clone())).await.is_err() {
        return;
    }
    let mut client = AgentServiceClient::new(channel);
    let mut heard = match client.tunnel(ReceiverStream::new(said)).await {
        Ok(response) => response.into_inner(),
        Err(error) => {
            tracing::debug!(error = %error, "tunnel not opened");
            return;
        }
    };
    let result = match open.purpose {
        Some(Purpose::Console(console)) => {
            carry_console(&*hypervisor, &console.vm_id, console.force, &say, &mut heard).await
        }
        Some(Purpose::SerialLog(log)) => {
            let read = read_log(&data_dir, &log.vm_id, log.tail_bytes, log.follow, &say);
            // Nothing is said to a log, but its reader's going is heard.
            tokio::select! {
                result = read => result,
                () = until_gone(&mut heard) => Err(TunnelError::Gone),
            }
        }
        Some(Purpose::Measure(asked)) => measure(&*hypervisor, &moves, &asked.vm_id, &say).await,
        None => Err(TunnelError::Purpose),
    };
    if let Err(error) = result {
        tracing::debug!(error = %error, "tunnel ended");
        let _ = send(&say, Sent::Error(error.to_string())).await;
    }
    drop(say);
    // The stream is read to its end, so that what was said last arrives before the connection forgets it.
    let _ = tokio::time::timeout(Duration::from_secs(5), until_gone(&mut heard)).await;
}

async fn until_gone(heard: &mut tonic::Streaming<TunnelResponse>) {
    while let Ok(Some(_)) = heard.message().await {}
}

fn parse(vm: &str) -> Result<Uuid, TunnelError> {
    Uuid::try_parse(vm).map_err(|_| TunnelError::Vm(vm.to_owned()))
}

async fn carry_console(
    hypervisor: &dyn Hypervisor,
    vm: &str,
    force: bool,
    say: &Say,
    heard: &mut tonic::Streaming<TunnelResponse>,
) -> Result<(), TunnelError> {
    let console = hypervisor.console(parse(vm)?, force).await?;
    let (mut from_guest, mut to_guest) = tokio::io::split(console);
    let mut buffer = vec![0; PIECE];
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read? {
                0 => return Ok(()),
                n => send(say, Sent::Data(buffer[..n].to_vec().into())).await?,
            },
            message = heard.message() => match message.ok().flatten().ok_or(TunnelError::Gone)?.part {
                Some(Received::Data(data)) => {
                    to_guest.write_all(&data).await?;
                    to_guest.flush().await?;
                }
                // A serial port has no size; a guest that wants to know asks its terminal.
                Some(Received::Resize(_)) | None => {}
            },
        }
    }
}

async fn measure(hypervisor: &dyn Hypervisor, moves: &Moves, vm: &str, say: &Say) -> Result<(), TunnelError> {
    let guest = hypervisor.dirtying(parse(vm)?).await?;
    send(say, Sent::Data(moves.measured(guest).encode_to_vec().into())).await
}

async fn read_log(data_dir: &Path, vm: &str, tail: u64, follow: bool, say: &Say) -> Result<(), TunnelError> {
    let path = serial_log(data_dir, parse(vm)?);
    let mut file = tokio::fs::File::open(&path).await?;
    let length = file.metadata().await?.len();
    let mut at = length.saturating_sub(tail);
    file.seek(std::io::SeekFrom::Start(at)).await?;
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer).await? {
            0 if !follow => return Ok(()),
            0 => {
                tokio::time::sleep(LOOK).await;
                if tokio::fs::metadata(&path).await.is_ok_and(|now| now.len() < at) {
                    // virtlogd has begun a new file.
                    file = tokio::fs::File::open(&path).await?;
                    at = 0;
                }
            }
            n => {
                at += n as u64;
                send(say, Sent::Data(buffer[..n].to_vec().into())).await?;
            }
        }
    }
}

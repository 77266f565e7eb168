//! The target's side: lets the source's agent in, carries its bytes to libvirtd and QEMU here, and lets the guest run
//! when the source has said that it is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tamdao_proto::agent::v1::{Greeting, GreetingAnswer, Purpose};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

use super::{directory, link, socket_name, wire};
use crate::desired::{WantedMove, WantedPool, WantedVm, WantedVolume};
use crate::operate::Operator;

/// Connections that are served at once; two moves need about ten.
const CONNECTIONS: usize = 64;

/// A guest that may come.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    pub wanted: WantedVm,
    pub moving: WantedMove,
    pub pools: BTreeMap<Uuid, WantedPool>,
    /// Those of its disks.
    pub volumes: BTreeMap<Uuid, WantedVolume>,
}

/// By VM.
pub type Arrivals = BTreeMap<Uuid, Arc<Arrival>>;

/// Serves other nodes' agents until it is dropped.
pub async fn serve(operator: Arc<Operator>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "connection for a move not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let operator = operator.clone();
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = attend(&operator, stream).await {
                tracing::debug!(error, "connection for a move has broken");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn attend(operator: &Arc<Operator>, stream: TcpStream) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // Read anew for each connection, so that a renewal needs no word.
    let identity = operator.moves.files.load().map_err(|error| text(&error))?;
    let acceptor = wire::acceptor(&identity).map_err(|error| text(&error))?;
    let beginning = async {
        let mut stream = acceptor.accept(wire::line(stream)?).await?;
        let greeting: Greeting = wire::hear(&mut stream).await?;
        Ok::<_, std::io::Error>((stream, greeting))
    };
    let begun = tokio::time::timeout(wire::PATIENCE, beginning).await;
    let (mut stream, greeting) =
        begun.map_err(|_| "no greeting".to_owned())?.map_err(|error| text(&error))?;
    let certificates = stream.get_ref().1.peer_certificates();
    let node = certificates.and_then(<[_]>::first).and_then(wire::node_of);
    let admitted = admit(&operator.moves.arrivals.borrow(), node, &greeting);
    match admitted {
        Ok((vm, arrival)) if greeting.purpose() == Purpose::DiskFile => {
            take_file(operator, vm, &arrival, &greeting, stream).await
        }
        Ok((vm, arrival)) => welcome(operator, vm, &arrival, greeting.purpose(), stream).await,
        Err(why) => {
            tracing::warn!(vm = greeting.vm_id, peer = ?node, why, "connection for a move refused");
            let answer = GreetingAnswer { error: why, paths: None };
            wire::say(&mut stream, &answer).await.map_err(|error| text(&error))
        }
    }
}

/// The guest that this node may bring.
fn admit(
    arrivals: &Arrivals,
    node: Option<Uuid>,
    greeting: &Greeting,
) -> Result<(Uuid, Arc<Arrival>), String> {
    let vm = Uuid::try_parse(&greeting.vm_id).map_err(|_| "vm_id is not a UUID".to_owned())?;
    let arrival = arrivals.get(&vm).ok_or_else(|| "this vm is not expected here".to_owned())?;
    let moving = &arrival.moving;
    if greeting.move_id != moving.id.to_string() || greeting.incarnation_to != moving.to {
        return Err("this move is not expected here".to_owned());
    }
    if node != Some(moving.peer) {
        return Err("this vm is not yours to bring".to_owned());
    }
    Ok((vm, arrival.clone()))
}

async fn welcome(
    operator: &Arc<Operator>,
    vm: Uuid,
    arrival: &Arc<Arrival>,
    purpose: Purpose,
    mut stream: TlsStream<wire::Line>,
) -> Result<(), String> {
    let mut answer = GreetingAnswer::default();
    let mut local = None;
    let done = match purpose {
        Purpose::Paths => operator
            .arrival_paths(vm, arrival)
            .map(|paths| answer.paths = Some(paths))
            .map_err(|error| error.to_string()),
        Purpose::Gone => operator.hear_gone(vm, arrival).await.map_err(|error| error.to_string()),
        Purpose::Libvirt => connect(&operator.moves.libvirt).await.map(|stream| local = Some(stream)),
        Purpose::Memory | Purpose::Disks => {
            let path = directory(arrival.moving.id).join(socket_name(purpose));
            connect(&path).await.map(|stream| local = Some(stream))
        }
        Purpose::DiskFile | Purpose::Unspecified => Err("this purpose is not known here".to_owned()),
    };
    answer.error = done.err().unwrap_or_default();
    wire::say(&mut stream, &answer).await.map_err(|error| error.to_string())?;
    let gone = purpose == Purpose::Gone && answer.error.is_empty();
    if gone {
        operator.run_arrived(vm, arrival).await;
    }
    let Some(local) = local else { return Ok(()) };
    let sent = AtomicU64::new(0);
    tokio::select! {
        joined = link::join(local, stream, &operator.moves.bucket, &sent) => {
            joined.map_err(|error| error.to_string())
        }
        () = no_longer(operator.moves.arrivals.subscribe(), vm, arrival.moving.id) => {
            Err("the guest is not expected any more".to_owned())
        }
    }
}

/// Receives one disk's file, and answers when it is in its place.
async fn take_file(
    operator: &Arc<Operator>,
    vm: Uuid,
    arrival: &Arrival,
    greeting: &Greeting,
    mut stream: TlsStream<wire::Line>,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let begun = operator.begin_taking(vm, arrival, &greeting.volume_id);
    let (taken, error) = match begun {
        Ok((volume, taking)) => {
            wire::say(&mut stream, &GreetingAnswer::default()).await.map_err(text)?;
            let took = tokio::select! {
                took = operator.take_in(&volume, greeting.size_bytes, &mut stream) => took,
                () = no_longer(operator.moves.arrivals.subscribe(), vm, arrival.moving.id) => {
                    return Err("the guest is not expected any more".to_owned());
                }
            };
            drop(taking);
            (took.is_ok(), took.err())
        }
        Err(error) => (false, Some(error)),
    };
    let error = error.map(|error| error.to_string()).unwrap_or_default();
    if !taken {
        tracing::warn!(%vm, volume = greeting.volume_id, error, "disk of a guest that comes not received");
    }
    wire::say(&mut stream, &GreetingAnswer { error, paths: None }).await.map_err(text)
}

/// Returns when the move is not this node's any more.
async fn no_longer(mut arrivals: watch::Receiver<Arrivals>, vm: Uuid, id: Uuid) {
    let ended = |arrivals: &Arrivals| arrivals.get(&vm).is_none_or(|arrival| arrival.moving.id != id);
    if arrivals.wait_for(ended).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn connect(path: &std::path::Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).await.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::desired::{Intent, Way};

    #[test]
    fn only_the_named_node_brings_the_named_guest() {
        let id = Uuid::from_u128;
        let moving = WantedMove {
            id: id(1),
            peer: id(2),
            address: String::new(),
            from: 1,
            to: 2,
            way: Way::Live,
            recall: false,
            auto_converge: true,
            stays_off: false,
        };
        let wanted = WantedVm {
            incarnation: 2,
            generation: 1,
            intent: Intent::Incoming,
            power: tamdao_proto::v1::Power::On,
            run: tamdao_proto::v1::RunPolicy::OnFailure,
            machine: Arc::default(),
            volumes: Vec::new(),
            images: Vec::new(),
            action: None,
            stop_force: false,
            stop_ms: 0,
            priority: 0,
            moving: Some(moving.clone()),
            fresh: true,
            fault: None,
        };
        let arrival = Arc::new(Arrival { wanted, moving, pools: BTreeMap::new(), volumes: BTreeMap::new() });
        let arrivals = Arrivals::from([(id(3), arrival)]);
        let good = Greeting {
            move_id: id(1).to_string(),
            vm_id: id(3).to_string(),
            incarnation_to: 2,
            ..Greeting::default()
        };
        assert!(admit(&arrivals, Some(id(2)), &good).is_ok());
        for (node, wrong) in [
            (Some(id(9)), good.clone()),
            (None, good.clone()),
            (Some(id(2)), Greeting { move_id: id(9).to_string(), ..good.clone() }),
            (Some(id(2)), Greeting { vm_id: id(9).to_string(), ..good.clone() }),
            (Some(id(2)), Greeting { incarnation_to: 1, ..good.clone() }),
            (Some(id(2)), Greeting { vm_id: "x".into(), ..good }),
        ] {
            assert!(admit(&arrivals, node, &wrong).is_err(), "{node:?} {wrong:?}");
        }
    }
}

//! Tunnels: bytes between a client and a node, over a stream that the agent opens when it is asked to. One that
//! nobody comes for is forgotten.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tamdao_model::NodeId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

/// Messages under way in each direction.
const UNDER_WAY: usize = 64;
/// How long an agent may take to open a tunnel.
const PATIENCE: Duration = Duration::from_secs(15);

/// What goes to the node.
#[derive(Debug)]
pub enum ToNode {
    Data(Bytes),
    Resize { rows: u32, columns: u32 },
}

/// What comes from the node.
#[derive(Debug)]
pub enum FromNode {
    Data(Bytes),
    /// It cannot, or can no longer.
    Failed(String),
}

/// The client's end.
pub struct Tunnel {
    pub to_node: mpsc::Sender<ToNode>,
    pub from_node: mpsc::Receiver<FromNode>,
}

/// The node's end.
pub struct NodeEnd {
    pub from_client: mpsc::Receiver<ToNode>,
    pub to_client: mpsc::Sender<FromNode>,
}

/// Tunnels that were asked for and are not open yet.
#[derive(Default)]
pub struct Waiting(Mutex<HashMap<Uuid, (NodeId, Instant, NodeEnd)>>);

impl Waiting {
    /// Makes a tunnel for the node to open.
    pub fn expect(&self, node: NodeId) -> (Uuid, Tunnel) {
        let (to_node, from_client) = mpsc::channel(UNDER_WAY);
        let (to_client, from_node) = mpsc::channel(UNDER_WAY);
        let id = Uuid::new_v4();
        let now = Instant::now();
        let mut waiting = self.0.lock().expect("no holder of the lock panics");
        waiting.retain(|_, (_, since, _)| now.duration_since(*since) < PATIENCE);
        waiting.insert(id, (node, now, NodeEnd { from_client, to_client }));
        (id, Tunnel { to_node, from_node })
    }

    /// The end that this node was asked to open.
    pub fn claim(&self, node: NodeId, id: Uuid) -> Option<NodeEnd> {
        let mut waiting = self.0.lock().expect("no holder of the lock panics");
        match waiting.get(&id) {
            Some((of, _, _)) if *of == node => waiting.remove(&id).map(|(_, _, end)| end),
            _ => None,
        }
    }
}

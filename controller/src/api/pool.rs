//! PoolService.

use std::sync::Arc;

use tamdao_model::node::Node;
use tamdao_model::pool::Pool;
use tamdao_proto::v1;
use tamdao_store::view::{Delta, Held, Record, Row, View};

use super::standard::{Standard, Writable, service};
use crate::decide::place::promised_in_shared_mib;
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for Pool {
    fn complete(proto: &mut v1::Pool, row: &Self, view: &View, _: &Shared) {
        let mut nodes: Vec<v1::PoolOnNode> = view
            .nodes
            .iter()
            .filter(|node| row.is_on(node.id()))
            .map(|node| on_node(row, node, view))
            .collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        let status = proto.status.get_or_insert_default();
        let ready = nodes.iter().filter(|node| node.ready).count();
        status.phase = match ready {
            0 => v1::PoolPhase::Pending,
            some if some < nodes.len() => v1::PoolPhase::Degraded,
            _ => v1::PoolPhase::Ready,
        } as i32;
        status.nodes = nodes;
    }

    fn shows(delta: &Delta, newest: &View) -> Vec<Row<Self>> {
        let seen = |record: &Option<Record>| record.as_ref().and_then(Node::from_record).cloned();
        let (before, after) = (seen(&delta.before), seen(&delta.after));
        let Some(node) = after.as_ref().or(before.as_ref()) else { return Vec::new() };
        let told = |node: &Option<Arc<Node>>| node.as_ref().map(|node| node.status.pools.clone());
        if told(&before) == told(&after) {
            return Vec::new();
        }
        newest.pools.iter().filter(|pool| pool.is_on(node.id())).cloned().collect()
    }
}

fn on_node(pool: &Pool, node: &Row<Node>, view: &View) -> v1::PoolOnNode {
    let seen = node.status.pools.get(&pool.id()).cloned().unwrap_or_default();
    let allocated_mib = if pool.spec.shared {
        promised_in_shared_mib(view, pool.id())
    } else {
        view.assignments.get(node.id()).map_or(0, |row| row.promised_mib(pool.id()))
    };
    v1::PoolOnNode {
        node: node.meta.name.to_string(),
        ready: seen.ready,
        capacity_mib: seen.capacity_mib,
        used_mib: seen.used_mib,
        allocated_mib,
        message: seen.message,
    }
}

impl Writable for Pool {
    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        match view.volumes.iter().find(|volume| volume.spec.pool == self.id()) {
            Some(volume) => {
                let (name, volume) = (self.meta.name.as_str(), volume.meta.name.as_str());
                let message = format!("pool {name:?} holds volume {volume:?}");
                Err(Refusal::precondition("InUse", message).hint("delete its volumes first"))
            }
            None => Ok(()),
        }
    }

    fn check_changed(&self, _: &Self, view: &View) -> Result<(), Refusal> {
        let left_out = |node: &&Row<Node>| !self.is_on(node.id());
        for node in view.nodes.iter().filter(left_out) {
            if view.assignments.get(node.id()).is_some_and(|row| row.promised_mib(self.id()) > 0) {
                let message =
                    format!("leaves out node {:?}, which holds volumes in it", node.meta.name.as_str());
                return Err(Refusal::field("pool.spec.nodes", message));
            }
        }
        Ok(())
    }
}

service! {
    pool_service_server::PoolService, Pool, pool, pools, cluster, phase,
    get get_pool(GetPoolRequest) list list_pools(ListPoolsRequest -> ListPoolsResponse)
    watch watch_pools(WatchPoolsRequest -> WatchPoolsResponse as WatchPoolsStream)
    create create_pool(CreatePoolRequest)
    update update_pool(UpdatePoolRequest)
    delete delete_pool(DeletePoolRequest)
    extra {}
}

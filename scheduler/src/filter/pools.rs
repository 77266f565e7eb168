//! Every pool that the VM has disks in must be on the node and ready. A local one must have room there, a shared
//! one in the cluster; a VM that holds a place already has its shared room.

use std::sync::Arc;

use tamdao_model::PoolId;

use super::Ask;
use crate::reason::Reason;
use crate::traits::Traits;
use crate::view::Row;

pub(super) fn present(ask: &Ask, traits: &Traits) -> Option<Reason> {
    let mut wanted = ask.vm.disks.iter().map(|disk| disk.pool);
    let known = |pool: &PoolId| ask.view.pool(*pool).is_some() && traits.pools.contains_key(pool);
    let pool = wanted.find(|pool| !known(pool))?;
    Some(Reason::PoolAbsent { pool, name: name(ask, pool) })
}

pub(super) fn ready(ask: &Ask, traits: &Traits) -> Option<Reason> {
    let mut wanted = ask.vm.disks.iter().map(|disk| disk.pool);
    let pool = wanted.find(|pool| traits.pools.get(pool) == Some(&false))?;
    Some(Reason::PoolNotReady { pool, name: name(ask, pool) })
}

pub(super) fn room(ask: &Ask, row: &Row) -> Option<Reason> {
    // Where the pool is not present at all, that is reason enough.
    for pool in pools(ask, false).filter(|pool| row.shape.pools.contains_key(pool)) {
        let disks = ask.vm.disks.iter().filter(|d| d.pool == pool && d.on != Some(row.shape.id));
        let need_mib = disks.map(|d| d.size_mib).sum();
        let free_mib = row.pool_free(pool);
        if need_mib > free_mib {
            return Some(Reason::NotEnoughDisk { pool, name: name(ask, pool), need_mib, free_mib });
        }
    }
    None
}

pub(super) fn shared_room(ask: &Ask) -> Option<Reason> {
    if !ask.homes.is_empty() {
        return None;
    }
    for pool in pools(ask, true) {
        let need_mib = ask.vm.disks.iter().filter(|d| d.pool == pool).map(|d| d.size_mib).sum();
        let free_mib = ask.view.shared_free(pool).unwrap_or(0);
        if need_mib > free_mib {
            return Some(Reason::SharedPoolFull { pool, name: name(ask, pool), need_mib, free_mib });
        }
    }
    None
}

/// The pools of the VM's disks that are shared or local.
fn pools<'a>(ask: &'a Ask, shared: bool) -> impl Iterator<Item = PoolId> + 'a {
    let wanted = ask.vm.disks.iter().map(|disk| disk.pool);
    wanted.filter(move |id| ask.view.pool(*id).is_some_and(|pool| pool.shared.is_some() == shared))
}

pub(super) fn name(ask: &Ask, pool: PoolId) -> Arc<str> {
    ask.view.pool(pool).map_or_else(|| pool.to_string().into(), |pool| pool.name.clone())
}

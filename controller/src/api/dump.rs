//! The dump: the cluster as the placement engine sees it, as text that people, tests and the command line read.
//!
//! Its invariant: all of it is of one revision, and reading it gives the picture that placing would begin with, with
//! the VMs that wait for a place in the order in which they wait. Deliberately absent: secrets, and everything that
//! does not decide a place.

use std::sync::Arc;

use tamdao_model::agency::Agency;
use tamdao_scheduler::from_model;
use tamdao_scheduler::text::Cluster;
use tamdao_store::cache::Cache;
use tamdao_store::view::View;

use super::Api;
use crate::decide::quota;
use crate::engine::{self, Follower};
use crate::refusal::Refusal;

/// A part is sent once it has this length, bytes.
const PART_BYTES: usize = 64 << 10;

impl Api {
    /// The newest picture, in parts of whole lines.
    pub(super) async fn dump(&self) -> Result<Vec<String>, Refusal> {
        self.fresh().await?;
        let shared = self.shared.clone();
        // A large cloud's text takes a while, in which others want to be served.
        let written = tokio::task::spawn_blocking(move || parts(&text(&shared.engine, &shared.cache)));
        written.await.map_err(|error| Refusal::internal(format!("the dump ended early: {error}")))
    }
}

fn text(engine: &Follower, cache: &Cache) -> String {
    let (view, engine) = engine.newest(cache);
    let mut flavors: Vec<_> = view.flavors.iter().map(|flavor| from_model::flavor(flavor)).collect();
    flavors.sort_by(|a, b| a.shape.name.cmp(&b.shape.name));
    let agency = |row: &Agency| {
        let free = quota::free(&view, row).into_iter().collect();
        from_model::agency(row, free, quota::check_open(&view, row.id()).is_err())
    };
    let mut agencies: Vec<_> = view.agencies.iter().map(|row| agency(row)).collect();
    agencies.sort_by(|a, b| a.name.cmp(&b.name));
    let cluster = Cluster { flavors, agencies, ..Cluster::of(engine.picture(), &wants(&view)) };
    let id = view.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default();
    cluster.write(&format!("cluster {id} at revision {}", view.revision))
}

/// What waits for a place, the oldest first. A VM whose volume or network is gone is left out: it asks for nothing
/// that could be said.
fn wants(view: &View) -> Vec<Arc<tamdao_scheduler::VmShape>> {
    let mut waiting: Vec<_> =
        view.vms.iter().filter(|vm| vm.status.node.is_none() && !vm.spec.deleting).collect();
    waiting.sort_by_key(|vm| (vm.meta.create_time, vm.id()));
    waiting.into_iter().filter_map(|vm| engine::shape(view, vm).ok().map(Arc::new)).collect()
}

fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if parts.last().is_some_and(|part| part.len() >= PART_BYTES) {
            parts.push(String::with_capacity(PART_BYTES + line.len()));
        }
        parts.last_mut().expect("there is one from the beginning").push_str(line);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_lines_and_all_of_the_text() {
        let text = "node n1 vcpus=1\n".repeat(10_000);
        let parts = parts(&text);
        assert_eq!(parts.concat(), text);
        assert_eq!(parts.len(), text.len().div_ceil(PART_BYTES));
        assert!(parts.iter().all(|part| part.ends_with('\n') && part.len() < PART_BYTES + 100));
    }
}

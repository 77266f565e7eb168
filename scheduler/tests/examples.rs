//! The cluster files that we hand out are read as written, and do what their comments say they show.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use tamdao_scheduler::check::check;
use tamdao_scheduler::text::Cluster;

fn examples() -> Vec<(String, Cluster)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cluster"));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let cluster = Cluster::parse(&fs::read_to_string(&path).unwrap());
        (name.clone(), cluster.unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_example_reads_back_equal() {
    let examples = examples();
    assert!(examples.len() >= 2);
    for (name, cluster) in examples {
        assert!(!cluster.flavors.is_empty(), "{name} has no flavor to ask for");
        assert_eq!(Cluster::parse(&cluster.to_string()).unwrap(), cluster, "{name}");
        assert_eq!(Cluster::parse(&cluster.write("a comment")).unwrap(), cluster, "{name}");
    }
}

/// What is written as running keeps every rule: it could have been placed so.
#[test]
fn every_example_keeps_the_rules() {
    for (name, cluster) in examples() {
        let vms = cluster.vms.iter().flat_map(|(vm, nodes)| nodes.iter().map(move |node| (vm, *node)));
        let steps: Vec<_> = vms
            .map(|(vm, (node, cells))| tamdao_scheduler::check::Step::Assign { vm: vm.clone(), node, cells })
            .collect();
        let mut bare = cluster.clone();
        bare.vms.clear();
        let breaches = check(&bare.view().unwrap(), &steps);
        assert!(breaches.is_ok(), "{name}: {:?}", breaches.unwrap_err());
    }
}

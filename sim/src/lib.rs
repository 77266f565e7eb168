//! The seeded simulation: the product's controllers, agents' decisions and keepers over a simulated network, clock,
//! storage and hypervisor, in one thread, with faults that a seed draws. One seed is one history, whole and for ever.
//!
//! Deliberately absent: real time, real files, and openraft, whose semantics are injected (`quorum`).

pub mod agent;
pub mod bmc;
pub mod chance;
pub mod check;
pub mod controller;
pub mod faults;
pub mod hands;
pub mod host;
pub mod line;
pub mod quorum;
pub mod store;
pub mod swarm;
pub mod tasks;
pub mod work;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tamdao_model::agency::{Agency, AgencySpec};
use tamdao_model::network::{AddressRange, Network, NetworkSpec, Provider, Subnet};
use tamdao_model::node::{Node, NodeSpec, NodeStatus};
use tamdao_model::pool::{Pool, PoolKind, PoolSpec};
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::{AgencyId, ClusterId, Meta, Name, NetworkId, PoolId, TimeMs};
use tamdao_seams::{Mutant, choose, draw_ids};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use uuid::Uuid;

use bmc::Bmcs;
use check::Breach;
use host::Host;
use world::{Event, World, node_id};

/// After so much silence a node is unreachable.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// For how long a node whose link flaps has to be heard before it takes VMs again.
pub const STEADY: Duration = Duration::from_secs(40);
/// How long a storage lease is, and what its watchdog may take.
pub const LEASE_MS: u64 = 6_000;
pub const WATCHDOG_MS: u64 = 1_000;
/// For so long things go wrong, and for so long they have to come right.
const TROUBLE_MS: u64 = 60_000;
const CALM_MS: u64 = 420_000;
/// How often it is looked whether they have.
const LOOK_MS: u64 = 5_000;

pub const AGENCY: AgencyId = AgencyId(Uuid::from_u128(0xA));
pub const NETWORK: NetworkId = NetworkId(Uuid::from_u128(0xB));
pub const SHARED: PoolId = PoolId(Uuid::from_u128(0xC1));
pub const LOCAL: PoolId = PoolId(Uuid::from_u128(0xC2));

/// The part of an id that people read.
pub fn short(id: Uuid) -> String {
    id.simple().to_string()[..6].to_owned()
}

/// What became of one seed.
pub struct History {
    pub breach: Option<Breach>,
    pub events: u64,
    /// Commits of the store.
    pub revision: u64,
    pub story: Vec<String>,
}

/// Lives one history through.
pub fn live(seed: u64, mutant: Option<Mutant>, keep_story: bool) -> History {
    choose(mutant);
    draw_ids(Some(seed));
    let history = History::of(World::found(seed, keep_story));
    choose(None);
    draw_ids(None);
    history
}

impl History {
    fn of(mut world: World) -> Self {
        world.run_until(TROUBLE_MS);
        if world.breach.is_none() {
            world.heal_all();
        }
        while world.breach.is_none() && !world.is_converged() && world.now_ms < TROUBLE_MS + CALM_MS {
            world.run_until(world.now_ms + LOOK_MS);
        }
        world.check_converged();
        let revision = world.truth.view().revision.0;
        Self { breach: world.breach, events: world.events, revision, story: world.story.unwrap_or_default() }
    }
}

impl World {
    /// A cluster with its records, three controllers and some nodes, all off.
    fn found(seed: u64, keep_story: bool) -> Self {
        let mut world = Self::new(seed, keep_story);
        let nodes = 4 + world.chance.index(5);
        let guarded = world.chance.one_in(2);
        let skewed = world.chance.one_in(2);
        for at in 0..nodes {
            let rack = if skewed { ["r1", "r1", "r2"][world.chance.index(3)] } else { ["r1", "r2"][at % 2] };
            let watchdog = !world.chance.one_in(4);
            let ppm = world.chance.between(992_000, 1_008_000);
            world.nodes.push(Host::new(at, rack, ppm, watchdog));
        }
        world.bmcs = Bmcs::draw(seed, nodes);
        let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
        records(&mut draft, &world.nodes, &world.bmcs, guarded);
        let founded = world.truth.apply(draft.into_txn([]));
        founded.expect("an empty store takes the first records");
        for controller in 0..3 {
            world.start_controller(controller);
        }
        world.elect(0);
        for node in 0..nodes {
            let delay = world.chance.between(0, 1_000);
            world.plan(delay, Event::Boot { node });
        }
        world.plan(500, Event::Election);
        world.plan(4_000, Event::Work);
        world.plan(9_000, Event::Fault);
        world
    }
}

fn meta(id: impl Into<Uuid>, name: &str) -> Meta {
    Meta::new(id, Name::new(name).expect("the names here are names"), TimeMs(1))
}

fn records(draft: &mut Draft, nodes: &[Host], bmcs: &Bmcs, guarded: bool) {
    draft.create(Agency { meta: meta(AGENCY, "health"), spec: AgencySpec::default() });
    let first = std::net::IpAddr::from([10, 0, 0, 1]);
    let range = AddressRange { first, last: std::net::IpAddr::from([10, 0, 0, 250]) };
    let cidr = ipnet::IpNet::new(std::net::IpAddr::from([10, 0, 0, 0]), 24).expect("24 is a length of IPv4");
    draft.create(Network {
        meta: meta(NETWORK, "lan"),
        agency: None,
        spec: NetworkSpec {
            provider: Provider::Bridge { bridge: "br0".into() },
            subnets: vec![Subnet { cidr, gateway: None, ranges: vec![range] }],
            mtu: 1_500,
            dns_servers: Vec::new(),
        },
    });
    for (id, name, shared) in [(SHARED, "san", true), (LOCAL, "disk", false)] {
        let spec = PoolSpec {
            kind: PoolKind::Dir,
            shared,
            path: format!("/{name}"),
            nodes: BTreeSet::new(),
            overcommit_percent: 100,
            reserve_mib: 0,
        };
        draft.create(Pool { meta: meta(id, name), spec });
    }
    let mut policy = SchedulingPolicy::of(ClusterId(Uuid::from_u128(0xE)), TimeMs(1));
    if guarded {
        policy.spec.guarded_failure_domains.insert("rack".into());
    }
    draft.create(policy);
    for (at, host) in nodes.iter().enumerate() {
        let racks = BTreeSet::from([host.rack.to_owned()]);
        let spec = NodeSpec {
            failure_domains: BTreeMap::from([("rack".to_owned(), racks)]),
            cpu_overcommit_percent: 200,
            bmcs: bmcs.manners[at].iter().map(|_| bmc::record(&controller::key(), at)).collect(),
            ..NodeSpec::default()
        };
        draft.create(Node { meta: meta(node_id(at), &host.name), spec, status: NodeStatus::default() });
    }
}

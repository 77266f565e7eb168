//! What is wrong with the records of a backup, beyond what its checksum says: each must be readable by this version,
//! and what refers to a record must find it.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tamdao_model::Stored;
use tamdao_model::address::Address;
use tamdao_model::agency::{Agency, Usage};
use tamdao_model::applied::Applied;
use tamdao_model::assignment::Assignment;
use tamdao_model::audit::Audit;
use tamdao_model::cluster::{Cluster, Controller, JoinToken, Request};
use tamdao_model::event::Event;
use tamdao_model::flavor::Flavor;
use tamdao_model::image::Image;
use tamdao_model::moves::Move;
use tamdao_model::network::Network;
use tamdao_model::node::Node;
use tamdao_model::placement_group::PlacementGroup;
use tamdao_model::pool::Pool;
use tamdao_model::recovery::Finding;
use tamdao_model::role_binding::RoleBinding;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::token::Token;
use tamdao_model::vm::Vm;
use tamdao_model::volume::Volume;

use crate::file::Entry;

/// The leader's own record, which is the store's and no resource.
const LEADER: &str = "/leader";

/// As the store has it: the record beside the transaction that wrote it.
#[derive(Deserialize)]
struct Envelope<T> {
    record: T,
}

/// One kind: its name, and why a value is not of it.
type Reader = (&'static str, fn(&[u8]) -> Option<String>);

macro_rules! kinds {
    ($($type:ty),* $(,)?) => {
        &[$((<$type as Stored>::KIND, why_not::<$type>)),*]
    };
}

/// Every kind of record.
pub const KINDS: &[Reader] = kinds![
    Address,
    Agency,
    Applied,
    Assignment,
    Audit,
    Cluster,
    Controller,
    Event,
    Finding,
    Flavor,
    Image,
    JoinToken,
    Move,
    Network,
    Node,
    PlacementGroup,
    Pool,
    Request,
    RoleBinding,
    SchedulingPolicy,
    Token,
    Usage,
    Vm,
    Volume,
];

fn why_not<T: DeserializeOwned>(value: &[u8]) -> Option<String> {
    serde_json::from_slice(value)
        .map(|envelope: Envelope<T>| envelope.record)
        .err()
        .map(|error| error.to_string())
}

/// Everything that is wrong, in the order of the keys; nothing if all is well.
pub fn faults(entries: &[Entry]) -> Vec<String> {
    let keys: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    let mut faults = Vec::new();
    for entry in entries.iter().filter(|entry| entry.key != LEADER) {
        let mut parts = entry.key.split('/').skip(1);
        let kind = parts.next().unwrap_or_default();
        let fault = match kind {
            "name" => {
                let of = parts.next().unwrap_or_default();
                let id = String::from_utf8_lossy(&entry.value);
                (!keys.contains(format!("/{of}/{id}").as_str()))
                    .then(|| format!("names {of} {id}, which is not there"))
            }
            kind => match KINDS.iter().find(|(known, _)| *known == kind) {
                Some((_, why_not)) => why_not(&entry.value),
                None => Some("is of a kind that this version does not know".to_owned()),
            },
        };
        faults.extend(fault.map(|fault| format!("{}: {fault}", entry.key)));
    }
    if !keys.contains("/cluster/self") {
        faults.push("/cluster/self: is not there".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.into(), value: value.to_owned().into(), create_revision: 1, mod_revision: 1 }
    }

    #[test]
    fn what_cannot_be_read_or_found_is_told() {
        let usage = "{\"txn\":\"00000000-0000-0000-0000-000000000001\",\"record\":{\"agency\":\
            \"00000000-0000-0000-0000-000000000002\"}}";
        let good = entry("/usage/00000000-0000-0000-0000-000000000002", usage);
        let told = faults(&[
            entry("/cluster/self", "{}"),
            entry("/leader", "anything"),
            entry("/name/vm/a/web", "gone"),
            entry("/spaceship/1", "{}"),
            good.clone(),
            entry("/vm/1", usage),
        ]);
        assert_eq!(told.len(), 4, "{told:#?}");
        assert!(told[0].starts_with("/cluster/self: ") && told[1].contains("names vm gone"));
        assert!(told[2].contains("does not know") && told[3].starts_with("/vm/1: "));
        assert_eq!(faults(&[good]), ["/cluster/self: is not there"]);
    }
}

//! Why a VM has no place, in the words of its condition: a word for programs and a sentence for its owner. The engine
//! counts nodes; here the groups and the class that speak against them get their names. Names of nodes, other VMs and
//! other agencies are left out, because the owner of the VM reads it.

use tamdao_model::vm::Vm;
use tamdao_scheduler::reason::ReasonKind;
use tamdao_scheduler::survive::guarantee::Refusal;
use tamdao_scheduler::{By, Reason, Rejection};

use crate::reconcile::placer::hold::KEPT;

/// Why a VM was not admitted: the word and the sentence.
pub fn told(vm: &Vm, refusal: &Refusal) -> (&'static str, String) {
    match refusal {
        Refusal::NoPlace(rejection) => tell(vm, rejection),
        Refusal::Unguarded { broken, .. } => {
            ("RoomKeptForFailures", format!("its room is kept for failures: with it, {broken}"))
        }
    }
}

/// The word and the sentence where the rules alone leave no place.
pub fn tell(vm: &Vm, rejection: &Rejection) -> (&'static str, String) {
    let reasons = rejection.by_reason.values().map(|tally| &tally.reason);
    let names: Vec<String> = reasons.filter_map(|reason| name(vm, reason)).collect();
    let mut message = rejection.to_string();
    for name in names {
        message.push_str("; ");
        message.push_str(&name);
    }
    (word(rejection), message)
}

/// What a placed VM was promised and does not have where it is.
pub fn broken(vm: &Vm, reasons: &[Reason]) -> String {
    let each = reasons.iter().map(|reason| match (reason, name(vm, reason)) {
        (Reason::IsolationShared, Some(name)) => format!("{reason}, and {name}"),
        (_, Some(name)) => name,
        (_, None) => reason.to_string(),
    });
    format!("its node breaks a rule: {}", each.collect::<Vec<_>>().join("; "))
}

/// NoRoom where some node lacks nothing but room, for that passes; else what rules out the most nodes.
fn word(rejection: &Rejection) -> &'static str {
    let room = [
        ReasonKind::TooManyVms,
        ReasonKind::NotEnoughDisk,
        ReasonKind::NotEnoughVcpus,
        ReasonKind::NotEnoughMemory,
    ];
    if let Some(reason) = &rejection.cluster {
        return reason.kind().code();
    }
    if rejection.by_reason.is_empty() || room.iter().any(|kind| rejection.by_reason.contains_key(kind)) {
        return "NoRoom";
    }
    // Of equals the first, which is the more structural one.
    let most = rejection.by_reason.iter().rev().max_by_key(|(_, tally)| tally.nodes);
    most.map_or("NoRoom", |(kind, _)| kind.code())
}

/// What a rule that others take part in is called, and what it asks for.
fn name(vm: &Vm, reason: &Reason) -> Option<String> {
    let place = |by: &By| match by {
        By::Node => "on one node".to_owned(),
        By::Domain(key) => format!("in one {key}"),
    };
    match reason {
        Reason::TooCrowded { group, by, at_most, .. } => {
            Some(format!("group {group} allows {at_most} {}", place(by)))
        }
        Reason::NotTogether { group, by } => Some(format!("group {group} keeps its members {}", place(by))),
        Reason::DomainUnknown { group, key } => {
            Some(format!("group {group} asks for nodes with the failure domain {key}"))
        }
        Reason::LabelForbidden { key, .. } if key == KEPT => {
            Some("a node is kept for a VM that has waited longer".to_owned())
        }
        Reason::IsolationShared => Some(match &vm.spec.isolation_class {
            Some(class) => format!("its isolation class is {class}"),
            None => "it has no isolation class".to_owned(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tamdao_model::vm::Vm;
    use tamdao_model::{Name, TimeMs};
    use tamdao_scheduler::place::place;
    use tamdao_scheduler::text::Cluster;
    use tamdao_store::typed::Draft;
    use uuid::Uuid;

    use super::*;
    use crate::admission::Moment;
    use crate::decide::tests::{AGENCY, request, world};
    use crate::decide::vm_create;

    fn a_vm(class: Option<&str>) -> Vm {
        let mut draft = Draft::new(world(), Uuid::from_u128(2));
        let moment = &mut Moment { now: TimeMs(1_000) };
        let mut request = request(1, 1, 128, 64);
        request.isolation_class = class.map(|class| Name::new(class).unwrap());
        vm_create::create(&mut draft, moment, request, AGENCY, None, "test").unwrap()
    }

    /// What the owner is told of the one VM that a cluster in the engine's text wants.
    fn told(vm: &Vm, cluster: &str) -> (&'static str, String) {
        let cluster = Cluster::parse(&format!("tamdao-cluster 1\n{cluster}")).unwrap();
        let rejection = place(&cluster.view().unwrap(), &cluster.wants[0]).unwrap_err();
        tell(vm, &rejection)
    }

    #[test]
    fn groups_and_classes_are_named() {
        let vm = a_vm(None);
        let crowded = "group web apart=node:1\nnode n1 vcpus=8 memory=8192\nvm a on=n1 vcpus=1 memory=128 group=web\n\
                       want b vcpus=1 memory=128 group=web";
        let (word, message) = told(&vm, crowded);
        assert_eq!(word, "TooCrowded");
        assert_eq!(
            message,
            "no place on the only node: 1 too many members of its group; group web allows 1 on one node"
        );
        let apart = "group web together=domain.rack\nnode n1 vcpus=8 memory=8192\nwant b vcpus=1 memory=128 group=web";
        let (word, message) = told(&vm, apart);
        assert_eq!(word, "DomainUnknown");
        assert!(message.ends_with("group web asks for nodes with the failure domain rack"), "{message}");
        let class = "node n1 vcpus=8 memory=8192\nvm a on=n1 vcpus=1 memory=128 isolation=tax\n\
                     want b vcpus=1 memory=128 isolation=health";
        let (word, message) = told(&a_vm(Some("health")), class);
        assert_eq!(word, "IsolationShared");
        assert!(message.ends_with("its isolation class is health"), "{message}");
    }

    #[test]
    fn where_only_room_is_lacking_somewhere_it_is_room() {
        let cluster = "group web apart=node:1\nnode n1 vcpus=8 memory=8192\nnode n2 vcpus=8 memory=64\n\
                       node n3 vcpus=8 memory=8192\nvm a on=n1 vcpus=1 memory=128 group=web\n\
                       vm c on=n3 vcpus=1 memory=128 group=web\nwant b vcpus=1 memory=128 group=web";
        assert_eq!(told(&a_vm(None), cluster).0, "NoRoom");
    }
}

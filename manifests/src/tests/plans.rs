//! Plans for small manifests, as they are shown.

use insta::assert_snapshot;

use super::*;
use crate::plan::Summary;

const SITE: &str = r##"
tamdao {
  stack = "site"
}

variable "replicas" {
  type    = number
  default = 2
}

locals {
  names = [for n in range(var.replicas) : format("web-%02d", n)]
}

resource "flavor" "small" {
  vcpus      = 1
  memory_mib = 512
}

resource "network" "lan" {
  agency = "health"
  bridge {
    bridge = "br0"
  }
  subnets {
    cidr    = "10.20.0.0/24"
    gateway = cidrhost("10.20.0.0/24", 1)
  }
}

resource "placement_group" "apart" {
  rules {
    kind = "apart"
    by   = "rack"
  }
}

resource "volume" "data" {
  size_mib = 1024
}

resource "vm" "web" {
  for_each         = toset(local.names)
  name             = each.key
  flavor           = flavor.small.name
  placement_groups = [placement_group.apart.name]
  labels           = { tier = "front" }
  disks {
    create {
      image    = "debian-12"
      size_mib = 2048
    }
  }
  interfaces {
    network = network.lan.name
  }
}

resource "vm" "db" {
  vcpus      = 2
  memory_mib = 1024
  user_data  = "#cloud-config\n# first: ${vm.web["web-00"].status.interfaces[0].addresses[0]}"
  disks {
    volume = volume.data.name
  }
}

output "first" {
  value = vm.web["web-00"].name
}

output "db_id" {
  value = vm.db.id
}
"##;

fn site() -> Live {
    let mut live = Live::new();
    apply(&plan(SITE, &live.clone()), &mut live);
    for (place, vm) in live.iter_mut().filter(|(place, _)| place.kind == "vm") {
        vm["status"]["interfaces"] =
            json!([{"network": "lan", "mac": "52:54:00:00:00:00", "addresses": ["10.20.0.9/24"]}]);
        assert!(vm["spec"].get("user_data").is_none(), "{place} shows a secret");
    }
    live
}

#[test]
fn a_new_site_is_added() {
    assert_snapshot!(crate::show(&plan(SITE, &Live::new())));
}

#[test]
fn what_is_applied_is_not_planned_again() {
    let plan = plan(SITE, &site());
    assert!(plan.is_empty(), "{}", crate::show(&plan));
}

#[test]
fn changes_are_shown_old_and_new() {
    let changed = SITE
        .replace("size_mib = 2048", "size_mib = 4096")
        .replace(r#"tier = "front""#, r#"tier = "back""#)
        .replace("vcpus      = 2", "vcpus      = 4");
    assert_snapshot!(crate::show(&plan(&changed, &site())));
}

#[test]
fn what_cannot_change_is_replaced_with_what_uses_it() {
    let changed = SITE.replace(r#"bridge = "br0""#, r#"bridge = "br1""#);
    let plan = plan(&changed, &site());
    assert_snapshot!(crate::show(&plan));
    let allowed = Default::default();
    let losing: Vec<&str> = plan.withheld(&allowed).map(|change| change.address.as_str()).collect();
    assert_eq!(losing, [r#"vm.web["web-00"]"#, r#"vm.web["web-01"]"#]);
    let mut live = site();
    apply(&plan, &mut live);
}

#[test]
fn a_replaced_volume_takes_its_vm_with_it() {
    let changed = SITE.replace("size_mib = 1024\n", "size_mib = 512\n");
    let plan = plan(&changed, &site());
    let replaced: Vec<_> =
        actions(&plan).into_iter().filter(|(_, action)| *action != Action::Nothing).collect();
    assert_eq!(replaced, [("volume.data".into(), Action::Replace), ("vm.db".into(), Action::Replace)]);
    let mut live = site();
    apply(&plan, &mut live);
}

#[test]
fn what_is_taken_out_is_destroyed_and_nothing_else() {
    let mut live = site();
    // A volume that no stack has stays, whatever happens.
    let at = Place { kind: "volume".into(), agency: "health".into(), name: "other".into() };
    live.insert(
        at.clone(),
        json!({"metadata": {"name": "other", "agency": "health"}, "spec": {"size_mib": 7}}),
    );
    let fewer = SITE.replace("default = 2", "default = 1");
    let changes = actions(&plan(&fewer, &live));
    assert!(changes.contains(&("vm.web-01".into(), Action::Destroy)), "{changes:?}");
    assert_eq!(changes.iter().filter(|(_, action)| *action != Action::Nothing).count(), 1);
    let wish = Wish { destroy: true, ..Wish::default() };
    let all = planned(&manifest(SITE), &live, &wish).unwrap();
    assert_eq!(all.summary, Summary { add: 0, change: 0, destroy: 7 });
    apply(&all, &mut live);
    assert_eq!(live.keys().collect::<Vec<_>>(), [&at]);
}

#[test]
fn where_a_vm_runs_is_no_difference() {
    let mut live = site();
    for resource in live.iter_mut().filter(|(place, _)| place.kind == "vm").map(|(_, vm)| vm) {
        resource["status"]["node"] = json!("n9");
        resource["status"]["phase"] = json!("VM_PHASE_STOPPED");
    }
    assert!(plan(SITE, &live).is_empty());
}

#[test]
fn a_stack_has_only_what_is_its_own() {
    let manifest = manifest(SITE);
    let mut live = site();
    stray(&mut live, "flavor", "small", Some("other"));
    let told = planned(&manifest, &live, &Wish::default()).unwrap_err();
    assert!(told.contains(r#"flavor small belongs to stack "other""#), "{told}");
    stray(&mut live, "flavor", "small", None);
    let told = planned(&manifest, &live, &Wish::default()).unwrap_err();
    assert!(told.contains("--adopt 'flavor.small'"), "{told}");
    let wish = Wish { adopt: ["flavor.small".to_owned()].into(), ..Wish::default() };
    let plan = planned(&manifest, &live, &wish).unwrap();
    assert_eq!(plan.summary, Summary { add: 0, change: 1, destroy: 0 });
    apply(&plan, &mut live);
    assert!(self::plan(SITE, &live).is_empty());
}

#[test]
fn lifecycle_and_protection_are_kept() {
    let live = site();
    let kept = SITE
        .replace("  size_mib = 1024\n", "  size_mib = 512\n  lifecycle {\n    prevent_destroy = true\n  }\n");
    let told = planned(&manifest(&kept), &live, &Wish::default()).unwrap_err();
    assert!(told.contains("which its lifecycle prevents"), "{told}");
    let ignored = SITE.replace(r#"tier = "front""#, r#"tier = "back""#).replace(
        "  flavor           =",
        "  lifecycle {\n    ignore_changes = [labels]\n  }\n  flavor           =",
    );
    let plan = plan(&ignored, &live);
    assert!(plan.is_empty(), "{}", crate::show(&plan));
    let mut protected = site();
    for (place, vm) in protected.iter_mut() {
        if place.name == "db" {
            vm["spec"]["delete_protection"] = json!(true);
        }
    }
    let wish = Wish { destroy: true, ..Wish::default() };
    let told = planned(&manifest(SITE), &protected, &wish).unwrap_err();
    assert!(told.contains("vm.db is protected from deletion"), "{told}");
}

#[test]
fn modules_are_evaluated_with_their_own_names() {
    let root = "tamdao {\n  stack = \"s\"\n}\nmodule \"one\" {\n  source = \"./pair\"\n  name = \"x\"\n}\n\
                resource \"flavor\" \"after\" {\n  name = \"after-${module.one.last}\"\n  vcpus = 1\n  memory_mib = 64\n}\n";
    let pair = "variable \"name\" {\n  type = string\n}\nresource \"flavor\" \"f\" {\n  count = 2\n  \
                name = \"${var.name}-${count.index}\"\n  vcpus = 1\n  memory_mib = 64\n}\n\
                output \"last\" {\n  value = flavor.f[1].name\n}\n";
    let manifest = read(&[("main.tf", root), ("pair/main.tf", pair)]).unwrap();
    let plan = planned(&manifest, &Live::new(), &Wish::default()).unwrap();
    let made: Vec<_> =
        plan.changes.iter().map(|change| format!("{} {}", change.address, change.place.name)).collect();
    assert_eq!(made, ["module.one.flavor.f[0] x-0", "module.one.flavor.f[1] x-1", "flavor.after after-x-1"]);
    assert_eq!(plan.changes[2].waits.iter().collect::<Vec<_>>(), ["module.one.flavor.f"]);
}

#[test]
fn sensitive_values_are_not_shown() {
    let text = "tamdao {\n  stack = \"s\"\n}\nvariable \"key\" {\n  sensitive = true\n  default = \"hunter2\"\n}\n\
                resource \"agency\" \"a\" {\n  contact = \"call ${var.key}\"\n}\noutput \"key\" {\n  value = var.key\n}\n";
    let shown = crate::show(&plan(text, &Live::new()));
    assert!(!shown.contains("hunter2") && shown.contains("(sensitive)"), "{shown}");
    assert!(!serde_json::to_string(&plan(text, &Live::new())).unwrap().contains("hunter2"));
}

#[test]
fn what_goes_of_one_agency_is_not_called_as_what_stays_of_another() {
    let text = |agencies: &str| {
        format!(
            "tamdao {{\n  stack = \"s\"\n}}\nresource \"vm\" \"web\" {{\n  for_each = toset([{agencies}])\n  \
             name = \"web\"\n  agency = each.key\n  vcpus = 1\n  memory_mib = 512\n  disks {{\n    create {{\n      \
             size_mib = 64\n    }}\n  }}\n}}\n"
        )
    };
    let mut live = Live::new();
    apply(&plan(&text(r#""a", "b", "c""#), &live), &mut live);
    let fewer = plan(&text(r#""c""#), &live);
    // Consent to lose one of them is no consent to lose the other.
    let withheld: Vec<_> = fewer.withheld(&[].into()).map(|change| change.address.clone()).collect();
    assert_eq!(withheld, ["vm.a/web", "vm.b/web"]);
    let allowed = ["vm.a/web".to_owned()].into();
    assert_eq!(fewer.withheld(&allowed).count(), 1);
}

#[test]
fn quotas_shrink_from_below_and_grow_from_above() {
    let text = |parent: u32, children: &[(&str, u32)]| {
        let mut text = format!(
            "tamdao {{\n  stack = \"s\"\n}}\nresource \"agency\" \"top\" {{\n  quota = {{ vms = {parent} }}\n}}\n"
        );
        for (name, vms) in children {
            text.push_str(&format!(
                "resource \"agency\" \"{name}\" {{\n  parent = agency.top.name\n  quota = {{ vms = {vms} }}\n}}\n"
            ));
        }
        text
    };
    let mut live = Live::new();
    apply(&plan(&text(10, &[("a", 5), ("b", 5)]), &live), &mut live);
    let order = |plan: &Plan| {
        let steps = crate::steps(plan).expect("the steps have an order");
        let before = |step: usize| {
            // All that must be done before it.
            let (mut all, mut open) = (Vec::new(), vec![step]);
            while let Some(next) = open.pop() {
                all.push(next);
                open.extend(&steps[next].after);
            }
            all
        };
        let number = |name: &str| {
            let of = |what: &crate::What| match what {
                crate::What::Make(at) | crate::What::Update(at) | crate::What::Delete(at) => {
                    plan.changes[*at].place.name == name
                }
                crate::What::Block => false,
            };
            steps.iter().position(|step| of(&step.what)).expect("it has a step")
        };
        let (top, a, b) = (number("top"), number("a"), number("b"));
        (
            before(top).contains(&a) && before(top).contains(&b),
            before(a).contains(&top) && before(b).contains(&top),
        )
    };
    assert_eq!(
        order(&plan(&text(3, &[("a", 3)]), &live)),
        (true, false),
        "one shrinks and one goes, then the top"
    );
    assert_eq!(order(&plan(&text(20, &[("a", 9), ("b", 9)]), &live)), (false, true), "the top grows first");
}

//! What is exported, as it is written: references, names that two agencies use, volumes that came with their VMs, and
//! nothing that is as it would be anyway.

use super::*;

/// All that stack `s` has, as its manifest.
pub fn exported(live: &Live) -> String {
    let of_stack = live.iter().filter(|(_, is)| is["metadata"]["labels"][STACK] == "s");
    crate::export("s", &of_stack.map(|(place, _)| place.clone()).collect(), live).expect("it can be read")
}

/// A text as the description of an agency, after it was exported and evaluated.
pub fn read_back(text: &str) -> String {
    let place = Place { kind: "agency".into(), agency: String::new(), name: "a".into() };
    let labels = json!({"tamdao.vn/stack": "s"});
    let is = json!({"metadata": {"name": "a", "labels": labels}, "spec": {"description": text}});
    let written = exported(&Live::from([(place, is)]));
    let expanded = crate::expand(&manifest(&written), &inputs(&Live::new())).unwrap_or_else(|faults| {
        panic!("{written}\n{faults:?}");
    });
    let read = &expanded.resources[0].says.json["spec"]["description"];
    read.as_str().unwrap_or_default().to_owned()
}

const OFFICES: &str = r#"
tamdao {
  stack = "s"
}

resource "agency" "dept" {
  display_name = "Sở Y tế"
  description  = "0"
  quota        = { vms = 20, "flavor_class/database" = 0 }
}

resource "agency" "clinic" {
  parent = agency.dept.name
  quota  = { vms = 2, "flavor_class/database" = 0 }
}

resource "pool" "san" {
  kind   = "dir"
  path   = "/san"
  shared = true
}

resource "network" "lan" {
  for_each = { dept = 7, clinic = 8 }
  name     = "lan"
  agency   = each.key
  vlan {
    bridge = "br0"
    tag    = each.value
  }
  depends_on = [agency.dept, agency.clinic]
}

resource "placement_group" "pair" {
  agency = agency.dept.name
  rules {
    kind = "apart"
    by   = "rack"
  }
  rules {
    kind      = "apart"
    preferred = true
  }
}

resource "volume" "records" {
  agency   = agency.dept.name
  size_mib = 2048
  pool     = pool.san.name
}

resource "vm" "web" {
  for_each         = network.lan
  name             = "web"
  agency           = each.value.agency
  vcpus            = 2
  memory_mib       = 2048
  labels           = { tier = "front" }
  node_labels      = { zero = "0" }
  ssh_keys         = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE9xZ0Z0T0JtZ0Z0T0JtZ0Z0T0JtZ0Z0T0JtZ0Z0T0Jt a"]
  maintenance      = "shut_down"
  placement_groups = each.key == "dept" ? [placement_group.pair.name] : []
  disks {
    create {
      image    = "debian-12"
      size_mib = 10240
      pool     = pool.san.name
    }
  }
  interfaces {
    network = each.value.name
  }
}

resource "vm" "db" {
  agency     = agency.dept.name
  vcpus      = 2
  memory_mib = 2048
  disks {
    volume = volume.records.name
  }
}
"#;

#[test]
fn an_export_is_what_a_user_would_have_written() {
    let mut live = Live::new();
    apply(&plan(OFFICES, &live), &mut live);
    let text = exported(&live);
    insta::assert_snapshot!("export", text);
    let again = plan(&text, &live);
    assert!(again.is_empty(), "{}", crate::show(&again));
    // And it makes the same in an empty cloud, in an order in which nothing is missing.
    let mut elsewhere = Live::new();
    apply(&plan(&text, &elsewhere), &mut elsewhere);
    assert_eq!(exported(&elsewhere), text);
    let again = plan(OFFICES, &elsewhere);
    assert!(again.is_empty(), "{}", crate::show(&again));
}

#[test]
fn what_two_agencies_call_alike_has_two_names_in_the_file() {
    let mut live = Live::new();
    apply(&plan(OFFICES, &live), &mut live);
    let text = exported(&live);
    for block in ["resource \"vm\" \"web_dept\"", "resource \"vm\" \"web_clinic\"", "resource \"vm\" \"db\""]
    {
        assert!(text.contains(block), "{block} is missing in:\n{text}");
    }
    assert!(!text.contains("web-0"), "a volume that came with its VM is that VM's disk:\n{text}");
}

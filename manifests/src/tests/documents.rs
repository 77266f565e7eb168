//! YAML and JSON in the API's own form mean what the same blocks mean, and what is wrong is told where it stands.

use super::*;

const SITE: &str = r##"stack: site
---
kind: vm
metadata:
  name: web
  labels: {version: 1.10, answer: no}
spec:
  flavor: mini
  user_data: |
    #cloud-config
  disks:
    - create: {image: debian-12, size_mib: 2048}
    - volume: data
  interfaces:
    - network: lan
---
kind: flavor
metadata: {name: mini, id: shown-and-not-read, revision: "7"}
spec: {vcpus: 1, memory_mib: 512}
status: {phase: whatever}
---
kind: volume
metadata: {name: data}
spec: {size_mib: "64"}
---
kind: network
metadata: {name: lan, agency: health}
spec:
  bridge: {bridge: br0}
"##;

const BLOCKS: &str = r##"
tamdao {
  stack = "site"
}

resource "vm" "web" {
  labels    = { version = "1.10", answer = "no" }
  flavor    = flavor.mini.name
  user_data = "#cloud-config\n"
  disks {
    create {
      image    = "debian-12"
      size_mib = 2048
    }
  }
  disks {
    volume = volume.data.name
  }
  interfaces {
    network = network.lan.name
  }
}

resource "flavor" "mini" {
  vcpus      = 1
  memory_mib = 512
}

resource "volume" "data" {
  size_mib = 64
}

resource "network" "lan" {
  agency = "health"
  bridge {
    bridge = "br0"
  }
}
"##;

fn document(name: &str, text: &str) -> Result<Manifest, String> {
    read(&[(name, text)])
}

/// The faults of a document as they are told.
fn wrong(name: &str, text: &str) -> String {
    match document(name, text) {
        Err(told) => told,
        Ok(manifest) => match crate::validate(&manifest, &inputs(&Live::new())) {
            Err(faults) => crate::tell(&manifest.files, &crate::in_order(&faults)),
            Ok(_) => "nothing is wrong\n".to_owned(),
        },
    }
}

#[test]
fn documents_mean_what_the_same_blocks_mean() {
    let documents = document("site.yaml", SITE).unwrap_or_else(|told| panic!("{told}"));
    let (plan, blocks) =
        (planned(&documents, &Live::new(), &Wish::default()).unwrap(), plan(BLOCKS, &Live::new()));
    let wanted = |plan: &Plan| {
        plan.changes
            .iter()
            .map(|change| (change.address.clone(), change.wanted.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(wanted(&plan), wanted(&blocks));
    // What a resource names is made before it, though it stands behind it.
    let order: Vec<&str> = plan.changes.iter().map(|change| change.address.as_str()).collect();
    assert_eq!(order.last(), Some(&"vm.web"), "{order:?}");
    let mut live = Live::new();
    apply(&plan, &mut live);
    let again = planned(&documents, &live, &Wish::default()).unwrap();
    assert!(again.is_empty(), "{}", crate::show(&again));
    assert!(self::plan(BLOCKS, &live).is_empty());
}

#[test]
fn json_is_the_same_in_one_document() {
    let text = r#"{"stack": "site", "resources": [
  {"kind": "flavor", "metadata": {"name": "mini"}, "spec": {"vcpus": 1, "memory_mib": 512}},
  {"kind": "vm", "metadata": {"name": "web", "agency": "health"}, "spec": {"flavor": "mini"},
   "lifecycle": {"prevent_destroy": true, "ignore_changes": ["labels"]}},
  {"kind": "vm", "metadata": {"name": "web", "agency": "tax"}, "spec": {"flavor": "mini"}}
]}"#;
    let manifest = document("site.json", text).unwrap_or_else(|told| panic!("{told}"));
    let plan = planned(&manifest, &Live::new(), &Wish::default()).unwrap();
    let addresses: Vec<&str> = plan.changes.iter().map(|change| change.address.as_str()).collect();
    assert_eq!(addresses, ["flavor.mini", "vm.tax/web", "vm.web"]);
    assert_eq!(plan.changes[2].ignored, ["labels"]);
    let mut live = Live::new();
    apply(&plan, &mut live);
    let told = planned(&manifest, &live, &Wish { destroy: true, ..Wish::default() }).unwrap_err();
    assert!(told.contains("lifecycle prevents") && told.contains("site.json:3"), "{told}");
}

#[test]
fn what_is_wrong_is_told_where_it_stands() {
    let told: Vec<String> = [
        "stack: site\n---\nkind: vm\nmetadata: {name: web}\nspec:\n  flavor: mini\n  disks:\n    - craete: {size_mib: 1}\n",
        "stack: site\n---\nkind: vmm\nmetadata: {name: web}\n",
        "stack: site\n---\nkind: vm\nmetadata: {name: web}\nspec: {vcpus: two, memory_mib: 512}\n",
        "stack: site\n---\nkind: vm\nmetadata: {name: web}\nspec: {vcpus: 1, memory_mib: 512, run: allways}\n",
        "stack: site\n---\nkind: vm\nmetadata: {name: web}\nspec: {vcpus: 1, memory_mib: 1}\n",
        "stack: site\n---\nkind: vm\nmetadata: {name: web, lables: {}}\nspec: {vcpus: 1, memory_mib: 512}\n",
        "stack: site\nresources: [\n",
        "stack: site\n---\nkind: vm\nkind: vm\n",
        "stack: &a site\n",
        "- a\n- b\n",
    ]
    .iter()
    .map(|text| wrong("site.yaml", text))
    .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn no_document_takes_long_or_much() {
    // Each would be millions by other readers, or deeper than a stack.
    for text in [
        format!("stack: {}", "[".repeat(100_000)),
        format!("stack:\n{}", (0..1_000).map(|at| format!("{}a:\n", " ".repeat(at))).collect::<String>()),
        (0..100_000).map(|at| format!("k{at}: v\n")).collect::<String>(),
        "a: &a [x,x]\nb: &b [*a,*a]\n".to_owned(),
    ] {
        assert!(wrong("site.yaml", &text).contains("error"));
    }
}

#[test]
fn the_example_is_right() {
    assert_eq!(
        wrong("portal.yaml", include_str!("../../../deploy/examples/portal.yaml")),
        "nothing is wrong\n"
    );
}

//! What holds for every manifest: a plan that was applied is empty when it is made again, the steps have an order in
//! which nothing is missing and nothing is taken away from under its users, the normal form is its own normal form, and
//! no bytes make any of it panic.

use proptest::prelude::*;

use super::*;

/// A VM's block, by what may be in it.
#[derive(Debug, Clone)]
struct Wanted {
    vms: Vec<(u8, u8, u8, u8, bool)>,
    bridge: u8,
    volume: u16,
    flavor: u8,
    grouped: bool,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let vm = (0u8..3, 1u8..4, 1u8..4, 0u8..4, any::<bool>());
    (prop::collection::vec(vm, 0..4), 0u8..2, 1u16..4, 1u8..3, any::<bool>())
        .prop_map(|(vms, bridge, volume, flavor, grouped)| Wanted { vms, bridge, volume, flavor, grouped })
}

fn written(wanted: &Wanted) -> String {
    let mut text = format!(
        "tamdao {{\n  stack = \"s\"\n}}\nresource \"flavor\" \"f\" {{\n  vcpus = {}\n  memory_mib = 512\n}}\n\
         resource \"network\" \"n\" {{\n  bridge {{\n    bridge = \"br{}\"\n  }}\n}}\n\
         resource \"volume\" \"v\" {{\n  size_mib = {}\n}}\n",
        wanted.flavor, wanted.bridge, wanted.volume
    );
    if wanted.grouped {
        text.push_str("resource \"placement_group\" \"g\" {\n  rules {\n    kind = \"apart\"\n  }\n}\n");
    }
    for (at, (image, size, cpus, how, holds)) in wanted.vms.iter().enumerate() {
        text.push_str(&format!("resource \"vm\" \"vm{at}\" {{\n"));
        match how {
            0 => text.push_str("  flavor = flavor.f.name\n"),
            _ => text.push_str(&format!("  vcpus = {cpus}\n  memory_mib = 512\n")),
        }
        if *how > 1 {
            text.push_str("  interfaces {\n    network = network.n.name\n  }\n");
        }
        if *how > 2 && wanted.grouped {
            text.push_str("  placement_groups = [placement_group.g.name]\n  priority = 7\n");
        }
        text.push_str(&format!(
            "  disks {{\n    create {{\n      image = \"i{image}\"\n      size_mib = {}\n    }}\n  }}\n",
            u32::from(*size) * 1_024
        ));
        // One VM at most holds the volume.
        if *holds && wanted.vms[..at].iter().all(|(_, _, _, _, other)| !other) {
            text.push_str("  disks {\n    volume = volume.v.name\n  }\n");
        }
        text.push_str("}\n");
    }
    text
}

proptest! {
    #[test]
    fn a_plan_that_was_applied_is_empty(first in wanted(), second in wanted()) {
        let mut live = Live::new();
        for wanted in [&first, &second, &first] {
            let text = written(wanted);
            let plan = plan(&text, &live);
            apply(&plan, &mut live);
            let again = self::plan(&text, &live);
            prop_assert!(again.is_empty(), "{text}\n{}", crate::show(&again));
        }
        // What is exported changes nothing here, and makes the same elsewhere.
        let text = written(&first);
        let exported = exports::exported(&live);
        let again = self::plan(&exported, &live);
        prop_assert!(again.is_empty(), "{exported}\n{}", crate::show(&again));
        let mut elsewhere = Live::new();
        apply(&self::plan(&exported, &elsewhere), &mut elsewhere);
        let again = self::plan(&text, &elsewhere);
        prop_assert!(again.is_empty(), "{exported}\n{}", crate::show(&again));
        let destroy = Wish { destroy: true, ..Wish::default() };
        let all = planned(&manifest(&written(&first)), &live, &destroy).unwrap();
        apply(&all, &mut live);
        prop_assert!(live.is_empty(), "{live:?}");
    }

    #[test]
    fn the_normal_form_is_its_own(wanted in wanted(), blanks in prop::collection::vec(0usize..9, 40)) {
        // The same text with its indentation drawn anew.
        let text: String = written(&wanted).lines().enumerate()
            .map(|(at, line)| format!("{}{}\n", " ".repeat(blanks[at % blanks.len()]), line.trim()))
            .collect();
        let form = |text: &str| crate::format(&File { name: "a.tf".into(), text: text.into() }).unwrap();
        let once = form(&text);
        prop_assert_eq!(form(&once), once.clone());
        prop_assert_eq!(once, form(&written(&wanted)));
    }

    #[test]
    fn a_text_that_is_exported_means_itself(text in "[a$%{}\"\\\\\n\u{1}é]{0,12}") {
        prop_assert_eq!(exports::read_back(&text), text);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        anything(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_words_make_it_panic(words in prop::collection::vec(prop::sample::select(WORDS), 0..60)) {
        let text = words.join(" ");
        anything(&text);
        anything(&format!("tamdao {{\n  stack = \"s\"\n}}\nlocals {{\n  a = {text}\n}}\n"));
        anything(&format!("tamdao {{\n  stack = \"s\"\n}}\nresource \"vm\" \"a\" {{\n{}\n}}\n", words.join("\n")));
    }
}

fn anything(text: &str) {
    let _ = faults(text);
    let file = File { name: "a.tf".into(), text: text.to_owned() };
    if let Ok(once) = crate::format(&file) {
        let again = crate::format(&File { text: once.clone(), ..file }).unwrap();
        assert_eq!(again, once, "{text:?}");
    }
}

const WORDS: &[&str] = &[
    "resource",
    "\"vm\"",
    "\"a\"",
    "{",
    "}",
    "=",
    "vcpus",
    "memory_mib",
    "2",
    "\"${",
    "}\"",
    "var.x",
    "local.a",
    "[",
    "]",
    "(",
    ")",
    ",",
    "for",
    "in",
    "if",
    ":",
    "?",
    "=>",
    "...",
    "*",
    "each.key",
    "count.index",
    "vm.a.id",
    "null",
    "true",
    "-",
    "/",
    "%",
    "0",
    "1e300",
    "disks",
    "create",
    "labels",
    "\n",
    "# x\n",
    "/* {",
    "*/",
    "<<EOT\nx\nEOT\n",
    "format(\"%99d\", 1)",
    "range(9)",
    "join",
    "merge",
    "!",
    "==",
    "&&",
    "lifecycle",
    "for_each",
    "count",
    ".",
    "[*]",
    "substr(\"á\", -9, 99)",
    "cidrsubnet(\"::/0\", 127, 9)",
    "cidrhost(\"0.0.0.0/0\", -1)",
    "flatten([[]])",
    "\"é\"",
];

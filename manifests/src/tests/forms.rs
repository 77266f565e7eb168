//! The normal form of files, the descriptors' kinds and the functions.

use insta::assert_snapshot;

use super::*;
use crate::schema::{self, Owner};

fn formatted(text: &str) -> String {
    crate::format(&File { name: "a.tf".into(), text: text.into() }).unwrap()
}

#[test]
fn the_normal_form() {
    let ugly = "# head\n\n\n\nresource \"vm\" \"a\" {\nvcpus=2\n      memory_mib   =   512 # enough\n  labels = {\n a = 1\n      \
                long = 2\n}\n ssh_keys = [\n\"x\",\n   \"y\" ,\n ]\ndisks {\ncreate {\nimage=\"d\"\n}\n}\n\
                user_data = <<-EOT\n    keep   this\n      as = it is\n  EOT\n}\n/* a\n   comment { */\nlocals {\n a = \"{\"\n}\n\n\n";
    let written = formatted(ugly);
    assert_snapshot!(written);
    assert_eq!(formatted(&written), written);
}

#[test]
fn the_kinds_come_from_the_contract() {
    let kinds: Vec<_> =
        schema::kinds().values().map(|kind| format!("{} {:?}", kind.word, kind.owner)).collect();
    assert_eq!(
        kinds,
        [
            "agency Cluster",
            "flavor Cluster",
            "image Either",
            "network Either",
            "placement_group Agency",
            "pool Cluster",
            "role_binding Either",
            "vm Agency",
            "volume Agency"
        ]
    );
    for kind in schema::kinds().values() {
        for field in kind.fields() {
            let clash =
                ["name", "agency", "display_name", "labels", "count", "for_each", "depends_on", "lifecycle"];
            assert!(!clash.contains(&field.as_str()), "{} has a field {field}", kind.word);
        }
        // Whatever the contract lets users make, the controller's conversions are asked about.
        let place = json!({"metadata": {"name": "x"}, "spec": {}});
        let verdict = judge::create(&kind.word, &place, &Names::default());
        let unknown = verdict.is_err_and(|wrong| wrong.iter().any(|one| one.message.contains("cannot have")));
        assert!(!unknown, "{} is not judged", kind.word);
        assert!(kind.owner != Owner::Agency || kind.word != "agency");
    }
}

#[test]
fn functions_mean_what_terraform_means() {
    for (expression, meaning) in [
        (r#"join("-", ["a", "b"])"#, r#""a-b""#),
        (r#"format("%s-%03d %%", "web", 7)"#, r#""web-007 %""#),
        (r#"cidrsubnet("10.0.0.0/8", 8, 2)"#, r#""10.2.0.0/16""#),
        (r#"cidrhost("10.20.0.0/24", -2)"#, r#""10.20.0.254""#),
        (r#"merge({ a = 1 }, { b = 2 })"#, r#"{"a":1,"b":2}"#),
        (r#"flatten([[1], [2, [3]]])"#, "[1,2,3]"),
        (r#"[for k, v in { a = 1, b = 2 } : "${k}=${v}" if v > 1]"#, r#"["b=2"]"#),
        (r#"{ for s in ["x", "y"] : s => upper(s) }"#, r#"{"x":"X","y":"Y"}"#),
        (r#"{ for s in ["xa", "xb"] : substr(s, 0, 1) => s... }"#, r#"{"x":["xa","xb"]}"#),
        (r#"[{ n = 1 }, { n = 2 }][*].n"#, "[1,2]"),
        (r#"true ? 1 + 2 * 3 : 0"#, "7"),
        (r#"lookup({ a = 1 }, "b", 9)"#, "9"),
        (r#"element(["a", "b"], 3)"#, r#""b""#),
        (r#"toset(["b", "a", "b"])"#, r#"["a","b"]"#),
        (r#"coalesce("", null, "z")"#, r#""z""#),
        (r#"range(1, 8, 3)"#, "[1,4,7]"),
        (r#"slice(["a", "b", "c"], 1, 3)"#, r#"["b","c"]"#),
        (r#"jsondecode(jsonencode({ a = [1] })).a[0]"#, "1"),
        (r#""%{ for s in ["a", "b"] }${s};%{ endfor }""#, r#""a;b;""#),
        (r#"max([1, 5, 3]...)"#, "5"),
    ] {
        let text = format!("tamdao {{\n  stack = \"s\"\n}}\noutput \"o\" {{\n  value = {expression}\n}}\n");
        let plan = plan(&text, &Live::new());
        assert_eq!(plan.outputs["o"].to_string(), meaning, "{expression}");
    }
}

#[test]
fn variables_are_taken_by_their_types() {
    let text = "tamdao {\n  stack = \"s\"\n}\nvariable \"n\" {\n  type = number\n  validation {\n    condition = var.n > 2\n    \
                error_message = \"n is ${var.n}, and must be more than 2\"\n  }\n}\noutput \"n\" {\n  value = var.n + 1\n}\n";
    let manifest = manifest(text);
    let with = |given: &str| {
        let live = Live::new();
        let mut inputs = inputs(&live);
        let value = crate::Given { value: Err(given.to_owned()), origin: "--var".into(), must_exist: true };
        inputs.given.insert("n".into(), value);
        crate::plan(&manifest, &inputs, &Wish::default())
            .map(|plan| plan.outputs["n"].to_string())
            .map_err(|faults| faults[0].message.clone())
    };
    assert_eq!(with("4"), Ok("5".into()));
    assert_eq!(with("1"), Err("variable \"n\": n is 1, and must be more than 2".into()));
    assert!(with("four").unwrap_err().contains("variable \"n\""));
    let told = planned(&manifest, &Live::new(), &Wish::default()).unwrap_err();
    assert!(told.contains("has no value"), "{told}");
}

#[test]
fn the_guide_is_right() {
    let guide = include_str!("../../../docs/manifests.md");
    let example = guide.split("```hcl\n").nth(1).unwrap().split("```").next().unwrap();
    let manifest = manifest(example);
    let live = Live::new();
    let inputs = Inputs { read: &|_| Ok("#cloud-config\n".to_owned()), ..inputs(&live) };
    let expanded = crate::validate(&manifest, &inputs).unwrap();
    assert_eq!(expanded.resources.len(), 3);
    assert_eq!(formatted(example), example, "it is in the normal form");
    let mut functions: Vec<_> = crate::functions::names().collect();
    functions.sort_unstable();
    assert!(guide.contains(&format!("Functions: `{}`.", functions.join(" "))), "{}", functions.join(" "));
}

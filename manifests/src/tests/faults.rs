//! What is wrong is told where it stands, with what was expected and the closest known name.

use insta::assert_snapshot;

use super::faults;

const STACK: &str = "tamdao {\n  stack = \"s\"\n}\n";

fn wrong(text: &str) -> String {
    faults(&format!("{STACK}{text}"))
}

#[test]
fn a_syntax_error_points_at_its_place() {
    assert_snapshot!(wrong("resource \"vm\" \"web\" {\n  vcpus = = 2\n}\n"));
}

#[test]
fn a_wrong_field_names_the_closest_one() {
    assert_snapshot!(wrong("resource \"vm\" \"web\" {\n  vcpu = 2\n  memory_mib = 512\n}\n"));
}

#[test]
fn a_wrong_reference_names_the_closest_one() {
    assert_snapshot!(wrong(
        "resource \"flavor\" \"small\" {\n  vcpus = 1\n  memory_mib = 512\n}\n\
         resource \"vm\" \"web\" {\n  flavor = flavor.smal.name\n}\n"
    ));
}

#[test]
fn wrong_kinds_types_and_enums() {
    assert!(wrong("resource \"vmm\" \"a\" {}\n").contains("did you mean \"vm\"?"));
    assert_snapshot!(wrong(
        "resource \"vm\" \"a\" {\n  vcpus = \"two\"\n  memory_mib = 512\n  run = \"alway\"\n}\n"
    ));
}

#[test]
fn what_the_controller_would_refuse_is_found_offline() {
    assert_snapshot!(wrong(
        "resource \"vm\" \"a\" {\n  vcpus = 300\n  memory_mib = 512\n  disks {\n    create {\n      image = \"No Name\"\n    }\n  }\n}\n"
    ));
}

#[test]
fn a_circle_is_a_fault() {
    assert_snapshot!(wrong("locals {\n  a = local.b\n  b = local.a\n}\n"));
}

#[test]
fn names_must_differ() {
    let told = wrong("resource \"flavor\" \"f\" {\n  count = 2\n  vcpus = 1\n  memory_mib = 512\n}\n");
    assert!(told.contains("flavor.f[1] is the flavor f that flavor.f[0] is already"), "{told}");
}

#[test]
fn too_much_is_a_fault_and_ends_soon() {
    // Each local doubles the one before it: 2^40 bytes, were they made.
    let mut text = "locals {\n  a0 = \"0123456789\"\n".to_owned();
    for n in 1..40 {
        text.push_str(&format!("  a{n} = \"${{local.a{m}}}${{local.a{m}}}\"\n", m = n - 1));
    }
    text.push_str("}\n");
    assert!(wrong(&text).contains("too much time or memory"));
    let nested =
        "locals {\n  a = [for i in range(1024) : [for j in range(1024) : [for k in range(1024) : k]]]\n}\n";
    assert!(wrong(nested).contains("too much time or memory"));
    let mut deep = "locals {\n  a0 = []\n".to_owned();
    for n in 1..200 {
        deep.push_str(&format!("  a{n} = [local.a{}]\n", n - 1));
    }
    assert!(wrong(&format!("{deep}}}\n")).contains("nested too deep"));
    let many = wrong("resource \"flavor\" \"f\" {\n  count = 1e9\n}\n");
    assert!(many.contains("20000 resources at most"), "{many}");
}

#[test]
fn a_manifest_without_a_stack_is_not_planned() {
    assert!(faults("locals {\n  a = 1\n}\n").contains("does not say which stack"));
}

#[test]
fn what_is_wrong_of_a_counted_block_is_told_once_and_in_the_order_of_the_file() {
    let at = |start| crate::At { file: 0, start, end: start + 1 };
    let (later, earlier) = (crate::Fault::new(at(5), "later"), crate::Fault::new(at(1), "earlier"));
    let told = crate::in_order(&[later.clone(), earlier.clone(), later.clone()]);
    assert_eq!(told, [earlier, later]);
}

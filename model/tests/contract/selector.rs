//! The grammar of label selectors.

use std::collections::BTreeMap;
use std::fmt::Write;

use insta::assert_snapshot;
use proptest::prelude::*;
use tamdao_model::selector::Selector;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn selects() {
    let labels = labels(&[("env", "test"), ("tier", ""), ("tên", "x"), ("a", "b=c")]);
    for (text, expected) in [
        ("", true),
        ("  ", true),
        ("env", true),
        ("env=test", true),
        (" env = test , !missing ", true),
        ("env!=test", false),
        ("env=prod", false),
        ("missing!=x", true),
        ("missing", false),
        ("!env", false),
        ("! missing", true),
        ("tier=", true),
        ("env=", false),
        ("a=b=c", true),
        ("env=test,missing", false),
    ] {
        let selector = Selector::parse("labels", text).unwrap();
        assert_eq!(selector.matches(&labels), expected, "{text:?}");
    }
}

#[test]
fn says_what_is_wrong_and_where() {
    let long = "a,".repeat(40);
    let mut out = String::new();
    for text in [",", "a,,b", "a, =x", "a b", "é=1", "a==b", "a=b,c=\u{7}", "!", "!=x", "!a=b", "-a", &long]
    {
        let shown: String = text.chars().take(20).collect();
        writeln!(out, "{shown:?}").unwrap();
        for violation in Selector::parse("labels", text).unwrap_err().violations {
            writeln!(out, "    {violation}").unwrap();
        }
    }
    assert_snapshot!(out);
}

proptest! {
    #[test]
    fn round_trip(terms in proptest::collection::vec(term(), 0..8)) {
        let text = terms.join(",");
        let selector = Selector::parse("labels", &text).unwrap();
        prop_assert_eq!(selector.to_string(), text);
        prop_assert_eq!(Selector::parse("labels", &selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn never_panics(text in ".{0,80}") {
        let _ = Selector::parse("labels", &text);
    }

    #[test]
    fn is_and_is_not_are_opposites(key in "[a-c]", value in "[x-z]", have in proptest::collection::btree_map("[a-c]", "[x-z]", 0..3)) {
        let is = Selector::parse("labels", &format!("{key}={value}")).unwrap();
        let is_not = Selector::parse("labels", &format!("{key}!={value}")).unwrap();
        prop_assert_ne!(is.matches(&have), is_not.matches(&have));
    }
}

fn term() -> impl Strategy<Value = String> {
    let key = "[a-z][a-z0-9_./-]{0,10}[a-z0-9]";
    let value = "([a-zé][a-z =!é]{0,8}[a-z])?";
    prop_oneof![
        key.prop_map(|k| k),
        key.prop_map(|k| format!("!{k}")),
        (key, value).prop_map(|(k, v)| format!("{k}={v}")),
        (key, value).prop_map(|(k, v)| format!("{k}!={v}")),
    ]
}

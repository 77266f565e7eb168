//! What refers to what in a module, found before anything is evaluated, and the order that follows from it.

use std::collections::{BTreeMap, BTreeSet};

use hcl_edit::expr::{Expression, Traversal};
use hcl_edit::visit::{self, Visit};

use crate::config::Module;

/// A node: `var`, `local`, `output`, `module` or a kind of resource, and its name.
pub type Key = (String, String);

/// What each node of a module needs.
pub fn needs(module: &Module) -> BTreeMap<Key, BTreeSet<Key>> {
    let key = |root: &str, name: &str| (root.to_owned(), name.to_owned());
    let mut needs: BTreeMap<Key, Gather> = BTreeMap::new();
    for name in module.variables.keys() {
        // Its conditions see itself only, and its default sees nothing.
        needs.insert(key("var", name), Gather::default());
    }
    for (name, local) in &module.locals {
        needs.insert(key("local", name), Gather::of(&local.expression));
    }
    for (name, output) in &module.outputs {
        needs.insert(key("output", name), Gather::of(&output.value.expression));
    }
    for (name, call) in &module.calls {
        let mut gather = Gather::default();
        call.arguments.values().for_each(|(expression, _)| gather.visit_expr(expression));
        needs.insert(key("module", name), gather);
    }
    for (at, resource) in &module.resources {
        let mut gather = Gather::default();
        gather.visit_body(&resource.body);
        gather.found.extend(resource.depends_on.iter().map(|(root, name, _)| key(root, name)));
        needs.insert(at.clone(), gather);
    }
    let nodes: BTreeSet<Key> = needs.keys().cloned().collect();
    let there = |gather: Gather| gather.found.into_iter().filter(|key| nodes.contains(key)).collect();
    needs.into_iter().map(|(key, gather)| (key, there(gather))).collect()
}

/// Gathers what expressions refer to.
#[derive(Default)]
struct Gather {
    found: BTreeSet<Key>,
}

impl Gather {
    fn of(expression: &Expression) -> Self {
        let mut gather = Self::default();
        gather.visit_expr(expression);
        gather
    }
}

impl Visit for Gather {
    fn visit_traversal(&mut self, traversal: &Traversal) {
        if let (Some(root), Some(first)) = (traversal.expr.as_variable(), traversal.operators.first())
            && let hcl_edit::expr::TraversalOperator::GetAttr(name) = first.value()
        {
            self.found.insert((root.to_string(), name.to_string()));
        }
        visit::visit_traversal(self, traversal);
    }
}

/// The nodes, each after what it needs; or those that need one another.
pub fn ordered(needs: &BTreeMap<Key, BTreeSet<Key>>) -> Result<Vec<Key>, Vec<Key>> {
    let mut users: BTreeMap<&Key, Vec<&Key>> = BTreeMap::new();
    let mut missing: BTreeMap<&Key, usize> = needs.iter().map(|(key, needs)| (key, needs.len())).collect();
    for (key, needs) in needs {
        needs.iter().for_each(|need| users.entry(need).or_default().push(key));
    }
    let mut ready: BTreeSet<&Key> =
        missing.iter().filter(|(_, count)| **count == 0).map(|(key, _)| *key).collect();
    let mut order = Vec::new();
    while let Some(key) = ready.pop_first() {
        missing.remove(key);
        order.push(key.clone());
        for user in users.get(key).into_iter().flatten() {
            if let Some(count) = missing.get_mut(user) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(user);
                }
            }
        }
    }
    if missing.is_empty() { Ok(order) } else { Err(missing.keys().map(|key| (*key).clone()).collect()) }
}

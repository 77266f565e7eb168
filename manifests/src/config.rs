//! Files to blocks: what a module declares, each with the place where it stands. Only the form is looked at here; nothing
//! is evaluated.

use std::collections::BTreeMap;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, TraversalOperator};
use hcl_edit::structure::{Attribute, Block, Body, Structure};

use crate::document::{self, Document};
use crate::limits;
use crate::schema;
use crate::source::{At, Fault, File};
use crate::types::Type;

/// What one directory declares.
#[derive(Debug, Default)]
pub struct Module {
    /// The name of the stack; only the root has one.
    pub stack: Option<(String, At)>,
    pub variables: BTreeMap<String, Variable>,
    pub locals: BTreeMap<String, Placed>,
    /// By kind and name.
    pub resources: BTreeMap<(String, String), Resource>,
    pub outputs: BTreeMap<String, Output>,
    pub calls: BTreeMap<String, Call>,
}

/// An expression and its file.
#[derive(Debug)]
pub struct Placed {
    pub file: usize,
    pub expression: Expression,
}

#[derive(Debug)]
pub struct Variable {
    pub at: At,
    pub kind: Type,
    pub default: Option<Placed>,
    pub sensitive: bool,
    /// Conditions, and what is said when they do not hold.
    pub validations: Vec<(Placed, Placed)>,
}

#[derive(Debug, Default)]
pub struct Resource {
    pub at: At,
    pub file: usize,
    pub body: Body,
    /// In place of the body, for what is in the API's own form.
    pub document: Option<Document>,
    pub count: Option<Expression>,
    pub for_each: Option<Expression>,
    /// Roots and names of what it waits for.
    pub depends_on: Vec<(String, String, At)>,
    pub prevent_destroy: bool,
    /// Fields whose differences are left alone; "all" for every one.
    pub ignore_changes: Vec<String>,
}

#[derive(Debug)]
pub struct Output {
    pub value: Placed,
    pub sensitive: bool,
}

#[derive(Debug)]
pub struct Call {
    pub at: At,
    pub source: String,
    pub file: usize,
    pub arguments: BTreeMap<String, (Expression, At)>,
}

/// Reads the files of one directory; `first` is the number of the first of them in the manifest's list.
///
/// # Errors
/// All that is wrong with their form.
pub fn read(files: &[File], first: usize) -> Result<Module, Vec<Fault>> {
    let (mut module, mut faults) = (Module::default(), Vec::new());
    let mut nodes = 0;
    for (number, file) in files.iter().enumerate() {
        let number = first + number;
        if file.text.len() > limits::FILE_BYTES {
            let most = limits::FILE_BYTES;
            faults.push(Fault::nowhere(format!("{} is larger than {most} bytes", file.name)));
            continue;
        }
        if document::is(&file.name) {
            document::take(&mut module, file, number).unwrap_or_else(|more| faults.extend(more));
            continue;
        }
        match hcl_edit::parser::parse_body(&file.text) {
            Ok(body) => {
                for structure in body {
                    nodes += 1;
                    take(&mut module, structure, number).unwrap_or_else(|fault| faults.push(fault));
                }
            }
            Err(error) => {
                let offset = error.location().offset().min(file.text.len());
                faults
                    .push(Fault::new(At { file: number, start: offset, end: offset }, said(error.message())));
            }
        }
    }
    document::link(&mut module);
    if nodes.max(module.resources.len()) > limits::NODES || module.locals.len() > limits::NODES {
        faults.push(Fault::nowhere(format!("there are more than {} blocks or locals", limits::NODES)));
    }
    if faults.is_empty() { Ok(module) } else { Err(faults) }
}

/// The parser's message without its own "; " tail, as one sentence.
fn said(message: &str) -> String {
    message.trim().trim_end_matches('.').to_owned()
}

fn take(module: &mut Module, structure: Structure, file: usize) -> Result<(), Fault> {
    let block = match structure {
        Structure::Block(block) => block,
        Structure::Attribute(attribute) => {
            return Err(Fault::new(
                At::of(file, &attribute.key),
                "an attribute stands in a block, not at the top",
            )
            .hint("values with names stand in locals { ... }"));
        }
    };
    let at = At::of(file, &block.ident);
    let word = block.ident.as_str().to_owned();
    let labels: Vec<String> = block.labels.iter().map(|label| label.as_str().to_owned()).collect();
    let twice = |what: &str| Fault::new(at, format!("{what} is declared twice"));
    match (word.as_str(), labels.as_slice()) {
        ("tamdao", []) => settings(module, &block, file),
        ("locals", []) => {
            for attribute in block.body.attributes() {
                let placed = Placed { file, expression: attribute.value.clone() };
                if module.locals.insert(attribute.key.to_string(), placed).is_some() {
                    return Err(Fault::new(At::of(file, &attribute.key), "this local is declared twice"));
                }
            }
            Ok(())
        }
        ("variable", [name]) => {
            let variable = variable(&block, file, at)?;
            let old = module.variables.insert(name.clone(), variable);
            old.map_or(Ok(()), |_| Err(twice(&format!("variable {name:?}"))))
        }
        ("output", [name]) => {
            let value = one(&block, "value").ok_or_else(|| Fault::new(at, "an output has a value"))?;
            let value = Placed { file, expression: value.value.clone() };
            let sensitive = flag(&block.body, "sensitive", file)?;
            let old = module.outputs.insert(name.clone(), Output { value, sensitive });
            old.map_or(Ok(()), |_| Err(twice(&format!("output {name:?}"))))
        }
        ("module", [name]) => {
            let call = call(&block, file, at)?;
            let old = module.calls.insert(name.clone(), call);
            old.map_or(Ok(()), |_| Err(twice(&format!("module {name:?}"))))
        }
        ("resource", [kind, name]) => {
            if !schema::kinds().contains_key(kind) {
                let at = At::of(file, &block.labels[0]);
                let fault = Fault::new(at, format!("there is no kind of resource {kind:?}"));
                return Err(fault.closest(kind, schema::kinds().keys().map(String::as_str)));
            }
            let key = (kind.clone(), name.clone());
            let resource = resource(block, file)?;
            let old = module.resources.insert(key, resource);
            old.map_or(Ok(()), |_| Err(twice(&format!("{kind} {name:?}"))))
        }
        ("terraform" | "provider", _) => Err(Fault::new(at, format!("there is no block {word:?} here"))
            .hint("the cloud is chosen by `tamdao context`, and keeps what a stack owns by itself: tamdao { stack = \"NAME\" }")),
        ("data", _) => Err(Fault::new(at, "there are no data blocks")
            .hint("refer to what exists by its name, such as image = \"debian-12\"")),
        (word @ ("variable" | "output" | "module"), _) => {
            Err(Fault::new(at, format!("{word} takes one name: {word} \"NAME\" {{ ... }}")))
        }
        ("resource", _) => Err(Fault::new(at, "resource takes a kind and a name: resource \"vm\" \"web\" { ... }")),
        ("tamdao" | "locals", _) => Err(Fault::new(at, format!("{word} takes no name"))),
        (word, _) => {
            let known = ["tamdao", "locals", "variable", "output", "module", "resource"];
            Err(Fault::new(at, format!("there is no block {word:?}")).closest(word, known))
        }
    }
}

fn one<'a>(block: &'a Block, name: &str) -> Option<&'a Attribute> {
    block.body.get_attribute(name)
}

/// A word in quotes that stands for itself.
fn literal(attribute: &Attribute, file: usize) -> Result<String, Fault> {
    attribute.value.as_str().map(str::to_owned).ok_or_else(|| {
        Fault::new(At::of(file, &attribute.value), format!("{} is a plain string", attribute.key.as_str()))
    })
}

fn flag(body: &Body, name: &str, file: usize) -> Result<bool, Fault> {
    let Some(attribute) = body.get_attribute(name) else { return Ok(false) };
    attribute
        .value
        .as_bool()
        .ok_or_else(|| Fault::new(At::of(file, &attribute.value), format!("{name} is true or false")))
}

fn settings(module: &mut Module, block: &Block, file: usize) -> Result<(), Fault> {
    for attribute in block.body.attributes() {
        let at = At::of(file, &attribute.value);
        match attribute.key.as_str() {
            "stack" if module.stack.is_none() => module.stack = Some((literal(attribute, file)?, at)),
            "stack" => return Err(Fault::new(at, "the stack is named twice")),
            other => {
                let fault =
                    Fault::new(At::of(file, &attribute.key), format!("there is no setting {other:?}"));
                return Err(fault.closest(other, ["stack"]));
            }
        }
    }
    Ok(())
}

fn variable(block: &Block, file: usize, at: At) -> Result<Variable, Fault> {
    let placed = |expression: &Expression| Placed { file, expression: expression.clone() };
    let mut variable =
        Variable { at, kind: Type::Any, default: None, sensitive: false, validations: Vec::new() };
    for structure in block.body.iter() {
        match structure {
            Structure::Attribute(attribute) => match attribute.key.as_str() {
                "type" => {
                    variable.kind = Type::read(&attribute.value).map_err(|(span, why)| {
                        let span = span.or(attribute.value.span()).unwrap_or_default();
                        Fault::new(At { file, start: span.start, end: span.end }, why)
                    })?;
                }
                "default" => variable.default = Some(placed(&attribute.value)),
                "sensitive" => variable.sensitive = flag(&block.body, "sensitive", file)?,
                "description" | "nullable" => {}
                other => {
                    let fault =
                        Fault::new(At::of(file, &attribute.key), format!("a variable has no {other:?}"));
                    return Err(fault.closest(other, ["type", "default", "sensitive", "description"]));
                }
            },
            Structure::Block(inner) if inner.ident.as_str() == "validation" => {
                match (one(inner, "condition"), one(inner, "error_message")) {
                    (Some(condition), Some(message)) => {
                        variable.validations.push((placed(&condition.value), placed(&message.value)));
                    }
                    _ => {
                        let at = At::of(file, &inner.ident);
                        return Err(Fault::new(at, "a validation has a condition and an error_message"));
                    }
                }
            }
            Structure::Block(inner) => {
                let at = At::of(file, &inner.ident);
                return Err(Fault::new(at, format!("a variable has no block {:?}", inner.ident.as_str())));
            }
        }
    }
    Ok(variable)
}

fn call(block: &Block, file: usize, at: At) -> Result<Call, Fault> {
    let mut arguments = BTreeMap::new();
    let mut source = None;
    for attribute in block.body.attributes() {
        match attribute.key.as_str() {
            "source" => {
                let text = literal(attribute, file)?;
                if !text.starts_with("./") && !text.starts_with("../") {
                    return Err(Fault::new(At::of(file, &attribute.value), "a module is a local directory")
                        .hint("write source = \"./DIRECTORY\""));
                }
                source = Some(text);
            }
            name @ ("count" | "for_each" | "depends_on" | "providers" | "version") => {
                let fault = Fault::new(At::of(file, &attribute.key), format!("a module takes no {name}"));
                return Err(fault.hint("count and for_each stand in the resources of the module"));
            }
            name => {
                arguments.insert(name.to_owned(), (attribute.value.clone(), At::of(file, &attribute.key)));
            }
        }
    }
    let source = source.ok_or_else(|| Fault::new(at, "a module has a source, such as \"./web\""))?;
    Ok(Call { at, source, file, arguments })
}

fn resource(block: Block, file: usize) -> Result<Resource, Fault> {
    let at = At::of(file, &block.ident);
    let end = block.labels.last().map_or(at.end, |label| At::of(file, label).end);
    let mut resource = Resource { at: At { file, start: at.start, end }, file, ..Resource::default() };
    for structure in block.body.iter() {
        match structure {
            Structure::Attribute(attribute) => match attribute.key.as_str() {
                "count" => resource.count = Some(attribute.value.clone()),
                "for_each" => resource.for_each = Some(attribute.value.clone()),
                "depends_on" => {
                    for item in attribute.value.as_array().into_iter().flat_map(|array| array.iter()) {
                        let at = At::of(file, item);
                        let (root, name) = reference(item)
                            .ok_or_else(|| Fault::new(at, "depends_on lists references such as vm.web"))?;
                        resource.depends_on.push((root, name, at));
                    }
                }
                _ => {}
            },
            Structure::Block(inner) if inner.ident.as_str() == "lifecycle" => {
                lifecycle(&mut resource, inner, file)?;
            }
            Structure::Block(_) => {}
        }
    }
    if let (Some(_), Some(other)) = (&resource.count, &resource.for_each) {
        return Err(Fault::new(At::of(file, other), "count and for_each exclude one another"));
    }
    resource.body = block.body;
    Ok(resource)
}

fn lifecycle(resource: &mut Resource, block: &Block, file: usize) -> Result<(), Fault> {
    for attribute in block.body.attributes() {
        match attribute.key.as_str() {
            "prevent_destroy" => resource.prevent_destroy = flag(&block.body, "prevent_destroy", file)?,
            "ignore_changes" => match &attribute.value {
                Expression::Variable(word) if word.as_str() == "all" => {
                    resource.ignore_changes = vec!["all".to_owned()];
                }
                Expression::Array(array) => {
                    for item in array.iter() {
                        let name = item.as_variable().ok_or_else(|| {
                            Fault::new(At::of(file, item), "ignore_changes lists fields, such as [labels]")
                        })?;
                        resource.ignore_changes.push(name.to_string());
                    }
                }
                other => {
                    return Err(Fault::new(
                        At::of(file, other),
                        "ignore_changes is a list of fields, or all",
                    ));
                }
            },
            other => {
                let fault = Fault::new(At::of(file, &attribute.key), format!("lifecycle has no {other:?}"));
                return Err(fault.closest(other, ["prevent_destroy", "ignore_changes"]));
            }
        }
    }
    Ok(())
}

/// The first two words of a reference.
pub fn reference(expression: &Expression) -> Option<(String, String)> {
    let traversal = expression.as_traversal()?;
    let root = traversal.expr.as_variable()?;
    match traversal.operators.first()?.value() {
        TraversalOperator::GetAttr(name) => Some((root.to_string(), name.to_string())),
        _ => None,
    }
}

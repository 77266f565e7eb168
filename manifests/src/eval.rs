//! Expressions to values, over the syntax tree of `hcl-edit`. Everything that is evaluated is paid for from one budget, so
//! that no manifest takes unbounded time or memory; an error points at the very expression; and what is known only after
//! apply goes through as [`Value::Unknown`]. Names are looked up by the caller (decision 0191).

use std::cell::Cell;
use std::collections::BTreeMap;

use hcl_edit::Ident;
use hcl_edit::expr::{
    BinaryOperator, Expression, ForExpr, Object, ObjectKey, Traversal, TraversalOperator, UnaryOperator,
};
use hcl_edit::template::{Directive, Element, Strip, Template};

use crate::functions;
use crate::limits;
use crate::source::{At, Fault};
use crate::value::{TooDeep, Value};

/// What names mean: two words such as `var`, `size`, and the value, or what is wrong with them. A sensitive value says so.
pub trait Names {
    fn find(&self, root: &str, name: &str) -> Result<(Value, bool), Fault>;
    /// The text of a file beside the manifest.
    fn read(&self, path: &str) -> Result<String, String>;
}

/// Evaluates the expressions of one file.
pub struct Evaluator<'a> {
    names: &'a dyn Names,
    file: usize,
    budget: &'a Cell<u64>,
    /// Variables of `for`, the innermost last.
    bound: Vec<(String, Value)>,
    /// Whether a sensitive value was read since this was last set to false.
    pub sensitive: bool,
}

type Result<T, E = Fault> = std::result::Result<T, E>;

impl<'a> Evaluator<'a> {
    pub fn new(names: &'a dyn Names, file: usize, budget: &'a Cell<u64>) -> Self {
        Self { names, file, budget, bound: Vec::new(), sensitive: false }
    }

    pub fn at(&self, parsed: &impl hcl_edit::Span) -> At {
        At::of(self.file, parsed)
    }

    fn pay(&self, cost: u64, at: At) -> Result<()> {
        match self.budget.get().checked_sub(cost) {
            Some(left) => {
                self.budget.set(left);
                Ok(())
            }
            None => Err(Fault::new(at, "this manifest takes too much time or memory to evaluate")),
        }
    }

    fn pay_text(&self, bytes: usize, at: At) -> Result<()> {
        self.pay(1 + bytes as u64 / limits::STEP_BYTES, at)
    }

    /// The value of an expression.
    pub fn eval(&mut self, expression: &Expression) -> Result<Value> {
        let at = self.at(expression);
        self.pay(1, at)?;
        match expression {
            Expression::Null(_) => Ok(Value::Null),
            Expression::Bool(value) => Ok(Value::Bool(*value.value())),
            Expression::Number(number) => self.number(number.value().as_f64().unwrap_or(f64::NAN), at),
            Expression::String(text) => {
                self.pay_text(text.value().len(), at)?;
                Ok(Value::text(text.value().as_str()))
            }
            Expression::Array(array) => {
                let items = array.iter().map(|item| self.eval(item)).collect::<Result<Vec<_>>>()?;
                self.list(items, at)
            }
            Expression::Object(object) => self.object(object, at),
            Expression::StringTemplate(template) => self.template(template, at),
            Expression::HeredocTemplate(heredoc) => self.template(&heredoc.template, at),
            Expression::Parenthesis(inner) => self.eval(inner.inner()),
            Expression::Variable(name) => self.variable(name, at),
            Expression::Conditional(choice) => match self.truth(&choice.cond_expr)? {
                None => Ok(Value::Unknown),
                Some(true) => self.eval(&choice.true_expr),
                Some(false) => self.eval(&choice.false_expr),
            },
            Expression::FuncCall(call) => self.call(call, at),
            Expression::Traversal(traversal) => self.traversal(traversal, at),
            Expression::UnaryOp(op) => match (op.operator.value(), self.eval(&op.expr)?) {
                (_, Value::Unknown) => Ok(Value::Unknown),
                (UnaryOperator::Neg, Value::Number(number)) => self.number(-number, at),
                (UnaryOperator::Not, Value::Bool(value)) => Ok(Value::Bool(!value)),
                (operator, value) => {
                    Err(Fault::new(at, format!("{operator} does not take a {}", value.kind())))
                }
            },
            Expression::BinaryOp(op) => {
                let (left, operator) = (self.eval(&op.lhs_expr)?, *op.operator.value());
                // The right side may be meaningless where the left one decides.
                match (operator, &left) {
                    (BinaryOperator::And, Value::Bool(false)) => return Ok(Value::Bool(false)),
                    (BinaryOperator::Or, Value::Bool(true)) => return Ok(Value::Bool(true)),
                    _ => {}
                }
                let right = self.eval(&op.rhs_expr)?;
                self.binary(operator, left, right, at)
            }
            Expression::ForExpr(each) => self.for_each(each, at),
        }
    }

    fn number(&self, number: f64, at: At) -> Result<Value> {
        if !number.is_finite() || number.abs() > 1e18 {
            return Err(Fault::new(at, "this is not a number that can be worked with"));
        }
        Ok(Value::Number(number))
    }

    fn list(&self, items: Vec<Value>, at: At) -> Result<Value> {
        self.pay(items.len() as u64, at)?;
        Value::list(items).map_err(|TooDeep| too_deep(at))
    }

    fn map(&self, items: BTreeMap<String, Value>, at: At) -> Result<Value> {
        self.pay(items.keys().map(|key| key.len() as u64 / limits::STEP_BYTES + 1).sum(), at)?;
        Value::map(items).map_err(|TooDeep| too_deep(at))
    }

    fn object(&mut self, object: &Object, at: At) -> Result<Value> {
        let mut items = BTreeMap::new();
        for (key, value) in object.iter() {
            let name = match key {
                ObjectKey::Ident(ident) => ident.to_string(),
                // A bare word is a key and not a variable.
                ObjectKey::Expression(Expression::Variable(ident)) => ident.to_string(),
                ObjectKey::Expression(expression) => match self.eval(expression)? {
                    Value::Unknown => return Ok(Value::Unknown),
                    value => value.to_text().ok_or_else(|| {
                        Fault::new(self.at(expression), format!("a key is a string, not a {}", value.kind()))
                    })?,
                },
            };
            items.insert(name, self.eval(value.expr())?);
        }
        self.map(items, at)
    }

    fn variable(&mut self, name: &Ident, at: At) -> Result<Value> {
        if let Some((_, value)) = self.bound.iter().rev().find(|(bound, _)| bound == name.as_str()) {
            return Ok(value.clone());
        }
        let fault = Fault::new(at, format!("{:?} is not a value by itself", name.as_str()));
        Err(fault.hint("a string stands in quotes; a reference is written as KIND.NAME or var.NAME"))
    }

    fn traversal(&mut self, traversal: &Traversal, at: At) -> Result<Value> {
        let mut operators = traversal.operators.as_slice();
        let value = match &traversal.expr {
            Expression::Variable(root) if !self.bound.iter().any(|(bound, _)| bound == root.as_str()) => {
                let Some((first, rest)) = operators.split_first() else { return self.variable(root, at) };
                let TraversalOperator::GetAttr(name) = first.value() else {
                    return Err(Fault::new(at, format!("write {}.NAME", root.as_str())));
                };
                operators = rest;
                let (value, sensitive) =
                    self.names.find(root.as_str(), name.as_str()).map_err(|mut fault| {
                        let (start, end) = (self.at(root).start, self.at(name).end);
                        fault.at = fault.at.or(Some(At { file: self.file, start, end }));
                        fault
                    })?;
                self.sensitive |= sensitive;
                value
            }
            expression => self.eval(expression)?,
        };
        self.walk(value, operators, at)
    }

    fn walk(
        &mut self,
        mut value: Value,
        operators: &[hcl_edit::Decorated<TraversalOperator>],
        at: At,
    ) -> Result<Value> {
        for (number, operator) in operators.iter().enumerate() {
            self.pay(1, at)?;
            if value == Value::Unknown {
                return Ok(Value::Unknown);
            }
            let here = self.at(operator.value());
            value = match operator.value() {
                TraversalOperator::GetAttr(name) => attribute(&value, name.as_str(), here)?,
                TraversalOperator::LegacyIndex(index) => {
                    item(&value, &Value::Number(*index.value() as f64), here)?
                }
                TraversalOperator::Index(index) => {
                    let index = self.eval(index)?;
                    item(&value, &index, here)?
                }
                TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) => {
                    let items = match value {
                        Value::Null => Vec::new(),
                        Value::List(list) => list.inner.clone(),
                        single => vec![single],
                    };
                    let rest = &operators[number + 1..];
                    let items = items.into_iter().map(|item| self.walk(item, rest, at));
                    let items = items.collect::<Result<Vec<_>>>()?;
                    return self.list(items, at);
                }
            };
        }
        Ok(value)
    }

    fn call(&mut self, call: &hcl_edit::expr::FuncCall, at: At) -> Result<Value> {
        let name = call.name.name.as_str();
        let name_at = self.at(&call.name.name);
        let mut arguments = Vec::new();
        for argument in call.args.iter() {
            arguments.push(self.eval(argument)?);
        }
        if call.args.expand_final() {
            match arguments.pop() {
                Some(Value::List(list)) => arguments.extend(list.inner.iter().cloned()),
                Some(Value::Unknown) => return Ok(Value::Unknown),
                _ => return Err(Fault::new(at, "only a list can be expanded by ...")),
            }
        }
        if name == "file" {
            let [Value::Text(path)] = arguments.as_slice() else {
                return Err(Fault::new(at, "file takes the path of a file beside the manifest"));
            };
            let text = self.names.read(path).map_err(|why| Fault::new(at, why))?;
            self.pay_text(text.len(), at)?;
            return Ok(Value::text(text));
        }
        let Some(function) = functions::named(name) else {
            let fault = Fault::new(name_at, format!("there is no function {name:?}"));
            return Err(fault.closest(name, functions::names()));
        };
        // Walking through the arguments is paid for before it is done.
        let left = self.budget.get();
        let cost =
            arguments.iter().fold(0, |sum: u64, argument| sum + argument.cost(left.saturating_sub(sum)));
        self.pay(cost, at)?;
        if arguments.iter().any(Value::has_unknown) {
            return Ok(Value::Unknown);
        }
        let value = function.call(&arguments).map_err(|why| Fault::new(at, format!("{name} {why}")))?;
        self.pay(value.cost(self.budget.get()), at)?;
        Ok(value)
    }

    /// A condition; none when it is known only after apply.
    pub fn truth(&mut self, condition: &Expression) -> Result<Option<bool>> {
        match self.eval(condition)? {
            Value::Bool(value) => Ok(Some(value)),
            Value::Unknown => Ok(None),
            Value::Text(text) if &*text == "true" => Ok(Some(true)),
            Value::Text(text) if &*text == "false" => Ok(Some(false)),
            value => {
                let kind = value.kind();
                Err(Fault::new(self.at(condition), format!("a condition is true or false, not a {kind}")))
            }
        }
    }

    fn binary(&self, operator: BinaryOperator, left: Value, right: Value, at: At) -> Result<Value> {
        use BinaryOperator as Op;
        if matches!(operator, Op::Eq | Op::NotEq) {
            let cost = left.cost(self.budget.get()).saturating_add(right.cost(self.budget.get()));
            self.pay(cost, at)?;
            if left.has_unknown() || right.has_unknown() {
                return Ok(Value::Unknown);
            }
            return Ok(Value::Bool((left == right) == (operator == Op::Eq)));
        }
        match (operator, &left, &right) {
            (_, Value::Unknown, _) | (_, _, Value::Unknown) => Ok(Value::Unknown),
            (Op::And, Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(*a && *b)),
            (Op::Or, Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(*a || *b)),
            (Op::Div | Op::Mod, Value::Number(_), Value::Number(0.0)) => {
                Err(Fault::new(at, "this divides by zero"))
            }
            (_, a, b) => {
                let (Some(a), Some(b)) = (as_number(a), as_number(b)) else {
                    let (a, b) = (left.kind(), right.kind());
                    return Err(Fault::new(at, format!("{operator} does not take a {a} and a {b}")));
                };
                match operator {
                    Op::Plus => self.number(a + b, at),
                    Op::Minus => self.number(a - b, at),
                    Op::Mul => self.number(a * b, at),
                    Op::Div => self.number(a / b, at),
                    Op::Mod => self.number(a % b, at),
                    Op::Less => Ok(Value::Bool(a < b)),
                    Op::LessEq => Ok(Value::Bool(a <= b)),
                    Op::Greater => Ok(Value::Bool(a > b)),
                    Op::GreaterEq => Ok(Value::Bool(a >= b)),
                    Op::Eq | Op::NotEq | Op::And | Op::Or => {
                        Err(Fault::new(at, format!("{operator} takes two conditions")))
                    }
                }
            }
        }
    }

    /// The keys and values that a `for` goes through; none when they are not known yet.
    fn pairs(&mut self, collection: &Expression) -> Result<Option<Vec<(Value, Value)>>> {
        let at = self.at(collection);
        let pairs: Vec<_> = match self.eval(collection)? {
            Value::Unknown => return Ok(None),
            Value::List(list) => {
                let number = |index: usize| Value::Number(index as f64);
                list.inner.iter().enumerate().map(|(index, item)| (number(index), item.clone())).collect()
            }
            Value::Map(map) => {
                map.inner.iter().map(|(key, item)| (Value::text(key.as_str()), item.clone())).collect()
            }
            value => {
                return Err(Fault::new(
                    at,
                    format!("for goes through a list or map, not a {}", value.kind()),
                ));
            }
        };
        self.pay(pairs.len() as u64, at)?;
        Ok(Some(pairs))
    }

    fn bind(&mut self, key: Option<&str>, value: &str, pair: (Value, Value)) -> usize {
        let before = self.bound.len();
        self.bound.extend(key.map(|key| (key.to_owned(), pair.0)));
        self.bound.push((value.to_owned(), pair.1));
        before
    }

    fn for_each(&mut self, each: &ForExpr, at: At) -> Result<Value> {
        let Some(pairs) = self.pairs(&each.intro.collection_expr)? else { return Ok(Value::Unknown) };
        let key = each.intro.key_var.as_ref().map(|key| key.as_str());
        let (mut list, mut map, mut unknown) = (Vec::new(), BTreeMap::<String, Vec<Value>>::new(), false);
        for pair in pairs {
            let before = self.bind(key, each.intro.value_var.as_str(), pair);
            let wanted = match &each.cond {
                Some(condition) => self.truth(&condition.expr)?,
                None => Some(true),
            };
            unknown |= wanted.is_none();
            if wanted == Some(true) {
                let value = self.eval(&each.value_expr)?;
                match &each.key_expr {
                    None => list.push(value),
                    Some(key) => {
                        let at = self.at(key);
                        let key = self.eval(key)?;
                        let Some(text) = key.to_text() else {
                            unknown |= key == Value::Unknown;
                            self.bound.truncate(before);
                            if unknown {
                                continue;
                            }
                            return Err(Fault::new(at, format!("a key is a string, not a {}", key.kind())));
                        };
                        let of_key = map.entry(text).or_default();
                        if !of_key.is_empty() && !each.grouping {
                            return Err(Fault::new(at, format!("the key {key} comes twice"))
                                .hint("write ... behind the value to gather those of one key"));
                        }
                        of_key.push(value);
                    }
                }
            }
            self.bound.truncate(before);
        }
        if unknown {
            return Ok(Value::Unknown);
        }
        if each.key_expr.is_none() {
            return self.list(list, at);
        }
        let mut items = BTreeMap::new();
        for (key, mut values) in map {
            let value =
                if each.grouping { self.list(values, at)? } else { values.pop().unwrap_or(Value::Null) };
            items.insert(key, value);
        }
        self.map(items, at)
    }

    fn template(&mut self, template: &Template, at: At) -> Result<Value> {
        // A template that is nothing but one interpolation has that value, of whatever type.
        if let Some(Element::Interpolation(only)) = template.as_single_element() {
            return self.eval(&only.expr);
        }
        let mut text = String::new();
        Ok(if self.fill(template, &mut text, at)? { Value::text(text) } else { Value::Unknown })
    }

    /// Writes a template; false when a part of it is not known yet.
    fn fill(&mut self, template: &Template, into: &mut String, at: At) -> Result<bool> {
        let mut known = true;
        for element in template.iter() {
            let before = into.len();
            match element {
                Element::Literal(text) => into.push_str(text.value()),
                Element::Interpolation(part) => {
                    no_strip(part.strip, at)?;
                    match self.eval(&part.expr)? {
                        Value::Unknown => known = false,
                        value => into.push_str(&value.to_text().ok_or_else(|| {
                            Fault::new(self.at(&part.expr), format!("a {} has no text", value.kind()))
                                .hint("jsonencode(...) and join(\",\", ...) make text")
                        })?),
                    }
                }
                Element::Directive(directive) => known &= self.directive(directive, into, at)?,
            }
            self.pay_text(into.len() - before, at)?;
        }
        Ok(known)
    }

    fn directive(&mut self, directive: &Directive, into: &mut String, at: At) -> Result<bool> {
        match directive {
            Directive::If(choice) => {
                no_strip(choice.if_expr.strip, at)?;
                match (self.truth(&choice.if_expr.cond_expr)?, &choice.else_expr) {
                    (None, _) => Ok(false),
                    (Some(true), _) => self.fill(&choice.if_expr.template, into, at),
                    (Some(false), Some(other)) => self.fill(&other.template, into, at),
                    (Some(false), None) => Ok(true),
                }
            }
            Directive::For(each) => {
                no_strip(each.for_expr.strip, at)?;
                let Some(pairs) = self.pairs(&each.for_expr.collection_expr)? else { return Ok(false) };
                let key = each.for_expr.key_var.as_ref().map(|key| key.as_str());
                let mut known = true;
                for pair in pairs {
                    let before = self.bind(key, each.for_expr.value_var.as_str(), pair);
                    known &= self.fill(&each.for_expr.template, into, at)?;
                    self.bound.truncate(before);
                }
                Ok(known)
            }
        }
    }
}

fn too_deep(at: At) -> Fault {
    Fault::new(at, "lists and maps are nested too deep here")
}

fn no_strip(strip: Strip, at: At) -> Result<()> {
    match strip {
        Strip::None => Ok(()),
        Strip::Start | Strip::End | Strip::Both => {
            Err(Fault::new(at, "the strip marker ~ is not supported").hint("use trimspace(...)"))
        }
    }
}

pub fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::Text(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

/// `value.name`.
pub fn attribute(value: &Value, name: &str, at: At) -> Result<Value> {
    match value {
        Value::Map(map) => map.inner.get(name).cloned().ok_or_else(|| {
            let fault = Fault::new(at, format!("there is no attribute {name:?} here"));
            fault.closest(name, map.inner.keys().map(String::as_str))
        }),
        Value::List(_) => {
            Err(Fault::new(at, format!("this is a list; {name:?} is an attribute of its items"))
                .hint("write [0], or [*] for all of them"))
        }
        value => Err(Fault::new(at, format!("a {} has no attribute {name:?}", value.kind()))),
    }
}

/// `value[index]`.
fn item(value: &Value, index: &Value, at: At) -> Result<Value> {
    match (value, index) {
        (_, Value::Unknown) => Ok(Value::Unknown),
        (Value::Map(_), Value::Text(name)) => attribute(value, name, at),
        (Value::List(list), index) => {
            let wrong = || {
                let have = list.inner.len();
                Fault::new(at, format!("there is no item {index}; the list has {have}, counted from 0"))
            };
            let number = as_number(index).filter(|number| *number >= 0.0 && number.fract() == 0.0);
            list.inner.get(number.ok_or_else(wrong)? as usize).cloned().ok_or_else(wrong)
        }
        (value, _) => Err(Fault::new(at, format!("a {} has no item {index}", value.kind()))),
    }
}

//! The functions of expressions: the common ones of Terraform's, in one table, with its names and meanings. They are
//! pure, and none makes more than a bounded multiple of what it is given, but for `range` and `format`, which have limits
//! of their own. Deliberately absent: what asks a clock, throws dice or reads the world; `file` is the evaluator's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

use crate::eval::as_number;
use crate::limits;
use crate::value::{TooDeep, Value};

type Outcome = Result<Value, String>;

/// One function: how many arguments it takes, and what it does.
pub struct Function {
    name: &'static str,
    least: usize,
    most: usize,
    does: fn(&[Value]) -> Outcome,
}

const ANY: usize = usize::MAX;

#[rustfmt::skip]
const FUNCTIONS: &[Function] = &[
    Function { name: "abs", least: 1, most: 1, does: |a| Ok(Value::Number(number(&a[0])?.abs())) },
    Function { name: "base64decode", least: 1, most: 1, does: base64decode },
    Function { name: "base64encode", least: 1, most: 1, does: |a| Ok(Value::text(STANDARD.encode(text(&a[0])?))) },
    Function { name: "ceil", least: 1, most: 1, does: |a| Ok(Value::Number(number(&a[0])?.ceil())) },
    Function { name: "cidrhost", least: 2, most: 2, does: cidrhost },
    Function { name: "cidrsubnet", least: 3, most: 3, does: cidrsubnet },
    Function { name: "coalesce", least: 1, most: ANY, does: coalesce },
    Function { name: "compact", least: 1, most: 1, does: |a| keep(&a[0], |v| !matches!(v.to_text().as_deref(), Some(""))) },
    Function { name: "concat", least: 1, most: ANY, does: concat },
    Function { name: "contains", least: 2, most: 2, does: |a| Ok(Value::Bool(list(&a[0])?.contains(&a[1]))) },
    Function { name: "distinct", least: 1, most: 1, does: |a| made(distinct(list(&a[0])?)) },
    Function { name: "element", least: 2, most: 2, does: element },
    Function { name: "endswith", least: 2, most: 2, does: |a| Ok(Value::Bool(text(&a[0])?.ends_with(&text(&a[1])?))) },
    Function { name: "flatten", least: 1, most: 1, does: |a| { let mut all = Vec::new(); flatten(list(&a[0])?, &mut all); made(all) } },
    Function { name: "floor", least: 1, most: 1, does: |a| Ok(Value::Number(number(&a[0])?.floor())) },
    Function { name: "format", least: 1, most: ANY, does: format },
    Function { name: "join", least: 2, most: 2, does: join },
    Function { name: "jsondecode", least: 1, most: 1, does: jsondecode },
    Function { name: "jsonencode", least: 1, most: 1, does: |a| Ok(Value::text(a[0].to_json().to_string())) },
    Function { name: "keys", least: 1, most: 1, does: |a| made(map(&a[0])?.keys().map(|key| Value::text(key.as_str())).collect()) },
    Function { name: "length", least: 1, most: 1, does: length },
    Function { name: "lookup", least: 2, most: 3, does: lookup },
    Function { name: "lower", least: 1, most: 1, does: |a| Ok(Value::text(text(&a[0])?.to_lowercase())) },
    Function { name: "max", least: 1, most: ANY, does: |a| fold(a, f64::max) },
    Function { name: "merge", least: 1, most: ANY, does: merge },
    Function { name: "min", least: 1, most: ANY, does: |a| fold(a, f64::min) },
    Function { name: "range", least: 1, most: 3, does: range },
    Function { name: "replace", least: 3, most: 3, does: replace },
    Function { name: "reverse", least: 1, most: 1, does: |a| made(list(&a[0])?.iter().rev().cloned().collect()) },
    Function { name: "slice", least: 3, most: 3, does: slice },
    Function { name: "sort", least: 1, most: 1, does: sort },
    Function { name: "split", least: 2, most: 2, does: split },
    Function { name: "startswith", least: 2, most: 2, does: |a| Ok(Value::Bool(text(&a[0])?.starts_with(&text(&a[1])?))) },
    Function { name: "strcontains", least: 2, most: 2, does: |a| Ok(Value::Bool(text(&a[0])?.contains(&text(&a[1])?))) },
    Function { name: "substr", least: 3, most: 3, does: substr },
    Function { name: "tobool", least: 1, most: 1, does: tobool },
    Function { name: "tolist", least: 1, most: 1, does: |a| made(list(&a[0])?.to_vec()) },
    Function { name: "tomap", least: 1, most: 1, does: |a| map(&a[0]).map(|_| a[0].clone()) },
    Function { name: "tonumber", least: 1, most: 1, does: |a| number(&a[0]).map(Value::Number) },
    Function { name: "toset", least: 1, most: 1, does: toset },
    Function { name: "tostring", least: 1, most: 1, does: |a| text(&a[0]).map(Value::text) },
    Function { name: "trim", least: 2, most: 2, does: trim },
    Function { name: "trimprefix", least: 2, most: 2, does: trimprefix },
    Function { name: "trimspace", least: 1, most: 1, does: |a| Ok(Value::text(text(&a[0])?.trim())) },
    Function { name: "trimsuffix", least: 2, most: 2, does: trimsuffix },
    Function { name: "upper", least: 1, most: 1, does: |a| Ok(Value::text(text(&a[0])?.to_uppercase())) },
    Function { name: "values", least: 1, most: 1, does: |a| made(map(&a[0])?.values().cloned().collect()) },
    Function { name: "zipmap", least: 2, most: 2, does: zipmap },
];

/// The function of this name.
pub fn named(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// All names, `file` too, which reads beside the manifest.
pub fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|function| function.name).chain(["file"])
}

impl Function {
    /// Calls it with known arguments; an error completes the sentence that begins with its name.
    pub fn call(&self, arguments: &[Value]) -> Outcome {
        let have = arguments.len();
        if have < self.least || have > self.most {
            let (least, most) = (self.least, self.most);
            let takes = match most {
                ANY => format!("{least} or more"),
                most if most == least => format!("{least}"),
                most => format!("{least} to {most}"),
            };
            return Err(format!("takes {takes} arguments, not {have}"));
        }
        (self.does)(arguments)
    }
}

fn text(value: &Value) -> Result<String, String> {
    value.to_text().ok_or_else(|| format!("needs a string, not a {}", value.kind()))
}

fn number(value: &Value) -> Result<f64, String> {
    as_number(value).ok_or_else(|| format!("needs a number, not {value}"))
}

fn whole(value: &Value) -> Result<i64, String> {
    let number = number(value)?;
    crate::value::is_whole(number)
        .then_some(number as i64)
        .ok_or_else(|| format!("needs a whole number, not {value}"))
}

fn list(value: &Value) -> Result<&[Value], String> {
    match value {
        Value::List(list) => Ok(&list.inner),
        value => Err(format!("needs a list, not a {}", value.kind())),
    }
}

fn map(value: &Value) -> Result<&BTreeMap<String, Value>, String> {
    match value {
        Value::Map(map) => Ok(&map.inner),
        value => Err(format!("needs a map, not a {}", value.kind())),
    }
}

fn made(items: Vec<Value>) -> Outcome {
    Value::list(items).map_err(|TooDeep| "makes a list that is nested too deep".to_owned())
}

fn mapped(items: BTreeMap<String, Value>) -> Outcome {
    Value::map(items).map_err(|TooDeep| "makes a map that is nested too deep".to_owned())
}

fn keep(value: &Value, wanted: impl Fn(&Value) -> bool) -> Outcome {
    made(list(value)?.iter().filter(|item| wanted(item)).cloned().collect())
}

fn distinct(items: &[Value]) -> Vec<Value> {
    let mut seen = std::collections::BTreeSet::new();
    items.iter().filter(|item| seen.insert(item.to_json().to_string())).cloned().collect()
}

fn flatten(items: &[Value], into: &mut Vec<Value>) {
    for item in items {
        match item {
            Value::List(list) => flatten(&list.inner, into),
            item => into.push(item.clone()),
        }
    }
}

fn fold(arguments: &[Value], choose: fn(f64, f64) -> f64) -> Outcome {
    let numbers = arguments.iter().map(number).collect::<Result<Vec<_>, _>>()?;
    numbers.into_iter().reduce(choose).map(Value::Number).ok_or_else(|| "needs a number".to_owned())
}

fn base64decode(arguments: &[Value]) -> Outcome {
    let bytes =
        STANDARD.decode(text(&arguments[0])?).map_err(|error| format!("cannot decode it: {error}"))?;
    String::from_utf8(bytes).map(Value::text).map_err(|_| "decodes to something that is no text".to_owned())
}

fn prefix(value: &Value) -> Result<IpNet, String> {
    let text = text(value)?;
    text.parse().map_err(|_| format!("needs a prefix such as 10.20.0.0/24, not {text:?}"))
}

/// The address so many places into a prefix, from its end when negative.
fn cidrhost(arguments: &[Value]) -> Outcome {
    let (net, index) = (prefix(&arguments[0])?, whole(&arguments[1])?);
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    let offset =
        if index < 0 { size.checked_sub(u128::from(index.unsigned_abs())) } else { Some(index as u128) };
    let offset =
        offset.filter(|offset| *offset < size).ok_or_else(|| format!("finds no address {index} in {net}"))?;
    Ok(Value::text(address(net.network(), offset).to_string()))
}

fn address(base: IpAddr, offset: u128) -> IpAddr {
    match base {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base).wrapping_add(offset as u32)).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base).wrapping_add(offset)).into()),
    }
}

/// Prefix `number` of those that are `newbits` longer.
fn cidrsubnet(arguments: &[Value]) -> Outcome {
    let (net, new, number) = (prefix(&arguments[0])?, whole(&arguments[1])?, whole(&arguments[2])?);
    let length = i64::from(net.prefix_len()) + new;
    let fits = new >= 0 && length <= i64::from(net.max_prefix_len()) && number >= 0;
    if !fits || (new < 63 && number >= 1 << new) {
        return Err(format!("finds no such prefix in {net}"));
    }
    let offset =
        (number as u128).checked_shl((i64::from(net.max_prefix_len()) - length) as u32).unwrap_or_default();
    Ok(Value::text(format!("{}/{length}", address(net.network(), offset))))
}

fn coalesce(arguments: &[Value]) -> Outcome {
    let there = |value: &&Value| !matches!(value, Value::Null) && value.to_text().as_deref() != Some("");
    arguments.iter().find(there).cloned().ok_or_else(|| "finds nothing but null and empty strings".to_owned())
}

fn concat(arguments: &[Value]) -> Outcome {
    let mut all = Vec::new();
    for argument in arguments {
        all.extend_from_slice(list(argument)?);
    }
    made(all)
}

fn element(arguments: &[Value]) -> Outcome {
    let (items, index) = (list(&arguments[0])?, whole(&arguments[1])?);
    if items.is_empty() || index < 0 {
        return Err("needs a list with items and an index of 0 or more".to_owned());
    }
    Ok(items[index as usize % items.len()].clone())
}

/// `%s`, `%d`, `%v` and `%%`, with a width of up to 99 that may begin with 0.
fn format(arguments: &[Value]) -> Outcome {
    let pattern = text(&arguments[0])?;
    let (mut out, mut rest, mut chars) = (String::new(), arguments[1..].iter(), pattern.chars().peekable());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut width = String::new();
        while let Some(digit) = chars.next_if(|c| c.is_ascii_digit() && width.len() < 3) {
            width.push(digit);
        }
        let verb = chars.next().ok_or("has a pattern that ends in %")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = rest.next().ok_or("has fewer values than its pattern asks for")?;
        let shown = match verb {
            's' | 'v' => value.to_text().unwrap_or_else(|| value.to_string()),
            'd' => whole(value)?.to_string(),
            other => return Err(format!("does not know %{other}; it knows %s, %d, %v and %%")),
        };
        let wide: usize = width.parse().unwrap_or(0);
        let fill = if width.starts_with('0') { '0' } else { ' ' };
        out.extend(std::iter::repeat_n(fill, wide.min(99).saturating_sub(shown.chars().count())));
        out.push_str(&shown);
    }
    Ok(Value::text(out))
}

fn join(arguments: &[Value]) -> Outcome {
    let parts = list(&arguments[1])?.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let glue = text(&arguments[0])?;
    if glue.len().saturating_mul(parts.len()) > limits::FILE_BYTES {
        return Err("makes a string that is too long".to_owned());
    }
    Ok(Value::text(parts.join(&glue)))
}

fn jsondecode(arguments: &[Value]) -> Outcome {
    let json =
        serde_json::from_str(&text(&arguments[0])?).map_err(|error| format!("cannot read it: {error}"))?;
    Value::from_json(&json).map_err(|TooDeep| "makes a value that is nested too deep".to_owned())
}

fn length(arguments: &[Value]) -> Outcome {
    let length = match &arguments[0] {
        Value::List(list) => list.inner.len(),
        Value::Map(map) => map.inner.len(),
        Value::Text(text) => text.chars().count(),
        value => return Err(format!("needs a string, list or map, not a {}", value.kind())),
    };
    Ok(Value::Number(length as f64))
}

fn lookup(arguments: &[Value]) -> Outcome {
    let key = text(&arguments[1])?;
    let found = map(&arguments[0])?.get(&key).or(arguments.get(2)).cloned();
    found.ok_or_else(|| format!("finds no key {key:?}"))
}

fn merge(arguments: &[Value]) -> Outcome {
    let mut all = BTreeMap::new();
    for argument in arguments.iter().filter(|argument| **argument != Value::Null) {
        all.extend(map(argument)?.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    mapped(all)
}

fn range(arguments: &[Value]) -> Outcome {
    let numbers = arguments.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
    let (from, to) = if numbers.len() == 1 { (0, numbers[0]) } else { (numbers[0], numbers[1]) };
    let step = numbers.get(2).copied().unwrap_or(if to < from { -1 } else { 1 });
    let (mut at, mut all) = (from, Vec::new());
    while (step > 0 && at < to) || (step < 0 && at > to) {
        if all.len() == limits::RANGE {
            return Err(format!("makes {} numbers at most", limits::RANGE));
        }
        all.push(Value::Number(at as f64));
        at = at.saturating_add(step);
    }
    made(all)
}

fn replace(arguments: &[Value]) -> Outcome {
    let (whole, from, to) = (text(&arguments[0])?, text(&arguments[1])?, text(&arguments[2])?);
    if (whole.len() + 1).saturating_mul(to.len() + 1) > limits::FILE_BYTES * 16 {
        return Err("makes a string that is too long".to_owned());
    }
    Ok(Value::text(whole.replace(&from, &to)))
}

fn slice(arguments: &[Value]) -> Outcome {
    let (items, from, to) = (list(&arguments[0])?, whole(&arguments[1])?, whole(&arguments[2])?);
    let part =
        usize::try_from(from).ok().zip(usize::try_from(to).ok()).and_then(|(from, to)| items.get(from..to));
    made(part.ok_or_else(|| format!("finds no items {from} to {to}; the list has {}", items.len()))?.to_vec())
}

fn sort(arguments: &[Value]) -> Outcome {
    let mut texts = list(&arguments[0])?.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    texts.sort();
    made(texts.into_iter().map(Value::text).collect())
}

fn split(arguments: &[Value]) -> Outcome {
    let (by, whole) = (text(&arguments[0])?, text(&arguments[1])?);
    if by.is_empty() {
        return made(whole.chars().map(|c| Value::text(c.to_string())).collect());
    }
    made(whole.split(&by).map(Value::text).collect())
}

fn substr(arguments: &[Value]) -> Outcome {
    let (all, from, length) = (text(&arguments[0])?, whole(&arguments[1])?, whole(&arguments[2])?);
    let count = all.chars().count() as i64;
    let from = if from < 0 { (count + from).max(0) } else { from };
    let length = if length < 0 { count } else { length };
    Ok(Value::text(all.chars().skip(from as usize).take(length as usize).collect::<String>()))
}

fn tobool(arguments: &[Value]) -> Outcome {
    match text(&arguments[0])?.as_str() {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        other => Err(format!("needs true or false, not {other:?}")),
    }
}

fn toset(arguments: &[Value]) -> Outcome {
    let mut items = distinct(list(&arguments[0])?);
    items.sort_by_key(|item| item.to_json().to_string());
    made(items)
}

fn trim(arguments: &[Value]) -> Outcome {
    let (whole, away) = (text(&arguments[0])?, text(&arguments[1])?);
    Ok(Value::text(whole.trim_matches(|c| away.contains(c))))
}

fn trimprefix(arguments: &[Value]) -> Outcome {
    let (whole, away) = (text(&arguments[0])?, text(&arguments[1])?);
    Ok(Value::text(whole.strip_prefix(&away).unwrap_or(&whole)))
}

fn trimsuffix(arguments: &[Value]) -> Outcome {
    let (whole, away) = (text(&arguments[0])?, text(&arguments[1])?);
    Ok(Value::text(whole.strip_suffix(&away).unwrap_or(&whole)))
}

fn zipmap(arguments: &[Value]) -> Outcome {
    let (keys, values) = (list(&arguments[0])?, list(&arguments[1])?);
    if keys.len() != values.len() {
        return Err(format!("needs as many keys as values; it has {} and {}", keys.len(), values.len()));
    }
    let keys = keys.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    mapped(keys.into_iter().zip(values.iter().cloned()).collect())
}

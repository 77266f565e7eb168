//! `tamdao context`: the clouds that this command line knows. Works on the configuration file alone; no cloud is asked.

use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::{ContextSetArgs, ContextVerb};
use crate::context::{Config, Context, config_path, is_pem, url};
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};

pub fn run(app: &App, verb: ContextVerb) -> Result<ExitStatus> {
    let path = config_path()?;
    let config = Config::load(&path)?;
    match verb {
        ContextVerb::List => list(app, &config),
        ContextVerb::Show { name } => show(app, &config, name.as_deref()),
        ContextVerb::Use { name } => change_current(app, config, &path, &name),
        ContextVerb::Set(args) => set(app, config, &path, &args),
        ContextVerb::Remove { name } => remove(app, config, &path, &name),
    }
}

fn list(app: &App, config: &Config) -> Result<ExitStatus> {
    if app.output.is_machine() {
        let contexts: Vec<Value> =
            config.contexts.iter().map(|(name, context)| shown(name, context, config)).collect();
        app.output.value(&json!({"contexts": contexts}))?;
        return Ok(ExitStatus::Done);
    }
    let rows = config.contexts.iter().map(|(name, context)| {
        let (mark, tone) = if *name == config.current { ("*", Tone::Good) } else { (" ", Tone::Plain) };
        vec![
            Cell::toned(mark, tone),
            Cell::from(name),
            Cell::from(context.endpoints.join(",")),
            Cell::from(&context.agency),
        ]
    });
    let table = Table { headers: vec!["", "NAME", "ENDPOINTS", "AGENCY"], rows: rows.collect() };
    app.output.table(
        &table,
        "there are no contexts; make one with `tamdao context set NAME --endpoint HOST:PORT …`",
    )?;
    Ok(ExitStatus::Done)
}

fn show(app: &App, config: &Config, name: Option<&str>) -> Result<ExitStatus> {
    let (name, context) = config.pick(name.or(app.global.context.as_deref()))?;
    if app.output.is_machine() {
        app.output.value(&shown(name, context, config))?;
        return Ok(ExitStatus::Done);
    }
    app.output.card(&[
        ("Name", Cell::from(name)),
        ("Current", Cell::from(if name == config.current { "yes" } else { "no" })),
        ("Endpoints", Cell::from(context.endpoints.join(", "))),
        ("CA", Cell::from(ca(context))),
        ("Token", Cell::from(token(context))),
        ("Agency", Cell::from(&context.agency)),
        ("Server name", Cell::from(&context.server_name)),
    ])?;
    Ok(ExitStatus::Done)
}

/// A context without its secret.
fn shown(name: &str, context: &Context, config: &Config) -> Value {
    json!({
        "name": name,
        "current": name == config.current,
        "endpoints": context.endpoints,
        "ca": ca(context),
        "token": token(context),
        "agency": context.agency,
        "server_name": context.server_name,
    })
}

fn ca(context: &Context) -> &str {
    if is_pem(&context.ca) { "(in the configuration)" } else { &context.ca }
}

fn token(context: &Context) -> &str {
    if context.login.as_ref().is_some_and(|login| !login.id_token.is_empty()) {
        return "(of the identity provider, in the configuration)";
    }
    if context.token.is_empty() { &context.token_file } else { "(in the configuration)" }
}

fn change_current(app: &App, mut config: Config, path: &Path, name: &str) -> Result<ExitStatus> {
    config.pick(Some(name))?;
    name.clone_into(&mut config.current);
    config.save(path)?;
    app.output.note(&format!("the current context is {name}"));
    Ok(ExitStatus::Done)
}

fn set(app: &App, mut config: Config, path: &Path, args: &ContextSetArgs) -> Result<ExitStatus> {
    let new = !config.contexts.contains_key(&args.name);
    let context = config.contexts.entry(args.name.clone()).or_default();
    if !app.global.endpoints.is_empty() {
        for endpoint in &app.global.endpoints {
            tonic::transport::Endpoint::from_shared(url(endpoint)).map_err(|_| {
                Problem::usage(format!("{endpoint} is not an endpoint")).hint("write HOST:PORT")
            })?;
        }
        context.endpoints.clone_from(&app.global.endpoints);
    }
    if new && context.endpoints.is_empty() {
        return Err(Problem::usage("a new context needs an endpoint")
            .hint("add --endpoint HOST:PORT")
            .into());
    }
    if let Some(file) = &app.global.ca {
        let wrong = || format!("cannot read the CA's certificate from {}", file.display());
        let pem = std::fs::read_to_string(file).with_context(wrong)?;
        if !is_pem(&pem) {
            return Err(Problem::usage(format!("{} is not a certificate in PEM", file.display())).into());
        }
        // The command may be run anywhere later.
        let path = std::path::absolute(file)?.display().to_string();
        context.ca = if args.embed_ca { pem } else { path };
    }
    if let Some(file) = &app.global.token_file {
        context.token_file = std::path::absolute(file)?.display().to_string();
        context.token.clear();
        context.forget_login();
    }
    if args.token_stdin {
        let mut token = String::new();
        std::io::stdin().read_to_string(&mut token).context("cannot read the token from stdin")?;
        context.token = token.trim().to_owned();
        context.token_file.clear();
        context.forget_login();
    }
    if let Some(agency) = &app.global.agency {
        agency.clone_into(&mut context.agency);
    }
    if let Some(name) = &args.server_name {
        name.clone_into(&mut context.server_name);
    }
    if config.current.is_empty() || args.make_current {
        config.current.clone_from(&args.name);
    }
    config.save(path)?;
    let word = if new { "made" } else { "changed" };
    let current = if config.current == args.name { ", and is the current one" } else { "" };
    app.output.note(&format!("context {} was {word}{current}", args.name));
    Ok(ExitStatus::Done)
}

fn remove(app: &App, mut config: Config, path: &Path, name: &str) -> Result<ExitStatus> {
    config.pick(Some(name))?;
    config.contexts.remove(name);
    if config.current == name {
        config.current.clear();
        app.output.warning("it was the current one; choose another with `tamdao context use NAME`");
    }
    config.save(path)?;
    app.output.note(&format!("context {name} was forgotten"));
    Ok(ExitStatus::Done)
}

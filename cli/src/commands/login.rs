//! `tamdao login` and `tamdao logout`: coming in by the identity provider, kept in a context.

use std::path::Path;

use anyhow::Result;

use crate::app::App;
use crate::args::{LoginArgs, Noun};
use crate::context::{Config, Login, config_path};
use crate::login;
use crate::problem::{ExitStatus, Problem};

const SCOPES: &str = "openid offline_access";

pub async fn come_in(app: &App, args: &LoginArgs) -> Result<ExitStatus> {
    let path = config_path()?;
    let config = Config::load(&path)?;
    let (name, context) = config.pick(app.global.context.as_deref())?;
    let mut wanted = context.login.clone().unwrap_or_default();
    for (given, field) in [
        (&args.issuer, &mut wanted.issuer),
        (&args.client_id, &mut wanted.client_id),
        (&args.scopes, &mut wanted.scopes),
    ] {
        if let Some(given) = given {
            field.clone_from(given);
        }
    }
    if wanted.scopes.is_empty() {
        SCOPES.clone_into(&mut wanted.scopes);
    }
    if let Some(file) = &args.issuer_ca {
        // The command may be run anywhere later.
        wanted.ca = std::path::absolute(file)?.display().to_string();
    }
    if wanted.issuer.is_empty() || wanted.client_id.is_empty() {
        return Err(Problem::usage(format!("context {name} knows no identity provider yet"))
            .hint("add --issuer URL and --client-id ID, as in [oidc] of the controllers; they are kept")
            .into());
    }
    login::come_in(&mut wanted, !args.no_browser, &app.output).await?;
    // Read again: it may have been written while somebody was in the browser.
    let mut config = Config::load(&path)?;
    let name = config.pick(app.global.context.as_deref())?.0.to_owned();
    let context = config.contexts.entry(name.clone()).or_default();
    context.login = Some(wanted);
    config.save(&path)?;
    app.output.note(&format!("you have come in; context {name} keeps it"));
    Ok(ExitStatus::Done)
}

pub fn leave(app: &App) -> Result<ExitStatus> {
    let path = config_path()?;
    let mut config = Config::load(&path)?;
    let name = config.pick(app.global.context.as_deref())?.0.to_owned();
    config.contexts.entry(name.clone()).or_default().forget_login();
    config.save(&path)?;
    app.output.note(&format!("context {name} has forgotten what the identity provider gave"));
    Ok(ExitStatus::Done)
}

/// Before a command that asks a cloud: exchanges a token whose time is over.
pub async fn freshen(app: &App, noun: &Noun) -> Result<()> {
    let asks = !matches!(
        noun,
        Noun::Login(_)
            | Noun::Logout
            | Noun::Context(_)
            | Noun::Completion { .. }
            | Noun::Validate(_)
            | Noun::Fmt(_)
    );
    let global = &app.global;
    // With these no token of a context is used.
    let another = global.token_file.is_some()
        || global.socket.is_some()
        || !global.endpoints.is_empty() && global.context.is_none();
    if !asks || another {
        return Ok(());
    }
    let path = config_path()?;
    let stale = |config: &Config| {
        let (name, context) = config.pick(global.context.as_deref()).ok()?;
        context.login.as_ref().filter(|login| login::is_stale(login)).map(|_| name.to_owned())
    };
    if stale(&Config::load(&path)?).is_none() {
        return Ok(());
    }
    let _alone = login::alone(path.parent().unwrap_or(Path::new(".")))?;
    // Another command may just have done it.
    let mut config = Config::load(&path)?;
    let Some(name) = stale(&config) else { return Ok(()) };
    let kept: Option<&mut Login> = config.contexts.get_mut(&name).and_then(|context| context.login.as_mut());
    if let Some(kept) = kept {
        login::refresh(kept).await?;
        config.save(&path)?;
    }
    Ok(())
}

//! Where the cloud is and who asks: contexts in one TOML file, `$TAMDAO_CONFIG` or `~/.config/tamdao/config.toml`, and
//! flags above them. Unknown keys are refused. The file may hold tokens, so it is written readable by its owner only,
//! aside and then renamed. What a context says is not tried here.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::args::GlobalArgs;
use crate::problem::Problem;

const NO_CONTEXT: &str = "run ./deploy/quickstart to make a cloud, or \
                          `tamdao context set NAME --endpoint HOST:PORT --ca FILE --token-file FILE` to use one";

/// The configuration file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The context that is used when none is named.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub current: String,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One cloud.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Controllers as HOST:PORT, or as URL; `http://` is plaintext.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// The CA's certificate: a path (relative to the configuration file) or PEM itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// A file that holds the token (relative to the configuration file).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token_file: String,
    /// The agency that is meant when none is named.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agency: String,
    /// The name that the controllers' certificates must show; empty takes the endpoint's host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub server_name: String,
    /// How somebody comes in by an identity provider, and what it gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
}

/// The identity provider of a context. Its token counts before those of the context.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Its URL, exactly as it calls itself.
    pub issuer: String,
    /// What the cloud is at the provider.
    pub client_id: String,
    /// What is asked for, separated by spaces.
    pub scopes: String,
    /// A CA that the provider is known by beside the public ones: a path or PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id_token: String,
    /// When the token ends, seconds since 1970.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expires: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refresh_token: String,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Context {
    /// Forgets what the identity provider gave, and not where it is.
    pub fn forget_login(&mut self) {
        if let Some(login) = &mut self.login {
            (login.id_token, login.refresh_token, login.expires) = Default::default();
        }
    }
}

/// Everything that a connection needs, read and checked for form.
#[derive(Debug, Clone)]
pub struct Connection {
    pub endpoints: Vec<String>,
    pub ca_pem: Option<String>,
    pub token: Option<String>,
    pub agency: String,
    pub server_name: String,
    /// What answered last time; none where no context is used.
    pub last: Option<Last>,
}

/// The endpoint of a context that answered last, in a file beside the configuration. It is a hint: one that cannot be
/// read or written costs a try at a dead controller, and is not worth a word.
#[derive(Debug, Clone)]
pub struct Last {
    file: PathBuf,
    context: String,
}

impl Last {
    /// The endpoint, if one is noted.
    pub fn endpoint(&self) -> Option<String> {
        self.all().remove(&self.context)
    }

    /// Notes the endpoint for the next run.
    pub fn note(&self, endpoint: &str) {
        let mut all = self.all();
        all.insert(self.context.clone(), endpoint.to_owned());
        let aside = self.file.with_extension(format!("new-{}", std::process::id()));
        if let Ok(text) = toml::to_string(&all)
            && std::fs::write(&aside, text).is_ok()
        {
            let _ = std::fs::rename(&aside, &self.file);
        }
    }

    fn all(&self) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        toml::from_str(&text).unwrap_or_default()
    }
}

/// Where the configuration file is.
pub fn config_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TAMDAO_CONFIG").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let base = std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let base = base.ok_or_else(|| Problem::usage("there is no HOME").hint("set TAMDAO_CONFIG to a file"))?;
    Ok(base.join("tamdao/config.toml"))
}

impl Config {
    /// Reads the file; a missing one is empty.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        toml::from_str(&text).map_err(|error| {
            Problem::usage(format!("{} is not a valid configuration", path.display()))
                .detail(error.to_string().trim_end())
                .into()
        })
    }

    /// Writes the file aside and renames it, so that it is never seen half written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder {
                std::fs::create_dir_all(folder)?;
            }
            let text = toml::to_string(self).map_err(std::io::Error::other)?;
            let aside = path.with_extension(format!("new-{}", std::process::id()));
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&aside, path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The named context, or the current one.
    pub fn pick(&self, name: Option<&str>) -> Result<(&str, &Context)> {
        let name = name.unwrap_or(&self.current);
        if name.is_empty() {
            return Err(Problem::usage("no context is chosen").hint(NO_CONTEXT).into());
        }
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok((name, context)),
            None => Err(Problem::usage(format!("there is no context named {name}"))
                .hint(match self.contexts.keys().next() {
                    Some(_) => {
                        let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
                        format!("there are: {}", names.join(", "))
                    }
                    None => NO_CONTEXT.to_owned(),
                })
                .into()),
        }
    }
}

/// The connection that flags, environment and configuration together mean.
pub fn connection(global: &GlobalArgs) -> Result<Connection> {
    if let Some(socket) = &global.socket {
        return by_socket(socket, global);
    }
    let path = config_path()?;
    let config = Config::load(&path)?;
    // Endpoints on the command line without a context named mean another cloud: nothing of the current
    // context may go there, above all not its token.
    let (name, context) = if !global.endpoints.is_empty() && global.context.is_none() {
        (None, Context::default())
    } else {
        let (name, context) = config.pick(global.context.as_deref())?;
        (Some(name), context.clone())
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = folder.join("last-endpoints.toml");

    let endpoints = if global.endpoints.is_empty() { &context.endpoints } else { &global.endpoints };
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| url(endpoint)).collect();
    if endpoints.is_empty() {
        return Err(Problem::usage("the context names no endpoint")
            .hint("add one with `tamdao context set NAME --endpoint HOST:PORT`")
            .into());
    }
    let ca_pem = match &global.ca {
        Some(file) => Some(read(file, "the CA's certificate")?),
        None if context.ca.is_empty() => None,
        None if is_pem(&context.ca) => Some(context.ca.clone()),
        None => Some(read(&folder.join(&context.ca), "the CA's certificate")?),
    };
    let token = match &global.token_file {
        Some(file) => Some(read(file, "the token")?),
        None if context.login.as_ref().is_some_and(|login| !login.id_token.is_empty()) => {
            context.login.map(|login| login.id_token)
        }
        None if !context.token.is_empty() => Some(context.token.clone()),
        None if context.token_file.is_empty() => None,
        None => Some(read(&folder.join(&context.token_file), "the token")?),
    };
    if ca_pem.is_none() && endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
        return Err(Problem::usage("there is no CA to know the controllers by")
            .hint("give the CA's certificate with --ca FILE, or in the context")
            .into());
    }
    Ok(Connection {
        endpoints,
        ca_pem,
        token: token.map(|token| token.trim().to_owned()),
        agency: global.agency.clone().unwrap_or(context.agency),
        server_name: context.server_name,
        last: name.map(|name| Last { file, context: name.to_owned() }),
    })
}

/// The controller of this machine. Nothing of a context goes there: its configuration may be what is broken.
fn by_socket(socket: &Path, global: &GlobalArgs) -> Result<Connection> {
    let told = |error| Problem::usage(format!("{} is no socket: {error}", socket.display()));
    let path = std::path::absolute(socket).map_err(told)?;
    Ok(Connection {
        endpoints: vec![format!("unix://{}", path.display())],
        ca_pem: None,
        token: None,
        agency: global.agency.clone().unwrap_or_default(),
        server_name: String::new(),
        last: None,
    })
}

/// HOST:PORT as a URL; TLS unless plaintext is asked for.
pub fn url(endpoint: &str) -> String {
    if endpoint.contains("://") {
        endpoint.trim_end_matches('/').to_owned()
    } else {
        format!("https://{endpoint}")
    }
}

/// True for a certificate itself, false for a path.
pub fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

fn read(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Problem::usage(format!("cannot read {what} from {}: {error}", path.display())).into()
    })
}

//! An identity provider of real life, the npm package `oidc-provider`, as a process with a certificate of its own. Its
//! one person is let in without a page to fill in; a browser is a curl with a jar for cookies.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use rcgen::{CertificateParams, KeyPair};

use crate::Result;
use crate::process::{Process, output, run, said};
use crate::slot::Slot;
use crate::wait::{SOON, eventually, not_yet};

/// Pinned, because others may want another Node.js.
const VERSION: &str = "8.8.1";

/// It goes with this value.
pub struct Provider {
    pub issuer: String,
    /// Its certificate, PEM, by which it is known.
    pub ca: PathBuf,
    home: PathBuf,
    process: Process,
}

impl Provider {
    /// Starts it and waits until it answers. Its ID tokens live so many seconds.
    ///
    /// # Errors
    /// When it cannot be installed or does not come up.
    pub async fn start(slot: &Slot, ttl_s: u32) -> Result<Self> {
        let module = tokio::task::spawn_blocking(module).await??;
        let home = slot.directory.join("provider");
        std::fs::create_dir_all(&home)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let issuer = format!("https://127.0.0.1:{port}");
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.self_signed(&key)?;
        let (key_file, ca) = (home.join("key.pem"), home.join("certificate.pem"));
        std::fs::write(&key_file, key.serialize_pem())?;
        std::fs::write(&ca, certificate.pem())?;
        let mut command = Command::new("node");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc/provider.mjs")).arg(module);
        command.arg(port.to_string()).arg(key_file).arg(&ca).arg(ttl_s.to_string());
        let process = Process::start("provider", &mut command, &home.join("log"))?;
        slot.note(process.id())?;
        let mut provider = Self { issuer, ca, home, process };
        let about = format!("{}/.well-known/openid-configuration", provider.issuer);
        eventually("the identity provider answers", SOON, async || {
            if let Some(status) = provider.process.ended()? {
                let words = format!("it ended with {status}:\n{}", provider.process.tail(20));
                return Err(crate::Hopeless(words).into());
            }
            match provider.browse(&about).await {
                Ok(_) => Ok(()),
                Err(error) => not_yet(error.to_string()),
            }
        })
        .await?;
        Ok(provider)
    }

    /// The section of a controller's configuration.
    pub fn section(&self) -> String {
        format!("[oidc]\nissuer = {:?}\nclient_id = \"tamdao\"\nca_file = {:?}", self.issuer, self.ca)
    }

    /// Goes where a URL leads, as a browser would.
    ///
    /// # Errors
    /// When somebody on the way does not answer.
    pub async fn browse(&self, url: &str) -> Result<String> {
        let jar = self.home.join("cookies");
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--location", "--max-time", "20", "--cacert"]);
        command.arg(&self.ca).arg("--cookie-jar").arg(&jar).arg("--cookie").arg(&jar).arg(url);
        let output = tokio::task::spawn_blocking(move || output(&mut command)).await??;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await
    }
}

/// The package, installed on first use beside the build.
fn module() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let home = target.join(format!("oidc-provider-{VERSION}"));
    let module = home.join("node_modules/oidc-provider/lib/index.js");
    if !module.is_file() {
        std::fs::create_dir_all(&home)?;
        run(Command::new("npm")
            .args(["install", "--no-fund", "--no-audit", "--silent", "--prefix"])
            .arg(&home)
            .arg(format!("oidc-provider@{VERSION}")))
        .context("oidc-provider from the npm registry; Debian's packages are nodejs and npm")?;
    }
    Ok(module.canonicalize()?)
}

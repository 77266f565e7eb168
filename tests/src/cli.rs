//! The command line as a user runs it: a program with a configuration file of its own, judged by exit code and output.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::process::said;
use crate::{Result, binaries};

/// No command of a test waits longer; one that does shall not hold up the others.
const LONGEST: Duration = Duration::from_secs(150);

/// One user's command line.
#[derive(Clone)]
pub struct Cli {
    program: PathBuf,
    config: PathBuf,
}

impl Cli {
    /// A command line that knows one cloud, in the context `test`.
    ///
    /// # Errors
    /// When the context cannot be made.
    pub async fn new(
        config: &Path,
        endpoints: &[String],
        ca: &Path,
        token: &Path,
        agency: &str,
    ) -> Result<Self> {
        let cli = Self { program: binaries::find("tamdao")?, config: config.to_owned() };
        let mut arguments: Vec<String> =
            ["context", "set", "test", "--use", "-a", agency].map(str::to_owned).into();
        for endpoint in endpoints {
            arguments.extend(["--endpoint".to_owned(), endpoint.clone()]);
        }
        arguments.extend(["--ca".to_owned(), ca.display().to_string()]);
        arguments.extend(["--token-file".to_owned(), token.display().to_string()]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cli.run(&arguments).await?;
        Ok(cli)
    }

    /// The same program with another configuration file.
    #[must_use]
    pub fn with_config(&self, config: &Path) -> Self {
        Self { program: self.program.clone(), config: config.to_owned() }
    }

    /// Runs a command to its end, however that is.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        self.with_input(arguments, b"").await
    }

    /// The same for a command that may take longer than others.
    ///
    /// # Errors
    /// When the program cannot be started, or has not ended in time.
    pub async fn within(&self, patience: Duration, arguments: &[&str]) -> Result<Output> {
        self.ended(patience, arguments, b"").await
    }

    /// Runs a command that must succeed; with what it said, how long it took, and the most memory that it had, MiB, as
    /// looked at every few milliseconds.
    ///
    /// # Errors
    /// When it fails or has not ended in time.
    pub async fn measured(&self, patience: Duration, arguments: &[&str]) -> Result<(String, Duration, f64)> {
        let (began, child) = (Instant::now(), self.spawn(arguments)?);
        let status = format!("/proc/{}/status", child.id().context("a child has an id")?);
        let ended = tokio::time::timeout(patience, child.wait_with_output());
        tokio::pin!(ended);
        let mut most = 0.0;
        let output = loop {
            tokio::select! {
                output = &mut ended => break output.context("it has not ended in time")??,
                () = tokio::time::sleep(Duration::from_millis(5)) => {
                    // A process that has just ended has no memory any more.
                    let seen = std::fs::read_to_string(&status).unwrap_or_default();
                    let line = seen.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                    let kib: Option<f64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
                    most = kib.map_or(most, |kib| kib / 1_024.0);
                }
            }
        };
        if !output.status.success() {
            bail!("`tamdao {}` ended with {}:\n{}", arguments.join(" "), output.status, said(&output));
        }
        Ok((said(&output), began.elapsed(), most))
    }

    /// The same with something on stdin.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        self.ended(LONGEST, arguments, input).await
    }

    async fn ended(&self, patience: Duration, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = self.spawn(arguments)?;
        let mut stdin = child.stdin.take().context("a pipe to stdin")?;
        // A command that reads nothing may have ended before this is written.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        let ended = tokio::time::timeout(patience, child.wait_with_output()).await;
        let words =
            || format!("`tamdao {}` has not ended after {} s", arguments.join(" "), patience.as_secs());
        Ok(ended.with_context(words)??)
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("TAMDAO_CONFIG", &self.config).env("NO_COLOR", "1");
        for variable in ["TAMDAO_AGENCY", "TAMDAO_CONTEXT"] {
            command.env_remove(variable);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))
    }

    /// Types something into a command that does not end by itself, such as a console, and reads until `found` is
    /// true of what came; then the command is ended.
    ///
    /// # Errors
    /// When the command ends before, or time is over, with what came.
    pub async fn converse(
        &self,
        arguments: &[&str],
        input: &[u8],
        patience: Duration,
        found: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let mut child = self.spawn(arguments)?;
        let (mut stdin, stdout) =
            (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        stdin.write_all(input).await?;
        let mut heard = Vec::new();
        let mut stdout = stdout;
        let read = async {
            loop {
                let text = String::from_utf8_lossy(&heard).replace('\r', "");
                if found(&text) {
                    return Ok(text);
                }
                if stdout.read_buf(&mut heard).await? == 0 {
                    bail!("`tamdao {}` ended after {text:?}", arguments.join(" "));
                }
            }
        };
        let answer = tokio::time::timeout(patience, read).await;
        child.kill().await?;
        match answer {
            Ok(answer) => answer,
            Err(_) => {
                bail!("`tamdao {}` said only {:?}", arguments.join(" "), String::from_utf8_lossy(&heard))
            }
        }
    }

    /// Runs a command that prints one line and then waits until `act` has done with it what it is for; all that it said
    /// otherwise.
    ///
    /// # Errors
    /// When it fails, or `act` does.
    pub async fn answered(
        &self,
        arguments: &[&str],
        act: impl AsyncFnOnce(&str) -> Result<()>,
    ) -> Result<String> {
        let mut child = self.spawn(arguments)?;
        let stdout = child.stdout.take().context("stdout")?;
        let mut line = String::new();
        tokio::time::timeout(LONGEST, BufReader::new(stdout).read_line(&mut line)).await??;
        if !line.is_empty() {
            act(line.trim()).await?;
        }
        let output = tokio::time::timeout(LONGEST, child.wait_with_output()).await??;
        if !output.status.success() {
            bail!("`tamdao {}` ended with {}:\n{}", arguments.join(" "), output.status, said(&output));
        }
        Ok(said(&output))
    }

    /// Runs a command that must succeed; its stdout.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.attempt(arguments).await?;
        if !output.status.success() {
            bail!("`tamdao {}` ended with {}:\n{}", arguments.join(" "), output.status, said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command with `-o json` that must succeed, and reads what it printed.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub async fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let text = self.run(&[arguments, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("`tamdao {}` printed {text}", arguments.join(" ")))
    }
}

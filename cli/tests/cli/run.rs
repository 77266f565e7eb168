//! Runs the binary with an environment of its own and writes down all that it did.

use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A command line that knows one fake cloud, or several controllers of it.
pub struct Tamdao {
    pub folder: tempfile::TempDir,
    endpoints: Vec<String>,
}

impl Tamdao {
    pub fn new(endpoints: &[&str]) -> Self {
        let endpoints: Vec<String> = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        let tamdao = Self { folder: tempfile::tempdir().unwrap(), endpoints };
        if !tamdao.endpoints.is_empty() {
            let config = format!(
                "current = \"test\"\n[contexts.test]\nendpoints = {:?}\ntoken = \"secret-token\"\nagency = \"health\"\n",
                tamdao.endpoints
            );
            tamdao.file("config.toml", config.as_bytes());
        }
        tamdao
    }

    /// Puts a file into the folder in which the command runs.
    pub fn file(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tamdao"));
        command.args(words(line)).current_dir(self.folder.path()).env_clear().kill_on_drop(true);
        command.env("TAMDAO_CONFIG", self.folder.path().join("config.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end.
    pub async fn output(&self, line: &str) -> Output {
        self.command(line).output().await.unwrap()
    }

    /// Runs to the end and returns stdout as JSON.
    pub async fn json(&self, line: &str) -> serde_json::Value {
        let output = self.output(line).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The same, however it ends.
    pub async fn json_of_any(&self, line: &str) -> serde_json::Value {
        serde_json::from_slice(&self.output(line).await.stdout).unwrap()
    }

    /// Runs to the end and returns all that it did, with what changes from run to run taken out.
    pub async fn story(&self, line: &str) -> String {
        self.told(&self.output(line).await)
    }

    /// The same, with something on stdin.
    pub async fn story_with_input(&self, line: &str, input: &[u8]) -> String {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).await.unwrap();
        drop(stdin);
        self.told(&child.wait_with_output().await.unwrap())
    }

    fn told(&self, output: &Output) -> String {
        let mut text = format!("exit code: {}\n", output.status.code().unwrap());
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                text.push_str(&format!("----- {name} -----\n{}", String::from_utf8_lossy(bytes)));
            }
        }
        for (number, endpoint) in self.endpoints.iter().enumerate() {
            let address = endpoint.trim_start_matches("http://").trim_start_matches("https://");
            text = text.replace(address, &format!("[controller {}]", number + 1));
        }
        text.replace(&self.folder.path().display().to_string(), "[folder]")
    }
}

/// Splits at blanks; single quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

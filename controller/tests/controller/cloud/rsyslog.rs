//! A real rsyslog, Debian's, as a process with a configuration of its own: it receives by TLS on loopback from those who
//! have a certificate of its CA, and writes what it received, letter by letter, one message a line.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tamdao_controller::syslog::Settings;

/// Ends with the test.
pub struct Rsyslog {
    directory: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

/// One message as it was received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Priority, version, time, host, program and so on.
    pub head: Vec<String>,
    /// What `tamdao audit export` prints.
    pub line: Value,
}

impl Received {
    pub fn id(&self) -> &str {
        self.line["record"]["id"].as_str().unwrap()
    }

    pub fn host(&self) -> &str {
        &self.head[2]
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Rsyslog {
    /// Makes its CA and certificates, and chooses a port on which nobody listens yet. It is not started.
    pub fn plan() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        authority(directory.path(), "ca", "receiver", &["localhost", "127.0.0.1"]);
        let senders = directory.path().join("trusted.pem");
        std::fs::copy(directory.path().join("ca.pem"), senders).unwrap();
        std::fs::create_dir(directory.path().join("work")).unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        // Larger than the default of 8 KiB: a record names all that its request changed.
        let text = format!(
            "global(workDirectory=\"{}\" maxMessageSize=\"64k\" defaultNetstreamDriver=\"ossl\"\n\
             defaultNetstreamDriverCAFile=\"{}\" defaultNetstreamDriverCertFile=\"{}\"\n\
             defaultNetstreamDriverKeyFile=\"{}\")\n\
             module(load=\"imtcp\" streamDriver.name=\"ossl\" streamDriver.mode=\"1\"\n\
             streamDriver.authMode=\"x509/certvalid\")\n\
             template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"audit\")\n\
             ruleset(name=\"audit\") {{ action(type=\"omfile\" file=\"{}\" template=\"raw\") }}\n",
            path("work"),
            path("ca.pem"),
            path("receiver.pem"),
            path("receiver.key"),
            path("received"),
        );
        std::fs::write(directory.path().join("rsyslog.conf"), text).unwrap();
        Self { directory, port, process: None }
    }

    /// How a controller sends to it.
    pub fn settings(&self) -> Settings {
        let path = |name: &str| self.directory.path().join(name);
        Settings {
            receiver: format!("localhost:{}", self.port),
            ca_file: path("trusted.pem"),
            identity: Some((path("receiver.pem"), path("receiver.key"))),
            silence: Duration::ZERO,
        }
    }

    /// Lets senders know it by its own CA, or by another one.
    pub fn trust(&self, right: bool) {
        let other = self.directory.path().join("other");
        if !right {
            std::fs::create_dir_all(&other).unwrap();
            authority(&other, "ca", "receiver", &["localhost"]);
        }
        let from = if right { self.directory.path().join("ca.pem") } else { other.join("ca.pem") };
        std::fs::copy(from, self.directory.path().join("trusted.pem")).unwrap();
    }

    /// Starts it. It need not receive yet; senders come again.
    pub fn start(&mut self) {
        let path = |name: &str| self.directory.path().join(name);
        let log = std::fs::File::create(path("log")).unwrap();
        let mut command = Command::new("rsyslogd");
        command.arg("-n").arg("-f").arg(path("rsyslog.conf")).arg("-i").arg(path("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().expect("rsyslogd is there: deploy/install-packages"));
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
            let _ = std::fs::remove_file(self.directory.path().join("pid"));
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("received")
    }

    /// All that was written so far, whole lines only.
    pub fn text(&self) -> String {
        let text = std::fs::read_to_string(self.file()).unwrap_or_default();
        text.rsplit_once('\n').map_or(String::new(), |(whole, _)| whole.to_owned())
    }

    /// The messages, each as it was received.
    pub fn received(&self) -> Vec<Received> {
        let read = |line: &str| {
            let (head, rest) = line.split_once(" [").unwrap_or_else(|| panic!("{line}"));
            let (_, json) = rest.split_once("] ").unwrap_or_else(|| panic!("{line}"));
            let line = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
            Received { head: head.split(' ').map(str::to_owned).collect(), line }
        };
        self.text().lines().map(read).collect()
    }
}

/// Writes a CA and a certificate of it, with its key.
fn authority(directory: &Path, ca: &str, leaf: &str, names: &[&str]) {
    let write = |name: String, text: String| std::fs::write(directory.join(name), text).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // Two names, or the leaf would be taken for signed by itself.
    params.distinguished_name.push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    write(format!("{ca}.pem"), params.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(params, key);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, leaf);
    let certificate = params.signed_by(&leaf_key, &issuer).unwrap();
    write(format!("{leaf}.pem"), certificate.pem());
    write(format!("{leaf}.key"), leaf_key.serialize_pem());
}

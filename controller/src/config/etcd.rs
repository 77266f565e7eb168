//! What a controller is told of the operator's etcd: `[store.etcd]`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tamdao_store::backend::etcd::{EtcdConfig, EtcdTls};

use super::read_certificates;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EtcdFile {
    endpoints: Vec<String>,
    prefix: String,
    user: String,
    password_file: PathBuf,
    ca_file: PathBuf,
    certificate_file: PathBuf,
    key_file: PathBuf,
    lease_s: u64,
    timeout_ms: u64,
    compact: bool,
}

impl Default for EtcdFile {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/tamdao".into(),
            user: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            lease_s: 5,
            timeout_ms: 5_000,
            compact: true,
        }
    }
}

impl EtcdFile {
    /// Finds everything that is wrong, and reads the files that it names. It counts only where etcd is the store.
    pub(super) fn check(self, refuse: &mut dyn FnMut(&'static str, &dyn fmt::Display, String)) -> EtcdConfig {
        let secure = !self.ca_file.as_os_str().is_empty();
        let scheme = if secure { "https://" } else { "http://" };
        if self.endpoints.is_empty() {
            refuse("store.etcd.endpoints", &"[]", "the URLs of etcd's members".into());
        }
        for wrong in self.endpoints.iter().filter(|endpoint| !endpoint.starts_with(scheme)) {
            let allowed =
                "a URL such as https://etcd-1.example:2379 with store.etcd.ca_file, or http://… without";
            refuse("store.etcd.endpoints", wrong, allowed.into());
        }
        if let Err(error) = EtcdConfig::check_root(&self.prefix) {
            refuse("store.etcd.prefix", &self.prefix, error.to_string());
        }
        for (key, value, (from, to)) in [
            ("store.etcd.lease_s", self.lease_s, (2, 60)),
            ("store.etcd.timeout_ms", self.timeout_ms, (500, 60_000)),
        ] {
            if !(from..=to).contains(&value) {
                refuse(key, &value, format!("{from} to {to}"));
            }
        }
        let ca = read_certificates(&self.ca_file);
        let ca = ca.map_err(|allowed| refuse("store.etcd.ca_file", &self.ca_file.display(), allowed));
        let certificate = read_certificates(&self.certificate_file);
        let certificate = certificate.map_err(|allowed| {
            refuse("store.etcd.certificate_file", &self.certificate_file.display(), allowed)
        });
        let mut secret = |key, file: &Path| {
            let read =
                if file.as_os_str().is_empty() { Ok(String::new()) } else { std::fs::read_to_string(file) };
            let told = |error| refuse(key, &file.display(), format!("a file that can be read ({error})"));
            read.map_err(told).unwrap_or_default()
        };
        let key = secret("store.etcd.key_file", &self.key_file);
        let password = secret("store.etcd.password_file", &self.password_file).trim_end().to_owned();
        let certificate = certificate.unwrap_or_default();
        if certificate.is_empty() != key.is_empty() || (!secure && !key.is_empty()) {
            let allowed = "both store.etcd.certificate_file and store.etcd.key_file, beside store.etcd.ca_file, or none";
            refuse("store.etcd.key_file", &self.key_file.display(), allowed.into());
        }
        if self.user.is_empty() != password.is_empty() {
            let allowed = "both store.etcd.user and store.etcd.password_file, or none";
            refuse("store.etcd.user", &self.user, allowed.into());
        }
        let identity = (!key.is_empty()).then_some((certificate, key));
        EtcdConfig {
            endpoints: self.endpoints,
            root: self.prefix,
            user: (!self.user.is_empty()).then_some((self.user, password)),
            tls: secure.then(|| EtcdTls { ca: ca.unwrap_or_default(), identity }),
            lease: Duration::from_secs(self.lease_s),
            patience: Duration::from_millis(self.timeout_ms),
            compact: self.compact,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, Config};
    use super::*;

    fn parse(etcd: &str) -> Result<Config, String> {
        let text = format!("name = 'c1'\naddress = 'c:1'\n[store]\nbackend = 'etcd'\n[store.etcd]\n{etcd}");
        Config::parse(&text, Path::new("c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_are_enough() {
        let config = parse("endpoints = ['http://10.0.0.1:2379', 'http://10.0.0.2:2379']").unwrap();
        let Backend::Etcd(etcd) = config.store.backend else { panic!("{config:?}") };
        assert_eq!((etcd.endpoints.len(), etcd.root.as_str()), (2, "/tamdao"));
        assert!(etcd.tls.is_none() && etcd.user.is_none() && etcd.compact);
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let error = parse(
            "endpoints = ['https://e:2379']\nprefix = 'tamdao/'\nuser = 'u'\nlease_s = 1\ntimeout_ms = 1\n\
             certificate_file = '/none.pem'\nkey_file = '/none.key'",
        )
        .unwrap_err();
        for key in ["endpoints", "prefix", "user", "lease_s", "timeout_ms", "certificate_file", "key_file"] {
            assert!(error.contains(&format!("store.etcd.{key} = ")), "{key} is missing in: {error}");
        }
        assert!(parse("").unwrap_err().contains("store.etcd.endpoints"));
        assert!(parse("endpionts = []").unwrap_err().contains("endpionts"));
    }

    #[test]
    fn on_raft_the_section_does_not_count() {
        let text = "name = 'c1'\naddress = 'c:1'\n[store.etcd]\nlease_s = 0";
        assert!(Config::parse(text, Path::new("c.toml")).is_ok());
    }
}

//! What a controller is told of the receiver of its audit log: `[syslog]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{read_certificates, split_address};
use crate::syslog::Settings;

/// A day.
const MINUTES: u32 = 24 * 60;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SyslogFile {
    receiver: String,
    ca_file: PathBuf,
    #[serde(default)]
    certificate_file: PathBuf,
    #[serde(default)]
    key_file: PathBuf,
    #[serde(default = "a_quarter")]
    silent_minutes: u32,
}

fn a_quarter() -> u32 {
    15
}

impl SyslogFile {
    /// Finds everything that is wrong. The receiver itself is not asked: it may be down when a controller starts.
    pub(super) fn check(self, refuse: &mut dyn FnMut(&'static str, &dyn fmt::Display, String)) -> Settings {
        if split_address(&self.receiver).is_none() {
            let allowed = "host:port of the receiver, such as soc.example:6514";
            refuse("syslog.receiver", &self.receiver, allowed.into());
        }
        match read_certificates(&self.ca_file) {
            Ok(pem) if pem.is_empty() => {
                let allowed = "a file with the CA that has signed the receiver's certificate, in PEM";
                refuse("syslog.ca_file", &"", allowed.into());
            }
            Ok(_) => {}
            Err(allowed) => refuse("syslog.ca_file", &self.ca_file.display(), allowed),
        }
        if let Err(allowed) = read_certificates(&self.certificate_file) {
            refuse("syslog.certificate_file", &self.certificate_file.display(), allowed);
        }
        let given = |path: &PathBuf| !path.as_os_str().is_empty();
        if given(&self.certificate_file) != given(&self.key_file) {
            let allowed = "both syslog.certificate_file and syslog.key_file, or none";
            refuse("syslog.key_file", &self.key_file.display(), allowed.into());
        }
        if self.silent_minutes > MINUTES {
            refuse("syslog.silent_minutes", &self.silent_minutes, format!("0 to {MINUTES}"));
        }
        let identity = given(&self.certificate_file).then_some((self.certificate_file, self.key_file));
        let silence = Duration::from_secs(u64::from(self.silent_minutes) * 60);
        Settings { receiver: self.receiver, ca_file: self.ca_file, identity, silence }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let text = "name = 'c1'\naddress = 'c:1'\n[syslog]\nreceiver = 'soc'\nca_file = ''\n\
                    certificate_file = '/none.pem'\nsilent_minutes = 9999";
        let error = Config::parse(text, Path::new("c.toml")).unwrap_err().to_string();
        for key in ["receiver", "ca_file", "certificate_file", "key_file", "silent_minutes"] {
            assert!(error.contains(&format!("syslog.{key} = ")), "{key} is missing in: {error}");
        }
    }
}

//! What a controller is told of the identity provider: `[oidc]`.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::read_certificates;
use crate::oidc::Settings;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OidcFile {
    issuer: String,
    client_id: String,
    #[serde(default = "sub")]
    name_claim: String,
    #[serde(default = "groups")]
    groups_claim: String,
    #[serde(default)]
    ca_file: PathBuf,
}

fn sub() -> String {
    "sub".into()
}

fn groups() -> String {
    "groups".into()
}

impl OidcFile {
    /// Finds everything that is wrong, and reads the file that it names.
    pub(super) fn check(self, refuse: &mut dyn FnMut(&'static str, &dyn fmt::Display, String)) -> Settings {
        let host = self.issuer.strip_prefix("https://").unwrap_or_default();
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@');
        if host.is_empty() || host.starts_with('/') || !host.chars().all(plain) {
            let allowed = "an https URL without ? and #, exactly as the provider's tokens have it in iss";
            refuse("oidc.issuer", &self.issuer, allowed.into());
        }
        for (key, value) in [
            ("oidc.client_id", &self.client_id),
            ("oidc.name_claim", &self.name_claim),
            ("oidc.groups_claim", &self.groups_claim),
        ] {
            if value.trim().is_empty() {
                refuse(key, value, "a text that is not empty".into());
            }
        }
        let ca_pem = read_certificates(&self.ca_file).unwrap_or_else(|allowed| {
            refuse("oidc.ca_file", &self.ca_file.display(), allowed);
            String::new()
        });
        let Self { issuer, client_id, name_claim, groups_claim, .. } = self;
        Settings { issuer, client_id, name_claim, groups_claim, ca_pem }
    }
}

//! What a controller is told of backups that are made by themselves: `[backup]`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tamdao_backup::{Access, Credentials, Keep, Place, Recipients};

use super::read_certificates;
use crate::backups::Settings;

/// Backups that are kept, of either sort, at most: each is read by a leader once.
const KEPT: u32 = 10_000;
/// A year.
const MINUTES: u32 = 366 * 24 * 60;

/// The section as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupFile {
    destination: String,
    recipients: Vec<String>,
    #[serde(default = "hourly")]
    every_minutes: u32,
    #[serde(default = "two_days_of_hours")]
    keep_last: u32,
    #[serde(default = "a_month")]
    keep_daily_days: u32,
    #[serde(default)]
    endpoint: String,
    #[serde(default = "first_region")]
    region: String,
    #[serde(default)]
    credentials_file: PathBuf,
    #[serde(default)]
    ca_file: PathBuf,
}

fn hourly() -> u32 {
    60
}

fn two_days_of_hours() -> u32 {
    48
}

fn a_month() -> u32 {
    31
}

fn first_region() -> String {
    "us-east-1".into()
}

impl BackupFile {
    /// Finds everything that is wrong, and reads the files that it names. The destination itself is not asked: it may be
    /// down when a controller starts. None when something is wrong.
    pub(super) fn check(
        self,
        refuse: &mut dyn FnMut(&'static str, &dyn fmt::Display, String),
    ) -> Option<Settings> {
        let place = Place::parse(&self.destination).ok();
        let place = place.filter(|place| !matches!(place, Place::Directory(path) if !path.is_absolute()));
        if place.is_none() {
            let allowed = "s3://bucket/prefix, or the absolute path of a directory";
            refuse("backup.destination", &self.destination, allowed.into());
        }
        let recipients = Recipients::parse(self.recipients.iter().map(String::as_str));
        let recipients = recipients.map_err(|_| {
            let allowed = "public keys of age (age1…) of who can read the backups, one at least";
            refuse("backup.recipients", &self.recipients.join(", "), allowed.into());
        });
        for (key, value, (from, to)) in [
            ("backup.every_minutes", self.every_minutes, (1, MINUTES)),
            ("backup.keep_last", self.keep_last, (1, KEPT)),
            ("backup.keep_daily_days", self.keep_daily_days, (0, KEPT)),
        ] {
            if !(from..=to).contains(&value) {
                refuse(key, &value, format!("{from} to {to}"));
            }
        }
        if !self.endpoint.is_empty()
            && !self.endpoint.starts_with("https://")
            && !self.endpoint.starts_with("http://")
        {
            let allowed = "a URL such as https://s3.example, or nothing for Amazon's own";
            refuse("backup.endpoint", &self.endpoint, allowed.into());
        }
        let ca = read_certificates(&self.ca_file);
        let ca = ca.map_err(|allowed| refuse("backup.ca_file", &self.ca_file.display(), allowed));
        let credentials = match &place {
            Some(Place::Bucket { .. }) => credentials(&self.credentials_file),
            _ => Ok(Credentials::default()),
        };
        let credentials = credentials.map_err(|allowed| {
            refuse("backup.credentials_file", &self.credentials_file.display(), allowed);
        });
        let access = Access {
            endpoint: self.endpoint,
            region: self.region,
            credentials: credentials.ok()?,
            ca_pem: ca.ok()?,
        };
        Some(Settings {
            place: place?,
            access,
            recipients: recipients.ok()?,
            every: Duration::from_secs(u64::from(self.every_minutes) * 60),
            keep: Keep { last: self.keep_last, daily_days: self.keep_daily_days },
        })
    }
}

/// From the file, or without one from the variables that Amazon's tools know.
fn credentials(file: &Path) -> Result<Credentials, String> {
    if file.as_os_str().is_empty() {
        let needed = "a file with the credentials of the bucket, unless AWS_ACCESS_KEY_ID and \
                      AWS_SECRET_ACCESS_KEY are set";
        return Credentials::from_environment().ok_or_else(|| needed.to_owned());
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("a file that can be read ({error})"))?;
    let form = "a file with the lines aws_access_key_id = … and aws_secret_access_key = …, once each";
    Credentials::parse(&text).ok_or_else(|| form.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(backup: &str) -> Result<Config, String> {
        let text = format!("name = 'c1'\naddress = 'c:1'\n{backup}");
        Config::parse(&text, Path::new("c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_and_a_recipient_are_enough() {
        let (_, recipient) = tamdao_backup::Identities::generate();
        let config =
            parse(&format!("[backup]\ndestination = '/srv/backups'\nrecipients = ['{recipient}']")).unwrap();
        let backup = config.backup.unwrap();
        assert_eq!(backup.place, Place::Directory("/srv/backups".into()));
        assert_eq!((backup.every, backup.keep.last), (Duration::from_secs(3_600), 48));
        assert!(parse("").unwrap().backup.is_none());
    }

    #[test]
    fn a_bucket_needs_credentials_that_are_not_shown() {
        let (_, recipient) = tamdao_backup::Identities::generate();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("s3");
        let text = format!(
            "[backup]\ndestination = 's3://cloud/north'\nrecipients = ['{recipient}']\n\
             endpoint = 'https://s3.example'\ncredentials_file = '{}'",
            file.display()
        );
        assert!(parse(&text).unwrap_err().contains("backup.credentials_file"));
        std::fs::write(&file, "aws_access_key_id = AKIA\naws_secret_access_key = hush\n").unwrap();
        let config = parse(&text).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("hush") && !shown.contains("AKIA"), "{shown}");
        assert_eq!(config.backup.unwrap().access.credentials.secret, "hush");
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let error = parse(
            "[backup]\ndestination = 'backups'\nrecipients = ['age1nonsense']\nevery_minutes = 0\nkeep_last = 0\n\
             keep_daily_days = 99999\nendpoint = 's3.example'\nca_file = '/none.pem'",
        )
        .unwrap_err();
        for key in [
            "destination",
            "recipients",
            "every_minutes",
            "keep_last",
            "keep_daily_days",
            "endpoint",
            "ca_file",
        ] {
            assert!(error.contains(&format!("backup.{key} = ")), "{key} is missing in: {error}");
        }
    }
}

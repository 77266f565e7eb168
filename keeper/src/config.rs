//! The keeper's configuration: one TOML file, checked whole before anything else happens. Which pools, which lease and
//! which guests the agent says.

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub const DEFAULT_PATH: &str = "/etc/tamdao/keeper.toml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the agent connects.
    pub socket: PathBuf,
    /// What a keeper that is started again goes on from; on a file system that a boot empties.
    pub state: PathBuf,
    /// The watchdog's device; none for a host without one, whose silence then proves nothing.
    pub watchdog: Option<PathBuf>,
    /// At most a sixth of the shortest lease.
    pub watchdog_timeout_ms: u64,
    /// What tells one boot from another.
    pub boot_id_file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/tamdao-keeper/socket".into(),
            state: "/run/tamdao-keeper/state.json".into(),
            watchdog: None,
            watchdog_timeout_ms: 10_000,
            boot_id_file: "/proc/sys/kernel/random/boot_id".into(),
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        Self::parse(&std::fs::read_to_string(path).map_err(read)?)
            .map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if config.watchdog.is_some() && !(100..=600_000).contains(&config.watchdog_timeout_ms) {
            return Err("`watchdog_timeout_ms`: give 100 to 600000".into());
        }
        Ok(config)
    }

    /// Of the watchdog, if there is one.
    pub fn timeout_ms(&self) -> Option<u64> {
        self.watchdog.as_ref().map(|_| self.watchdog_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_good_and_unknown_keys_are_not() {
        let example = include_str!("../../deploy/config/keeper.toml");
        assert_eq!(Config::parse(example).unwrap().timeout_ms(), Some(10_000));
        assert!(Config::parse("watch_dog = '/dev/watchdog'").unwrap_err().contains("watch_dog"));
        assert!(Config::parse("watchdog = '/dev/watchdog'\nwatchdog_timeout_ms = 5").is_err());
    }
}

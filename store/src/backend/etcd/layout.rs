//! Which key of etcd is which: everything lies below one root, the records beside what this backend keeps for itself.
//!
//! Its invariant: a record's key and the keys of the backend never meet, and every key below the root has one meaning.

use crate::kv::{Key, Result, StoreError};

/// Longest root in bytes: with it the largest transaction stays below etcd's limit for a request (decision 0201).
const MAX_ROOT_BYTES: usize = 256;

/// The keys below one root.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: String,
}

/// What a key below the root stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A record of the contract.
    Record(Key),
    /// The mark that each commit writes last.
    Head,
    /// The level of encodings.
    Level,
    /// The id of the cloud that the root belongs to.
    Cloud,
    /// The place of the controller with this id.
    Controller(u64),
    /// Not ours; somebody has put it there by hand.
    Stray,
}

impl Layout {
    /// # Errors
    /// `Invalid` unless `root` is an absolute path without a slash at its end, of 2 to 256 bytes.
    pub(super) fn new(root: &str) -> Result<Layout> {
        if !(2..=MAX_ROOT_BYTES).contains(&root.len()) || Key::new(root).is_err() {
            let reason = format!("the key prefix {root:?} is not one such as \"/tamdao\", of 2 to 256 bytes");
            return Err(StoreError::invalid(reason));
        }
        Ok(Layout { root: root.to_owned() })
    }

    /// What all keys begin with.
    pub(super) fn all(&self) -> String {
        format!("{}/", self.root)
    }

    pub(super) fn record(&self, key: &Key) -> String {
        format!("{}/kv{key}", self.root)
    }

    /// Written last by every commit, so that its revision is the newest commit's, and its event ends that commit's.
    pub(super) fn head(&self) -> String {
        format!("{}/head", self.root)
    }

    pub(super) fn level(&self) -> String {
        format!("{}/level", self.root)
    }

    pub(super) fn cloud(&self) -> String {
        format!("{}/cloud", self.root)
    }

    /// Where a controller says that it is there.
    pub(super) fn place_of(&self, id: u64) -> String {
        format!("{}/controller/{id}", self.root)
    }

    pub(super) fn place(&self, key: &[u8]) -> Place {
        let Some(rest) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.root)) else {
            return Place::Stray;
        };
        match rest {
            "/head" => Place::Head,
            "/level" => Place::Level,
            "/cloud" => Place::Cloud,
            _ => {
                let record = rest.strip_prefix("/kv").and_then(|key| Key::new(key).ok()).map(Place::Record);
                let controller = || Some(Place::Controller(rest.strip_prefix("/controller/")?.parse().ok()?));
                record.or_else(controller).unwrap_or(Place::Stray)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_again_as_what_it_is() {
        let layout = Layout::new("/tamdao/hà-nội").unwrap();
        for text in ["/leader", "/vm/1", "/head", "/level", "/kv", "/kv/x"] {
            let key = Key::new(text).unwrap();
            assert_eq!(layout.place(layout.record(&key).as_bytes()), Place::Record(key));
        }
        assert_eq!(layout.place(layout.head().as_bytes()), Place::Head);
        assert_eq!(layout.place(layout.level().as_bytes()), Place::Level);
        assert_eq!(layout.place(layout.cloud().as_bytes()), Place::Cloud);
        assert_eq!(layout.place(layout.place_of(7).as_bytes()), Place::Controller(7));
        for stray in ["/tamdao/hà-nội/kvx/1", "/tamdao/hà-nội/kv/1/", "/tamdao/huế/head", "/tamdao/hà-nội/x"]
        {
            assert_eq!(layout.place(stray.as_bytes()), Place::Stray, "{stray}");
        }
        assert_eq!(layout.place(b"/tamdao/\xff"), Place::Stray);
    }

    #[test]
    fn a_root_is_a_short_absolute_path() {
        for wrong in ["", "/", "tamdao", "/tamdao/", "/tam\ndao", &format!("/{}", "x".repeat(256))] {
            assert!(matches!(Layout::new(wrong), Err(StoreError::Invalid { .. })), "{wrong:?}");
        }
    }
}

//! A backup is restored record by record, and never onto anything that is used or from anything that is not whole.

use std::path::Path;
use std::sync::Arc;

use tamdao_backup::{About, Content, Recipients};
use tamdao_model::agency::{Agency, AgencySpec};
use tamdao_model::cluster::{Cluster, JoinKind, JoinToken};
use tamdao_model::{AgencyId, JoinTokenId, Meta, Name};
use tamdao_store::backend::memory::MemoryStore;
use tamdao_store::backend::raft::PlainDial;
use tamdao_store::kv::{Election, Kv, Prefix, Read};

use super::*;
use crate::backups;

const NOW: TimeMs = TimeMs(1_800_000_000_000);

fn config(directory: &Path, name: &str) -> Config {
    let data = directory.join(name);
    let text = format!("name = '{name}'\naddress = '{name}.example:7443'\ndata_dir = '{}'", data.display());
    Config::parse(&text, Path::new("c.toml")).unwrap()
}

/// A cloud with an agency and a token to join it, and its backup.
struct Lost {
    directory: tempfile::TempDir,
    entries: Vec<Entry>,
    cluster: Cluster,
    key: [u8; 32],
    revision: u64,
    identities: Identities,
    recipient: String,
}

impl Lost {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (identity, _) = identity::found(&config(directory.path(), "c1"), "north", NOW).unwrap();
        let cluster = identity.seed.clone().unwrap();
        let store = MemoryStore::new("c1");
        let mut draft = Draft::new(View::default(), Uuid::new_v4());
        draft.put(cluster.clone());
        let meta = Meta::new(AgencyId(Uuid::from_u128(3)), Name::new("health").unwrap(), NOW);
        draft.create(Agency { meta, spec: AgencySpec::default() });
        let (id, digest) = (JoinTokenId(Uuid::from_u128(4)), "d".to_owned());
        let (kind, expire_time) = (JoinKind::Node, NOW.plus_ms(1));
        draft.put(JoinToken { id, kind, digest, expire_time, uses_left: 1, name: None });
        store.commit(draft.into_txn([])).await.unwrap();
        let (entries, revision) = store.list(&Prefix::all(), Read::Linearizable).await.unwrap();
        let entries = entries.into_iter().map(backups::entry).collect();
        let (identities, recipient) = Identities::generate();
        let key = *identity.key.expose();
        Self { directory, entries, cluster, key, revision: revision.0, identities, recipient }
    }

    fn backup(&self) -> Vec<u8> {
        self.backup_of(self.entries.clone(), self.key)
    }

    fn backup_of(&self, entries: Vec<Entry>, cluster_key: [u8; 32]) -> Vec<u8> {
        let about = About {
            cluster: self.cluster.id.0,
            cluster_name: self.cluster.name.clone(),
            revision: self.revision,
            level: 1,
            time_ms: NOW.0,
            version: "0.1.0".into(),
        };
        let recipients = Recipients::parse([self.recipient.as_str()]).unwrap();
        tamdao_backup::write(about, &Content { cluster_key, entries }, &recipients).unwrap()
    }

    fn restore(&self, name: &str, file: &[u8]) -> Result<Restored, RestoreError> {
        restore(&config(self.directory.path(), name), file, &self.identities, NOW)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_restored_is_what_was_backed_up_record_by_record() {
    let lost = Lost::new().await;
    let restored = lost.restore("c9", &lost.backup()).unwrap();
    assert_ne!(restored.identity.cluster, lost.cluster.id, "it is another cluster");
    let config = config(lost.directory.path(), "c9");
    let settings = RaftConfig::new(config.data_dir.join("raft"), "c9", &config.address);
    let store = RaftStore::open(settings, Arc::new(PlainDial)).await.unwrap();
    store.join(restored.identity.cluster.0).await.unwrap();
    let office = store.campaign().await.unwrap();
    assert!(office.epoch > restored.base && restored.base.0 > lost.revision + 1_000_000);
    let (after, _) = store.list(&Prefix::all(), Read::Linearizable).await.unwrap();
    let after = after.into_iter().filter(|entry| entry.key != Key::leader());
    let after: Vec<Entry> = after.map(backups::entry).collect();
    let renewed = |entry: &&Entry| entry.key != "/cluster/self";
    let kept = |entry: &&Entry| !entry.key.starts_with("/join_token/");
    let before: Vec<&Entry> = lost.entries.iter().filter(renewed).filter(kept).collect();
    assert_eq!(after.iter().filter(renewed).collect::<Vec<_>>(), before);
    assert!(!before.is_empty() && before.len() < lost.entries.len());
    let view =
        View::of(Revision(1), store.list(&Prefix::all(), Read::Linearizable).await.unwrap().0).unwrap();
    let cluster = view.cluster().unwrap();
    assert!(cluster.recovery.is_some() && cluster.id == restored.identity.cluster);
    assert_eq!(cluster.admin_tokens.len(), lost.cluster.admin_tokens.len() + 1);
    assert_eq!(cluster.ca_certificate, lost.cluster.ca_certificate, "agents go on with their certificates");
    store.shutdown().await;
}

#[tokio::test]
async fn nothing_is_written_from_what_cannot_be_believed() {
    let lost = Lost::new().await;
    let file = lost.backup();
    let mut damaged = file.clone();
    let at = damaged.len() - 9;
    damaged[at] ^= 1;
    let unreadable = lost.entries.iter().cloned().map(|entry| match entry.key.starts_with("/agency/") {
        true => Entry { value: "{}".into(), ..entry },
        false => entry,
    });
    let unreadable = lost.backup_of(unreadable.collect(), lost.key);
    // Each record can be read, and a name is left of one that is not there.
    let nameless = lost.entries.iter().filter(|entry| !entry.key.starts_with("/agency/")).cloned().collect();
    let nameless = lost.backup_of(nameless, lost.key);
    let other_key = lost.backup_of(lost.entries.clone(), [1; 32]);
    for (wrong, file) in
        [damaged, file[..file.len() - 1].to_vec(), unreadable, nameless, other_key].into_iter().enumerate()
    {
        assert!(lost.restore("c9", &file).is_err(), "{wrong}");
        assert!(!lost.directory.path().join("c9").exists(), "{wrong} left something");
    }
    let (other, _) = Identities::generate();
    let config = config(lost.directory.path(), "c9");
    let refused = restore(&config, &file, &other, NOW).unwrap_err();
    assert!(matches!(refused, RestoreError::Backup(BackupError::WrongKey)), "{refused}");
}

#[tokio::test]
async fn a_directory_that_is_used_is_left_as_it_is() {
    let lost = Lost::new().await;
    let refused = lost.restore("c1", &lost.backup()).unwrap_err();
    assert!(matches!(refused, RestoreError::Identity(IdentityError::Used(_))), "{refused}");
}

#[test]
fn every_kind_of_record_that_the_store_knows_is_checked() {
    let known = tamdao_store::view::KINDS;
    let checked: Vec<&str> = check::KINDS.iter().map(|(kind, _)| *kind).collect();
    for kind in known {
        assert!(checked.contains(kind), "{kind} is not looked at by verify");
    }
    assert_eq!(known.len(), checked.len());
}

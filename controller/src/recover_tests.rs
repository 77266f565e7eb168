//! A survivor becomes a group of its own with all that it had, and a recovery that breaks off leaves the one or the other.

use std::sync::Arc;

use tamdao_model::agency::{Agency, AgencySpec};
use tamdao_model::{AgencyId, Meta, Name};
use tamdao_store::backend::raft::{DiskError, PlainDial};
use tamdao_store::kv::{Election, Kv};
use tamdao_store::typed::Draft;

use super::*;
use crate::identity;

const NOW: TimeMs = TimeMs(1_800_000_000_000);

/// The data directory of a controller with an agency, and its store where it runs.
struct Group {
    _directory: tempfile::TempDir,
    config: Config,
    cluster: ClusterId,
}

impl Group {
    async fn new() -> (Self, RaftStore) {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("c1");
        let text = format!("name = 'c1'\naddress = 'c1.example:7443'\ndata_dir = '{}'", data.display());
        let config = Config::parse(&text, Path::new("c.toml")).unwrap();
        let (mut identity, _) = identity::found(&config, "north", NOW).unwrap();
        let settings = RaftConfig::new(data.join(RAFT), "c1", "c1.example:7443");
        let store = RaftStore::open(settings, Arc::new(PlainDial)).await.unwrap();
        store.init(identity.cluster.0).await.unwrap();
        store.campaign().await.unwrap();
        let mut draft = Draft::new(View::default(), Uuid::new_v4());
        draft.put(identity.seed.clone().unwrap());
        let meta = Meta::new(AgencyId(Uuid::from_u128(3)), Name::new("health").unwrap(), NOW);
        draft.create(Agency { meta, spec: AgencySpec::default() });
        store.commit(draft.into_txn([])).await.unwrap();
        identity.founded().unwrap();
        (Self { _directory: directory, config, cluster: identity.cluster }, store)
    }

    async fn stopped() -> Self {
        let (group, store) = Self::new().await;
        store.shutdown().await;
        group
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.data_dir.join(name)
    }

    fn survivor(&self) -> Survivor {
        match look(&self.config).unwrap() {
            Found::Survivor(survivor) => *survivor,
            Found::Completed(_) => panic!("nothing had broken off"),
        }
    }

    /// The cluster that the store in this directory is of, and its records.
    fn held(&self, name: &str) -> (ClusterId, View) {
        let settings = RaftConfig::new(self.path(name), "c1", "c1.example:7443");
        let remains = RaftStore::remains(&settings).unwrap();
        let view = View::of(remains.state.revision, remains.state.entries()).unwrap();
        (ClusterId(remains.cluster), view)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_becomes_another_cluster_with_all_its_records() {
    let group = Group::stopped().await;
    let survivor = group.survivor();
    let told = survivor.describe().join("\n");
    assert!(told.contains("cluster north") && told.contains("c1 at c1.example:7443, this one"), "{told}");
    let (before, revision) = (survivor.view.clone(), survivor.remains.state.revision);
    let recovered = survivor.recover(NOW).unwrap();
    assert_ne!(recovered.identity.cluster, group.cluster);
    let identity = Identity::of(&group.config).unwrap();
    let (cluster, after) = group.held(RAFT);
    assert_eq!((identity.cluster, after.cluster().unwrap().id), (cluster, cluster));
    assert!(after.revision > recovered.base && recovered.base.0 > revision.0 + 1_000_000);
    let record = after.cluster().unwrap();
    let recovery = record.recovery.as_ref().unwrap();
    assert_eq!(
        (&recovery.cause, recovery.cluster, recovery.revision),
        (&Cause::Survivor, group.cluster, revision.0)
    );
    assert_eq!(record.former, [group.cluster], "agents that come from it are known");
    let old = before.cluster().unwrap();
    assert_eq!((&record.ca_certificate, &record.admin_tokens), (&old.ca_certificate, &old.admin_tokens));
    assert_eq!(after.agencies.len(), 1);
    let kept = recovered.old.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(group.held(&kept).0, group.cluster, "the old group's data are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_broke_off_is_done_again_or_completed() {
    let group = Group::stopped().await;
    // Before the identity names the new cluster: the old one is there as it was, and half a store is made anew.
    fs::create_dir_all(group.path(RECOVERED)).unwrap();
    fs::write(group.path(RECOVERED).join("log.redb"), "half").unwrap();
    assert!(matches!(Identity::of(&group.config), Err(IdentityError::Unfinished(_))));
    assert_eq!(group.survivor().identity.cluster, group.cluster);
    assert!(!group.path(RECOVERED).exists());
    let recovered = group.survivor().recover(NOW).unwrap();
    // After it, with the stores where they were, or with the old one gone from its place already.
    for old_is_back in [true, false] {
        fs::rename(group.path(RAFT), group.path(RECOVERED)).unwrap();
        if old_is_back {
            fs::rename(&recovered.old, group.path(RAFT)).unwrap();
        }
        assert!(matches!(Identity::of(&group.config), Err(IdentityError::Unfinished(_))));
        let Found::Completed(cluster) = look(&group.config).unwrap() else { panic!("begun anew") };
        assert_eq!((cluster, group.held(RAFT).0), (recovered.identity.cluster, cluster));
        assert!(recovered.old.exists() && Identity::of(&group.config).is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_damaged_or_cannot_be_opened_is_left_as_it_is() {
    let (group, store) = Group::new().await;
    let refused = look(&group.config).err().expect("it runs");
    assert!(matches!(refused, RecoverError::Store(OpenError::Disk(DiskError::InUse { .. }))), "{refused}");
    store.shutdown().await;
    let key = group.path("cluster.key");
    let whole = fs::read(&key).unwrap();
    fs::write(&key, vec![7; whole.len()]).unwrap();
    assert!(matches!(look(&group.config), Err(RecoverError::Records(_))), "a key that opens nothing");
    fs::write(&key, whole).unwrap();
    let identity = group.path("identity.json");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace(&group.cluster.to_string(), &Uuid::nil().to_string())).unwrap();
    assert!(matches!(look(&group.config), Err(RecoverError::OtherCluster(..))));
    fs::write(&identity, text).unwrap();
    assert_eq!(group.survivor().identity.cluster, group.cluster);
}

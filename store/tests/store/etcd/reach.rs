//! Reaching etcd: TLS, users, limits, and others who use the same etcd.

use std::time::Duration;

use etcd_client::Client;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tamdao_store::backend::etcd::{EtcdConfig, EtcdStore, EtcdTls, Me};
use tamdao_store::contract::within;
use tamdao_store::kv::{
    Guard, Key, Kv, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Membership, Op, Prefix, Read, Revision,
    StoreError, Txn,
};

use super::servers::{Servers, Tls, me, ready};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn certificates() -> Tls {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name.push(DnType::CommonName, "the operator's CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let own = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = params.signed_by(&own, &issuer).unwrap();
    Tls { ca: ca_pem, identity: (certificate.pem(), own.serialize_pem()) }
}

/// What a store says that cannot be made to answer.
async fn refused(config: EtcdConfig, me: Me) -> Result<Revision, StoreError> {
    let config = EtcdConfig { patience: Duration::from_secs(1), ..config };
    within("a refusal", EtcdStore::open(config, me)?.barrier()).await
}

/// With the right CA and certificate the store works; with another CA, or without a certificate, it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_mutual_and_verified() {
    let servers = Servers::start(1, Some(certificates()));
    let store = servers.open("c1", 0).await;
    let written = store.commit(Txn::new().put(key("/t/1"), "x")).await.unwrap();
    assert_eq!(store.get(&key("/t/1"), Read::Linearizable).await.unwrap().unwrap().mod_revision, written);
    let right = servers.config(0);
    let tls = right.tls.clone().unwrap();
    let stranger = EtcdTls { ca: certificates().ca, ..tls.clone() };
    let nameless = EtcdTls { identity: None, ..tls };
    for wrong in [stranger, nameless] {
        let refused = refused(EtcdConfig { tls: Some(wrong), ..right.clone() }, me("c1")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    }
    let plain = EtcdStore::open(EtcdConfig { tls: None, ..right }, me("c1")).err();
    assert!(matches!(plain, Some(StoreError::Invalid { .. })), "{plain:?}");
}

/// Where etcd wants a user, the right password works and a wrong one does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_proved_to_etcd() {
    let servers = Servers::start(1, None);
    servers.leader().await;
    let mut admin = Client::connect([servers.url(0)], None).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    let with =
        |password: &str| EtcdConfig { user: Some(("root".into(), password.into())), ..servers.config(0) };
    ready(&EtcdStore::open(with("secret"), me("c1")).unwrap()).await;
    for config in [with("guess"), servers.config(0)] {
        let refused = refused(config, me("c1")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    }
}

/// The largest transaction of the contract, with the longest root and keys, is within etcd's default limits; also
/// where its guards fail and all of them are looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_transaction_fits_etcds_default_limits() {
    let servers = Servers::start(1, None);
    let root = format!("/{}", "r".repeat(255));
    let store = EtcdStore::open(EtcdConfig { root, ..servers.config(0) }, me("c1")).unwrap();
    ready(&store).await;
    let long = |at: usize| key(&format!("/{at:03}/{}", "k".repeat(MAX_KEY_BYTES - 5)));
    let guards: Vec<Guard> = (0..MAX_TXN_OPS).map(|at| Guard::Absent(long(at))).collect();
    let keys = 2 * MAX_TXN_OPS * MAX_KEY_BYTES;
    let value = vec![b'v'; (MAX_TXN_BYTES - keys) / MAX_TXN_OPS];
    let ops = (0..MAX_TXN_OPS).map(|at| Op::Put(long(at), value.clone().into())).collect();
    let mut txn = Txn { guards, ops };
    let revision = store.commit(txn.clone()).await.unwrap();
    assert_eq!(store.commit(txn.clone()).await, Err(StoreError::Conflict { key: long(0) }));
    txn.guards = (0..MAX_TXN_OPS).map(|at| Guard::Unchanged(long(at), revision)).collect();
    store.commit(txn.clone()).await.unwrap();
    txn.ops = (0..MAX_TXN_OPS).map(|at| Op::Delete(long(at))).collect();
    txn.guards.clear();
    store.commit(txn).await.unwrap();
    assert_eq!(store.list(&Prefix::all(), Read::Linearizable).await.unwrap().0, []);
}

/// Others who write to the same etcd take revisions, and take nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_on_the_same_etcd_do_not_disturb() {
    let servers = Servers::start(1, None);
    let store = servers.open("c1", 0).await;
    let root = "/tamdao-2".into();
    let elsewhere = EtcdStore::open(EtcdConfig { root, ..servers.config(0) }, me("c1")).unwrap();
    let mut stranger = Client::connect([servers.url(0)], None).await.unwrap();
    let mut last = store.commit(Txn::new().put(key("/s/0"), "x")).await.unwrap();
    for round in 1..20 {
        stranger.put("/other", round.to_string(), None).await.unwrap();
        stranger.put("/tamdao/by-hand", round.to_string(), None).await.unwrap();
        elsewhere.commit(Txn::new().put(key("/s/1"), "other cloud")).await.unwrap();
        assert!(store.barrier().await.unwrap() >= last);
        let at = format!("/s/{round}");
        let txn = Txn::new().absent(key(&at)).unchanged(key(&format!("/s/{}", round - 1)), last);
        let next = store.commit(txn.put(key(&at), "x")).await.unwrap();
        assert!(next > last.next(), "the others have taken revisions");
        let absent = Txn::new().delete(key("/s/absent"));
        assert_eq!(store.commit(absent).await.unwrap(), next, "what changes nothing takes none");
        last = next;
    }
    let (listed, _) = store.list(&Prefix::all(), Read::Linearizable).await.unwrap();
    assert_eq!(listed.len(), 20);
    assert!(listed.iter().all(|entry| entry.value == "x"));
}

/// A prefix belongs to the cloud that was founded there: no other one can use it by mistake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_belongs_to_one_cloud() {
    let servers = Servers::start(1, None);
    let open = |me| EtcdStore::open(servers.config(0), me).unwrap();
    let early = refused(servers.config(0), Me { found: false, ..me("c2") }).await;
    assert!(
        matches!(&early, Err(StoreError::Unavailable { reason, .. }) if reason.contains("holds no cloud"))
    );
    let founder = open(me("c1"));
    ready(&founder).await;
    let joined = open(Me { found: false, ..me("c2") });
    ready(&joined).await;
    let late = refused(servers.config(0), Me { cloud: uuid::Uuid::from_u128(2), ..me("c3") }).await;
    assert!(
        matches!(&late, Err(StoreError::Unavailable { reason, .. }) if reason.contains("belongs to cloud"))
    );
    let there = async {
        while joined.status().members.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("both have their places", there).await;
    let names: Vec<String> = joined.members().await.unwrap().into_iter().map(|member| member.name).collect();
    assert_eq!(names, ["c1", "c2"], "and the stranger has none");
}

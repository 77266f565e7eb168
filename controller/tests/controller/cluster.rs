//! Several controllers: joining, what a follower sends on, and images that all of them keep.

use std::sync::Arc;
use std::time::Duration;

use crate::cloud::{Answer, Cloud, User, eventually, node_request};
use axum::body::{Body, Bytes};
use http::Method;
use tamdao_controller::auth::{self, Gate};
use tamdao_controller::forward::{self, Forward, Leader};
use tamdao_controller::identity::Identity;
use tamdao_controller::join::{self, JoinError};
use tamdao_controller::peers::Peers;
use tamdao_controller::pki;
use tamdao_controller::serve::Listener;
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::enroll_service_client::EnrollServiceClient;
use tamdao_proto::v1;
use tamdao_proto::v1::flavor_service_client::FlavorServiceClient;
use tokio_util::sync::CancellationToken;
use tonic::Code;

fn flavor(name: &str) -> String {
    format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"vcpus": 1, "memory_mib": 512}}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_controller_takes_a_change() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    cloud.join("c3").await;
    let (follower, admin) = (cloud.address(cloud.follower()).to_owned(), cloud.admin());
    let made = admin.post(&follower, "/v1/flavors", &flavor("by-rest")).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    let wrong = admin.post(&follower, "/v1/flavors", r#"{"spec": {"vcpuz": 1}}"#).await;
    assert_eq!((wrong.status.as_u16(), wrong.fields()), (400, vec!["spec.vcpuz".to_owned()]));
    let huge = "x".repeat(300 * 1024);
    assert_eq!(admin.post(&follower, "/v1/flavors", &huge).await.status, 413);
    assert_eq!(cloud.anonymous().post(&follower, "/v1/flavors", &flavor("no")).await.status, 401);

    let mut grpc = FlavorServiceClient::new(admin.channel(&follower));
    let metadata = v1::Metadata { name: "by-grpc".into(), ..Default::default() };
    let spec = v1::FlavorSpec { vcpus: 1, memory_mib: 512, ..Default::default() };
    let wanted = v1::Flavor { metadata: Some(metadata), spec: Some(spec) };
    let request = v1::CreateFlavorRequest { flavor: Some(wanted), ..Default::default() };
    grpc.create_flavor(admin.ask(request.clone())).await.unwrap();
    let twice = grpc.create_flavor(admin.ask(request)).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    let list = grpc.list_flavors(admin.ask(v1::ListFlavorsRequest::default())).await.unwrap().into_inner();
    assert_eq!(list.flavors.len(), 2);

    // The leader goes; whoever is left takes changes again.
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    cloud.running.remove(leader).controller.stop().await;
    for at in 0..2 {
        let address = cloud.address(at).to_owned();
        eventually("a change is taken after the leader has gone", || async {
            let answer = admin.post(&address, "/v1/flavors", &flavor(&format!("after-{at}"))).await;
            [200, 409].contains(&answer.status.as_u16()).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_controller_sends_its_clients_elsewhere() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    cloud.join("c3").await;
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    let gone = cloud.follower();
    let (name, at) = (format!("c{}", gone + 1), cloud.address(gone).to_owned());
    let admin = cloud.admin();
    let mut grpc = FlavorServiceClient::new(admin.channel(&at));
    let watch = admin.ask(v1::WatchFlavorsRequest::default());
    let mut watch = grpc.watch_flavors(watch).await.unwrap().into_inner();
    let path = format!("/v1/controllers/{name}:remove");
    let removed = admin.post(cloud.address(leader), &path, "{}").await;
    assert_eq!(removed.status, 200, "{:?}", removed.body);
    // From the first moment on it is another one's turn, whatever is asked.
    let change = admin.post(&at, "/v1/flavors", &flavor("one")).await;
    assert_eq!(change.status, 503, "{:?}", change.body);
    assert_eq!(admin.get(&at, "/v1/flavors").await.status, 503);
    for (method, path) in
        [(Method::GET, "/v1/flavors"), (Method::POST, "/v1/flavors"), (Method::GET, "/v1/vms:watch")]
    {
        let answer = eventually("it knows that it was removed", || async {
            let answer = admin.call(&at, method.clone(), path, &flavor("one")).await;
            assert_eq!(answer.status, 503, "{path}: {:?}", answer.body);
            (answer.json()["details"][0]["reason"] == "ControllerRemoved").then_some(answer)
        })
        .await;
        assert!(answer.json()["message"].as_str().unwrap().contains("removed"), "{:?}", answer.body);
    }
    // Who was watching there is told too.
    let end = loop {
        match watch.message().await {
            Ok(more) => assert!(more.is_some(), "it ended without a reason"),
            Err(end) => break end,
        }
    };
    assert!(end.code() == Code::Unavailable && end.message().contains("removed"), "{end:?}");
    let ready = admin.get(&at, "/readyz").await;
    assert!(ready.status == 503 && ready.body.ends_with(b"removed from the group\n"), "{:?}", ready.body);
    assert_eq!(admin.get(&at, "/healthz").await.status, 200);
    // It harms nobody, and the others go on.
    assert_eq!(admin.post(cloud.address(leader), "/v1/flavors", &flavor("one")).await.status, 200);
    cloud.running.remove(gone).controller.stop().await;
}

/// A controller's layers alone, with another one's address for the leader.
async fn layers(cloud: &Cloud, leader: Leader) -> (String, CancellationToken) {
    let identity = Identity::of(&cloud.running[0].config).unwrap();
    let credentials = identity.credentials().unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &credentials).await.unwrap();
    let address = listener.address().to_string();
    let peers = Peers::new(&credentials).unwrap();
    let leader = match leader {
        Leader::At(at) if at.is_empty() => Leader::At(address.clone()),
        other => other,
    };
    let forward = Forward::new(move || leader.clone(), peers).patience(Duration::from_millis(300));
    let shared = &cloud.running[0].controller.shared;
    let gate = Gate::new(
        shared.cache.clone(),
        shared.clock.clone(),
        shared.trail.clone(),
        shared.strangers.clone(),
        cloud.running[0].config.allowances,
    );
    let echo =
        |request: axum::extract::Request| async move { auth::of_headers(request.headers()).to_string() };
    let router = axum::Router::new()
        .fallback(echo)
        .layer(axum::middleware::from_fn_with_state(forward, forward::carry))
        .layer(axum::middleware::from_fn_with_state(gate, auth::guard));
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(router, stop.clone()));
    (address, stop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_call_keeps_its_caller_and_never_loops() {
    let cloud = Cloud::found().await;
    let admin = cloud.admin();
    let (leads, _stop) = layers(&cloud, Leader::Here).await;
    let (follows, _stop) = layers(&cloud, Leader::At(leads.clone())).await;
    let direct = admin.post(&leads, "/v1/flavors", "{}").await.body;
    assert!(direct.starts_with(b"admin:"), "{direct:?}");
    assert_eq!(admin.post(&follows, "/v1/flavors", "{}").await.body, direct);
    assert_eq!(admin.get(&follows, "/v1/flavors").await.body, direct);

    // Two that take each other for the leader answer at last, and so does one that takes itself for another.
    let (mutual, _stop) = layers(&cloud, Leader::At(follows.clone())).await;
    let (looping, _stop) = layers(&cloud, Leader::At(mutual)).await;
    for at in [looping, layers(&cloud, Leader::At(String::new())).await.0] {
        let answer = admin.post(&at, "/v1/flavors", "{}").await;
        assert_eq!(answer.status, 503, "{:?}", answer.body);
        assert!(answer.hint().contains("majority"), "{}", answer.hint());
    }
    for leader in [Leader::Nobody, Leader::At("127.0.0.1:9".into())] {
        let (at, _stop) = layers(&cloud, leader).await;
        let answer = admin.post(&at, "/v1/flavors", "{}").await;
        assert_eq!((answer.status.as_u16(), answer.json()["code"].as_i64()), (503, Some(14)));
        let mut grpc = FlavorServiceClient::new(admin.channel(&at));
        let status = grpc.create_flavor(admin.ask(v1::CreateFlavorRequest::default())).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_lost_in_the_middle_is_an_unknown_outcome() {
    let cloud = Cloud::found().await;
    let identity = Identity::of(&cloud.running[0].config).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(identity.credentials().unwrap().server().unwrap());
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, _stop) = layers(&cloud, Leader::At(socket.local_addr().unwrap().to_string())).await;
    // It shakes hands, hears the request and drops dead.
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let mut stream = tls.accept(stream).await.unwrap();
            let mut heard = Vec::new();
            while !heard.windows(7).any(|bytes| bytes == b"outcome") {
                let mut more = [0; 1024];
                let count = tokio::io::AsyncReadExt::read(&mut stream, &mut more).await.unwrap();
                heard.extend_from_slice(&more[..count]);
            }
        }
    });
    let answer = cloud.admin().post(&at, "/v1/flavors", r#"{"what": "outcome"}"#).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["code"].as_i64()),
        (409, Some(10)),
        "{:?}",
        answer.body
    );
    assert!(answer.hint().contains("request_id"), "{}", answer.hint());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_tells_nothing_to_another_cluster() {
    let (one, other) = (Cloud::found().await, Cloud::found().await);
    let token = one.join_token(&one.admin(), "JOIN_TOKEN_KIND_CONTROLLER", 1).await;
    let config = one.running[0].config.clone();
    let config = tamdao_controller::config::Config {
        name: tamdao_model::Name::new("c2").unwrap(),
        data_dir: one.directory.path().join("c2"),
        address: "127.0.0.1:1".into(),
        ..config
    };
    let error = join::join(&config, &token, other.address(0)).await.unwrap_err();
    assert!(matches!(error, JoinError::Dial { .. }), "{error}");
    let wrong_kind = one.join_token(&one.admin(), "JOIN_TOKEN_KIND_NODE", 1).await;
    let error = join::join(&config, &wrong_kind, one.address(0)).await.unwrap_err();
    assert!(error.to_string().contains("for a node"), "{error}");
    // A refused attempt leaves nothing in the way of the next one.
    let joined = join::join(&config, &token, one.address(0)).await.unwrap();
    assert_eq!(joined.cluster, Identity::of(&one.running[0].config).unwrap().cluster);
    assert!(Identity::of(&config).unwrap().seed.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_enrols_once_more_and_renews() {
    let cloud = Cloud::found().await;
    let token = cloud.join_token(&cloud.admin(), "JOIN_TOKEN_KIND_NODE", 3).await;
    let mut enroll = EnrollServiceClient::new(cloud.anonymous().channel(cloud.address(0)));
    let (request, key) = node_request(&token, "n1");
    let first = enroll.enroll_node(request.clone()).await.unwrap().into_inner();
    let again = enroll.enroll_node(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.node_id, again.node_id);
    assert_eq!(first.controllers, [cloud.address(0)]);
    let stranger = node_request(&token, "n1").0;
    let refused = enroll.enroll_node(stranger).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let wrong = agent::EnrollNodeRequest { secret: "tdjoin1.x".into(), ..request };
    assert_eq!(enroll.enroll_node(wrong).await.unwrap_err().code(), Code::InvalidArgument);

    let credentials = pki::Credentials::new(&first.ca, &first.certificate, &key).unwrap();
    let node = User::new(credentials.client().unwrap(), None);
    let made = pki::request().unwrap();
    let renew = agent::RenewRequest { csr: made.request };
    let renewed =
        EnrollServiceClient::new(node.channel(cloud.address(0))).renew(renew.clone()).await.unwrap();
    credentials.replace(&renewed.get_ref().certificate, &made.key).unwrap();
    assert_eq!(
        pki::Holder::of(&credentials.certificate()).map(|(_, holder)| holder),
        Some(pki::Holder::Node(first.node_id.parse().unwrap()))
    );
    assert_eq!(enroll.renew(renew.clone()).await.unwrap_err().code(), Code::Unauthenticated);

    // Who is deleted is nobody, whatever certificate he has.
    let path = format!("/v1/nodes/{}", first.node_id);
    let deleted = cloud.admin().call(cloud.address(0), Method::DELETE, &path, "").await;
    assert_eq!(deleted.status, 200, "{:?}", deleted.body);
    let refused = EnrollServiceClient::new(node.channel(cloud.address(0))).renew(renew).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

async fn make_image(cloud: &Cloud, name: &str, spec: &str) {
    let body = format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {spec}}}"#);
    let made = cloud.admin().post(cloud.address(0), "/v1/images", &body).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
}

async fn in_phase(cloud: &Cloud, name: &str, phase: &str) -> serde_json::Value {
    let admin = cloud.admin();
    eventually(&format!("image {name} is {phase}"), || async {
        let image = admin.get(cloud.address(0), &format!("/v1/images/{name}")).await.json();
        (image["status"]["phase"] == phase).then_some(image)
    })
    .await
}

async fn upload(cloud: &Cloud, at: &str, name: &str, query: &str, bytes: Vec<u8>) -> Answer {
    let admin = cloud.admin();
    eventually("a leader answers", || async {
        let request = admin.request(at, Method::PUT, &format!("/v1/images/{name}/content{query}"));
        admin.send(request.body(Body::from(bytes.clone())).unwrap()).await.of_a_leader()
    })
    .await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_kept_by_every_controller() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    let follower = cloud.address(cloud.follower()).to_owned();
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).take(3 << 20).collect();
    make_image(&cloud, "disk", "{}").await;
    // Sent to the follower, compressed, and larger than any other request may be.
    let stored = upload(&cloud, &follower, "disk", "?gzip=true", gzip(&bytes)).await;
    assert_eq!(stored.status, 200, "{:?}", stored.body);
    let sha256 = pki::sha256_hex(&bytes);
    assert_eq!(stored.json()["status"]["sha256"], sha256.as_str());
    let image = in_phase(&cloud, "disk", "IMAGE_PHASE_AVAILABLE").await;
    assert_eq!(image["status"]["controllers"].as_array().unwrap().len(), 2, "{image}");
    assert_eq!(image["status"]["virtual_size_mib"], 3);
    let (_, node) = cloud.node("n1").await;
    for at in 0..2 {
        let whole = node.get(cloud.address(at), &format!("/images/{sha256}")).await;
        assert!(whole.status == 200 && whole.body == bytes, "{}", whole.status);
    }
    let request = node.request(cloud.address(0), Method::GET, &format!("/images/{sha256}"));
    let rest = node.send(request.header("range", "bytes=100-").body(Body::empty()).unwrap()).await;
    assert!(rest.status == 206 && rest.body == bytes[100..], "{}", rest.status);
    assert_eq!(cloud.anonymous().get(cloud.address(0), &format!("/images/{sha256}")).await.status, 401);
    let again = upload(&cloud, &follower, "disk", "", bytes).await;
    assert_eq!(again.json()["details"][0]["reason"], "HasFile", "{:?}", again.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_or_is_not_acceptable_is_not_kept() {
    let cloud = Cloud::found().await;
    let at = cloud.address(0).to_owned();
    let blobs = cloud.running[0].config.data_dir.join("images");
    make_image(&cloud, "broken", "{}").await;
    let parts =
        futures::stream::iter([Ok(Bytes::from(vec![1; 1 << 20])), Err(std::io::Error::other("gone"))]);
    let admin = cloud.admin();
    let request =
        admin.request(&at, Method::PUT, "/v1/images/broken/content").body(Body::from_stream(parts)).unwrap();
    let connection = admin.try_open(request).await;
    assert!(connection.is_none_or(|status| status != 200));
    in_phase(&cloud, "broken", "IMAGE_PHASE_PENDING").await;
    assert_eq!(upload(&cloud, &at, "broken", "", vec![1; 1 << 20]).await.status, 200);
    in_phase(&cloud, "broken", "IMAGE_PHASE_AVAILABLE").await;

    let wrong = format!(r#"{{"sha256": "{}"}}"#, "0".repeat(64));
    let backing = {
        let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
        header.resize(1024, 0);
        header[15] = 112;
        header
    };
    let cases = [
        ("checksum", wrong.as_str(), "", vec![1; 1024], "ChecksumMismatch"),
        ("backing", "{}", "", backing, "BackingFile"),
        ("notgzip", "{}", "?gzip=true", vec![1; 1024], "NotGzip"),
        ("empty", "{}", "", Vec::new(), "Empty"),
        ("large", "{}", "", vec![1; 9 << 20], "TooLarge"),
        ("bomb", "{}", "?gzip=true", gzip(&vec![0; 64 << 20]), "TooLarge"),
    ];
    let before = std::fs::read_dir(&blobs).unwrap().count();
    for (name, spec, query, bytes, reason) in cases {
        make_image(&cloud, name, spec).await;
        let refused = upload(&cloud, &at, name, query, bytes).await;
        let status = if reason == "TooLarge" { 413 } else { 400 };
        assert_eq!(refused.status, status, "{name}: {:?}", refused.body);
        assert_eq!(refused.json()["details"][0]["reason"], reason);
        let image = in_phase(&cloud, name, "IMAGE_PHASE_FAILED").await;
        assert_eq!(image["status"]["conditions"][0]["reason"], reason, "{image}");
    }
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_tells_how_far_its_journal_has_come() {
    let mut cloud = Cloud::found().await;
    cloud.join("c2").await;
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    let shared = cloud.running[leader].controller.shared.clone();
    let ids: Vec<_> = cloud.running.iter().map(|running| running.controller.shared.me.id).collect();
    eventually("both journals hold what there was", || async {
        let enough = shared.journals.enough(ids.iter().copied(), shared.clock.instant());
        (enough > tamdao_store::kv::Revision::ZERO).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_a_server_of_the_provinces_own_ca() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let config = crate::cloud::config(directory.path(), "server");
    let now =
        tamdao_model::TimeMs(u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap());
    let (identity, _) = tamdao_controller::identity::found(&config, "province", now).unwrap();
    let listener = Listener::bind(config.listen, &identity.credentials().unwrap()).await.unwrap();
    let router = axum::Router::new().route("/disk.raw", axum::routing::get(|| async { vec![7u8; 1 << 20] }));
    tokio::spawn(listener.run(router, CancellationToken::new()));
    let ca = directory.path().join("province.pem");
    std::fs::write(&ca, &identity.ca).unwrap();
    let cloud = Cloud::found_with(&format!("ca_file = '{}'", ca.display())).await;
    make_image(&cloud, "disk", &format!(r#"{{"url": "https://{}/disk.raw"}}"#, config.address)).await;
    in_phase(&cloud, "disk", "IMAGE_PHASE_AVAILABLE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_from_its_url() {
    let cloud = Cloud::found().await;
    let bytes = Arc::new(gzip(&vec![7; 1 << 20]));
    let tries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let served = bytes.clone();
    let router = axum::Router::new().route(
        "/disk.raw.gz",
        axum::routing::get(move || async move {
            match tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                0 => Err(http::StatusCode::SERVICE_UNAVAILABLE),
                _ => Ok(served.as_ref().clone()),
            }
        }),
    );
    let stop = CancellationToken::new();
    let from = tamdao_controller::serve::plain("127.0.0.1:0".parse().unwrap(), router, stop).await.unwrap();
    make_image(&cloud, "missing", &format!(r#"{{"url": "http://{from}/none"}}"#)).await;
    let image = in_phase(&cloud, "missing", "IMAGE_PHASE_FAILED").await;
    assert!(image["status"]["conditions"][0]["message"].as_str().unwrap().contains("404"), "{image}");
    make_image(&cloud, "disk", &format!(r#"{{"url": "http://{from}/disk.raw.gz"}}"#)).await;
    let image = in_phase(&cloud, "disk", "IMAGE_PHASE_AVAILABLE").await;
    assert_eq!(image["status"]["sha256"], pki::sha256_hex(&vec![7; 1 << 20]).as_str());
    assert_eq!(
        (&image["status"]["format"], &image["status"]["virtual_size_mib"]),
        (&"raw".into(), &1.into())
    );
}

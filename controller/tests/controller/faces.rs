//! The faces of a controller as users meet them: who may come in, REST and gRPC alike, and how errors are told.

use std::sync::Arc;
use std::time::Duration;

use crate::cloud::{Cloud, User, eventually};
use axum::body::{Body, Bytes};
use axum::routing::get;
use futures::StreamExt;
use http::Method;
use tamdao_controller::clock::{Clock, SystemClock};
use tamdao_controller::forward::Leader;
use tamdao_controller::identity::{self, Identity, Renewer};
use tamdao_controller::metrics::{self, Readiness};
use tamdao_controller::pki;
use tamdao_controller::serve::{Listener, plain};
use tamdao_proto::v1;
use tamdao_proto::v1::flavor_service_client::FlavorServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const FLAVOR: &str = r#"{"metadata": {"name": "small"}, "spec": {"vcpus": 1, "memory_mib": 512}}"#;

#[tokio::test]
async fn only_who_is_known_comes_in() {
    let mut cloud = Cloud::found().await;
    cloud.settled().await;
    let (at, anonymous) = (cloud.address(0).to_owned(), cloud.anonymous());
    for open in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(anonymous.get(&at, open).await.status, 200, "{open}");
    }
    let refused = anonymous.get(&at, "/v1/flavors").await;
    assert_eq!((refused.status.as_u16(), refused.json()["code"].as_i64()), (401, Some(16)));
    assert!(refused.hint().contains("Bearer"), "{}", refused.hint());
    let forger = cloud.with_token("tdadmin1.AAAA");
    assert_eq!(forger.get(&at, "/v1/flavors").await.status, 401);
    assert_eq!(forger.get(&at, "/healthz").await.status, 200);
    let (_, node) = cloud.node("n1").await;
    let refused = node.get(&at, "/v1/flavors").await;
    assert_eq!((refused.status.as_u16(), refused.json()["code"].as_i64()), (403, Some(7)));
    assert_eq!(cloud.admin().get(&at, "/v1/flavors").await.status, 200);

    let grpc = |user: User| FlavorServiceClient::new(user.channel(&at));
    let list = v1::ListFlavorsRequest::default;
    let status = grpc(anonymous.clone()).list_flavors(list()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let admin = cloud.admin();
    grpc(admin.clone()).list_flavors(admin.ask(list())).await.unwrap();
}

#[tokio::test]
async fn nobody_outside_can_say_who_he_is() {
    let cloud = Cloud::found().await;
    let (_, node) = cloud.node("n1").await;
    for user in [cloud.anonymous(), node] {
        let request = user.request(cloud.address(0), Method::GET, "/v1/flavors");
        let request = request.header("x-tamdao-principal", "admin:forged").header("x-tamdao-hop", "1");
        let answer = user.send(request.body(Body::empty()).unwrap()).await;
        assert!([401, 403].contains(&answer.status.as_u16()), "{}", answer.status);
    }
}

#[tokio::test]
async fn bad_input_is_told_by_its_field_and_changes_nothing() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    let cases = [
        (r#"{"metadata": {"name": "a"}, "spec": {"vcpuz": 1}}"#, "spec.vcpuz"),
        (r#"{"metadata": {"name": "a"}, "spec": {"vcpus": "many", "memory_mib": 512}}"#, "spec.vcpus"),
        (r#"{"metadata": {"name": "a"}, "spec": {"vcpus": -1, "memory_mib": 512}}"#, "spec.vcpus"),
        (
            r#"{"metadata": {"name": "a"}, "spec": {"vcpus": 1, "memory_mib": 99999999999}}"#,
            "spec.memory_mib",
        ),
        (r#"{"metadata": {"name": 5}}"#, "metadata.name"),
        (r#"{"metadata": {"name": "a/b"}, "spec": {"vcpus": 1, "memory_mib": 512}}"#, "metadata.name"),
        (r#"{"metadata": {"name": "a"}, "spec": {"vcpus": 0, "memory_mib": 512}}"#, "spec.vcpus"),
    ];
    for (body, field) in cases {
        let answer = admin.post(at, "/v1/flavors", body).await;
        assert_eq!(answer.status, 400, "{body}: {:?}", answer.body);
        let named = answer.fields();
        assert!(named.iter().any(|named| named.ends_with(field)), "{body}: {named:?} in {:?}", answer.body);
    }
    assert_eq!(admin.post(at, "/v1/flavors", "{").await.status, 400);
    let huge = format!(r#"{{"metadata": {{"name": "{}"}}}}"#, "a".repeat(300 * 1024));
    let answer = admin.post(at, "/v1/flavors", &huge).await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_i64()), (413, Some(3)));
    let list = admin.get(at, "/v1/flavors").await.json();
    assert!(list["flavors"].as_array().is_none_or(Vec::is_empty), "{list}");
}

#[tokio::test]
async fn routes_that_are_none_are_told_so() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    let answer = admin.get(at, "/v1/flavors/a/b").await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_i64()), (404, Some(5)));
    let answer = admin.call(at, Method::DELETE, "/v1/flavors", "").await;
    assert_eq!((answer.status.as_u16(), answer.headers["allow"].to_str().unwrap()), (405, "GET, POST"));
    let missing = admin.get(at, "/v1/flavors/none").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["details"][0]["@type"], "type.googleapis.com/google.rpc.ErrorInfo");
    let missing = admin.get(at, "/v1/flavors/a%2Fb").await;
    assert!([400, 404].contains(&missing.status.as_u16()), "{}", missing.status);
}

#[tokio::test]
async fn query_parameters_have_the_names_of_the_proto() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    let checked = admin.post(at, "/v1/flavors?validate_only=true", FLAVOR).await;
    assert_eq!(checked.status, 200, "{:?}", checked.body);
    assert_eq!(admin.get(at, "/v1/flavors/small").await.status, 404);
    let id = uuid::Uuid::new_v4();
    let path = format!("/v1/flavors?request_id={id}");
    let first = admin.post(at, &path, FLAVOR).await;
    assert_eq!(first.status, 200, "{:?}", first.body);
    assert_eq!(admin.post(at, &path, FLAVOR).await.json()["metadata"]["id"], first.json()["metadata"]["id"]);
    let other = FLAVOR.replace("small", "other");
    assert_eq!(admin.post(at, "/v1/flavors", &other).await.status, 200);
    let page = admin.get(at, "/v1/flavors?page_size=1").await.json();
    assert_eq!(page["flavors"].as_array().unwrap().len(), 1);
    assert!(!page["next_page_token"].as_str().unwrap().is_empty());
    let path = "/v1/flavors/small?update_mask=metadata.display_name";
    let body = r#"{"metadata": {"display_name": "Small one"}}"#;
    let updated = admin.call(at, Method::PATCH, path, body).await;
    assert_eq!(updated.status, 200, "{:?}", updated.body);
    assert_eq!(updated.json()["metadata"]["display_name"], "Small one");
    assert_eq!(updated.json()["spec"]["memory_mib"], 512);
    let unknown = admin.get(at, "/v1/flavors?page_sise=1").await;
    assert_eq!((unknown.status.as_u16(), unknown.fields()), (400, vec!["page_sise".to_owned()]));
}

#[tokio::test]
async fn json_input_has_either_spelling_and_output_the_protos() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    let body =
        r#"{"metadata": {"name": "camel", "displayName": "Camel"}, "spec": {"vcpus": 1, "memoryMib": 512}}"#;
    let made = admin.post(at, "/v1/flavors?requestId=3f1c0000-0000-4000-8000-000000000001", body).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    assert_eq!(
        (&made.json()["spec"]["memory_mib"], &made.json()["metadata"]["display_name"]),
        (&512.into(), &"Camel".into())
    );
    let text = std::str::from_utf8(&made.body).unwrap();
    assert!(!text.contains("memoryMib") && !text.contains("displayName"), "{text}");
    let path = "/v1/flavors/camel?updateMask=metadata.displayName";
    let updated = admin.call(at, Method::PATCH, path, r#"{"metadata": {"displayName": "Other"}}"#).await;
    assert_eq!(updated.status, 200, "{:?}", updated.body);
    assert_eq!(updated.json()["metadata"]["display_name"], "Other");
    assert_eq!(admin.get(at, "/v1/flavors?pageSize=1").await.status, 200);
    // Both at once say the same thing twice, and what is neither is still unknown.
    for (wrong, named) in
        [("\"memory_mib\": 1, \"memoryMib\": 2", "memory"), ("\"MemoryMib\": 1", "MemoryMib")]
    {
        let body = format!("{{\"metadata\": {{\"name\": \"x\"}}, \"spec\": {{\"vcpus\": 1, {wrong}}}}}");
        let refused = admin.post(at, "/v1/flavors", &body).await;
        assert_eq!(refused.status, 400, "{:?}", refused.body);
        assert!(std::str::from_utf8(&refused.body).unwrap().contains(named), "{:?}", refused.body);
    }
}

#[tokio::test]
async fn a_watch_speaks_server_sent_events() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    let request = admin.request(at, Method::GET, "/v1/flavors:watch").header("accept", "text/event-stream");
    let answer = admin.open(request.body(Body::empty()).unwrap()).await;
    assert_eq!(
        answer.headers()["content-type"].to_str().unwrap().split(';').next(),
        Some("text/event-stream")
    );
    assert_eq!(admin.post(at, "/v1/flavors", FLAVOR).await.status, 200);
    let mut bytes = Body::new(answer.into_body()).into_data_stream();
    let mut text = String::new();
    while !text.contains("small") {
        text.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.lines().any(|line| line.starts_with("data: {") || line.starts_with("data:{")), "{text}");
}

#[tokio::test]
async fn a_watch_that_nothing_concerns_gets_bookmarks_while_others_write() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    let request = admin.request(at, Method::GET, "/v1/agencies:watch").header("accept", "text/event-stream");
    let answer = admin.open(request.body(Body::empty()).unwrap()).await;
    let mut bytes = Body::new(answer.into_body()).into_data_stream();
    let mut text = String::new();
    let writes = async {
        for at_flavor in 0.. {
            let flavor = FLAVOR.replace("small", &format!("small-{at_flavor}"));
            assert_eq!(admin.post(at, "/v1/flavors", &flavor).await.status, 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let reads = async {
        // The first bookmark ends the list, the second is of the flavors' commits.
        while text.matches("BOOKMARK").count() < 2 {
            text.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::select! { () = writes => {}, () = reads => {} }
}

#[tokio::test]
async fn reflection_and_health_are_open_to_all() {
    let cloud = Cloud::found().await;
    let channel = cloud.anonymous().channel(cloud.address(0));
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    eventually("health says serving", || {
        let mut health = health.clone();
        async move {
            let answer = health.check(tonic_health::pb::HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status == 1).then_some(())
        }
    })
    .await;
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = futures::stream::iter([request]);
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(asked).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    assert!(list.service.iter().any(|service| service.name == "tamdao.v1.VmService"), "{list:?}");
}

#[tokio::test]
async fn metrics_name_methods_and_codes() {
    let cloud = Cloud::found().await;
    let (at, admin) = (cloud.address(0), cloud.admin());
    admin.get(at, "/v1/flavors").await;
    cloud.anonymous().get(at, "/v1/flavors").await;
    let shared = cloud.running[0].controller.shared.clone();
    let (cache, kv, writer) = (shared.cache.clone(), shared.kv.clone(), shared.writer.clone());
    let readiness = Readiness::new(cache, kv, writer, || Leader::Here);
    let stop = CancellationToken::new();
    let plain = plain("127.0.0.1:0".parse().unwrap(), metrics::routes(readiness), stop).await.unwrap();
    let text = reqwest::get(format!("http://{plain}/metrics")).await.unwrap().text().await.unwrap();
    for part in [
        "tamdao_request_seconds_count",
        "method=\"tamdao.v1.FlavorService/ListFlavors\"",
        "code=\"401\"",
        "tamdao_store_revision",
        "tamdao_cache_lag",
        "tamdao_admission_waiting 0",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(reqwest::get(format!("http://{plain}/readyz")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_dropping_connections() {
    let cloud = Cloud::found().await;
    let shared = cloud.running[0].controller.shared.clone();
    let identity = Identity::of(&cloud.running[0].config).unwrap();
    let credentials = identity.credentials().unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &credentials).await.unwrap();
    let at = listener.address().to_string();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let router = axum::Router::new().route("/one", get(|| async { "one" })).route(
        "/stream",
        get(move || async move {
            let receiver = receiver.lock().await.take().unwrap();
            Body::from_stream(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver))
        }),
    );
    let stop = CancellationToken::new();
    let serving = tokio::spawn(listener.run(router, stop.clone()));

    let old = cloud.anonymous();
    let request = old.request(&at, Method::GET, "/stream").body(Body::empty()).unwrap();
    let mut stream = Body::new(old.open(request).await.into_body()).into_data_stream();
    sender.send(Ok("before".into())).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "before");
    let before = credentials.certificate();
    let hosts = vec!["another.example".into()];
    let (cache, clock) = (shared.cache.clone(), shared.clock.clone());
    let mut renewer = Renewer { identity, hosts, credentials: credentials.clone(), cache, clock };
    assert!(renewer.pass().unwrap());
    assert!(!renewer.pass().unwrap());
    assert_ne!(credentials.certificate(), before);
    // A new user shakes hands with the new certificate, and the old stream goes on.
    assert_eq!(cloud.anonymous().get(&at, "/one").await.body, "one");
    sender.send(Ok("after".into())).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "after");
    drop(sender);
    stop.cancel();
    serving.await.unwrap();
}

/// A listener with a router of its own, and a raw connection to it.
async fn raw(router: axum::Router) -> (TlsStream<TcpStream>, CancellationToken) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let config = crate::cloud::config(directory.path(), "c1");
    let (identity, _) = identity::found(&config, "test", SystemClock.now()).unwrap();
    let credentials = identity.credentials().unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &credentials).await.unwrap();
    let listener = listener.header_timeout(Duration::from_millis(500));
    let (address, stop) = (listener.address(), CancellationToken::new());
    tokio::spawn(listener.run(router, stop.clone()));
    let tls = tokio_rustls::TlsConnector::from(credentials.client().unwrap());
    let name = rustls::pki_types::ServerName::try_from(pki::CONTROLLER_NAME).unwrap();
    (tls.connect(name, TcpStream::connect(address).await.unwrap()).await.unwrap(), stop)
}

/// The status line and the body of one answer; empty when the connection was closed.
async fn answer(stream: &mut TlsStream<TcpStream>) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => {
                return (format!("{error} after {:?}", String::from_utf8_lossy(&head)), String::new());
            }
        }
    }
    let head = String::from_utf8(head).unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head.lines().next().unwrap().to_owned(), String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn a_body_that_comes_after_its_refusal_does_not_cost_the_connection() {
    let router = axum::Router::new().route("/one", get(|| async { "one" }).post(|| async { "no need" }));
    let (mut stream, _stop) = raw(router).await;
    for _ in 0..3 {
        stream.write_all(b"POST /one HTTP/1.1\r\nhost: c\r\ncontent-length: 200000\r\n\r\n").await.unwrap();
        assert_eq!(answer(&mut stream).await.1, "no need");
        stream.write_all(&[b'x'; 200_000]).await.unwrap();
        stream.write_all(b"GET /one HTTP/1.1\r\nhost: c\r\n\r\n").await.unwrap();
        assert_eq!(answer(&mut stream).await, ("HTTP/1.1 200 OK".to_owned(), "one".to_owned()));
    }
}

#[tokio::test]
async fn who_sends_on_after_a_bad_request_hears_the_answer_and_the_end() {
    let (mut stream, _stop) = raw(axum::Router::new()).await;
    stream.write_all(b"POST / HTTP/1.1\r\nb\xffd header\r\ncontent-length: 4000000\r\n\r\n").await.unwrap();
    for _ in 0..400 {
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
    }
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&heard));
}

#[tokio::test]
async fn an_idle_connection_that_is_given_up_ends_as_tls_wants_it() {
    let (mut stream, _stop) = raw(axum::Router::new().route("/one", get(|| async { "one" }))).await;
    stream.write_all(b"GET /one HTTP/1.1\r\nhost: c\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "one");
    // An end without a goodbye is an error to the TLS library.
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
}

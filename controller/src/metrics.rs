//! What is measured and whether the controller is ready: /metrics, /healthz and /readyz.
//!
//! Its invariant: labels have few values; no name that a user chose is one. Being alive says nothing but that the
//! process answers; being ready says that this controller can serve a request.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tamdao_model::limits;
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Kv, Role};
use tonic::Code;

use crate::admission::Writer;
use crate::answer;
use crate::forward::{Leader, REMOVED};
use crate::methods::catalogue;
use crate::rate;

/// How long the store may take to answer a probe.
const PROBE: Duration = Duration::from_secs(1);
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const REQUEST_SECONDS: &str = "tamdao_request_seconds";

static RECORDER: LazyLock<Option<PrometheusHandle>> = LazyLock::new(|| {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(REQUEST_SECONDS.to_owned()), &SECONDS)
        .expect("there are buckets");
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    // Another recorder may have been set by whoever embeds us; then that one has the figures.
    metrics::set_global_recorder(recorder).is_ok().then_some(handle)
});

/// Sets the recorder and says what each figure means; doing it again changes nothing.
pub fn describe() {
    LazyLock::force(&RECORDER);
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time until a request's answer began");
    describe_counter!("tamdao_requests_refused_total", "Requests that were answered with an error");
    describe_counter!(
        rate::LIMITED,
        "Requests that were refused because a caller or an agency asks too often"
    );
    describe_gauge!(
        "tamdao_backup_newest_timestamp_seconds",
        Unit::Seconds,
        "When the newest good scheduled backup was taken, since 1970; told by the leader, so take the maximum"
    );
    describe_gauge!("tamdao_backup_bytes", Unit::Bytes, "Size of the backup that was made last here");
    describe_gauge!("tamdao_backup_damaged", "Files of the destination that are damaged or cannot be read");
    describe_counter!("tamdao_backup_failures_total", "Attempts to make or keep backups that failed");
    describe_gauge!(
        "tamdao_audit_undelivered",
        "Entries of this controller's journal that wait for the receiver"
    );
    describe_gauge!(
        "tamdao_audit_receiver_silent_seconds",
        Unit::Seconds,
        "Since the receiver of the audit log has taken nothing of what there is; 0 when it does"
    );
    describe_counter!("tamdao_audit_delivered_total", "Audit records that the receiver is proven to have");
    describe_counter!(
        "tamdao_audit_delivery_failures_total",
        "Connections to the receiver without that proof"
    );
    describe_gauge!("tamdao_store_revision", "Newest revision applied here");
    describe_gauge!("tamdao_store_oldest_revision", "Oldest revision after which a watch can begin");
    describe_gauge!(
        "tamdao_store_state_bytes",
        "Keys and values of the state; memory and snapshots grow with it"
    );
    describe_gauge!(
        "tamdao_store_state_limit_bytes",
        "The size at half and four fifths of which an event is written"
    );
    describe_gauge!("tamdao_store_stopped", "1 when the store cannot write and has stopped here");
    describe_gauge!("tamdao_store_leader", "1 on the controller that leads the store");
    describe_gauge!("tamdao_store_has_leader", "1 when a leader is known here");
    describe_gauge!("tamdao_store_term", "Raft's term");
    describe_gauge!("tamdao_store_last_log", "Index of the last entry in the log");
    describe_gauge!("tamdao_store_applied", "Index of the last entry applied");
    describe_gauge!("tamdao_store_snapshot", "Index of the last entry in the newest snapshot");
    describe_gauge!(
        "tamdao_store_quorum_age_seconds",
        Unit::Seconds,
        "Since a quorum last answered the leader"
    );
    describe_gauge!("tamdao_store_members", "Seats in the group");
    describe_gauge!("tamdao_cache_revision", "Revision of the cache's newest view");
    describe_gauge!("tamdao_cache_lag", "Revisions that the cache is behind the store");
    describe_gauge!("tamdao_admission_waiting", "Changes that wait for the one writer; 4096 is full");
}

/// What tells whether this controller can serve.
#[derive(Clone)]
pub struct Readiness {
    cache: Cache,
    kv: Arc<dyn Kv>,
    writer: Writer,
    leader: Arc<dyn Fn() -> Leader + Send + Sync>,
}

impl Readiness {
    /// `leader` as for [`crate::forward::Forward::new`].
    pub fn new(
        cache: Cache,
        kv: Arc<dyn Kv>,
        writer: Writer,
        leader: impl Fn() -> Leader + Send + Sync + 'static,
    ) -> Self {
        Self { cache, kv, writer, leader: Arc::new(leader) }
    }

    /// Whether requests can be served here.
    ///
    /// # Errors
    /// What is missing, for people.
    pub async fn check(&self) -> Result<(), String> {
        if let Some(error) = self.kv.status().error {
            return Err(format!("the store has stopped: {error}"));
        }
        if self.cache.view().cluster().is_none() {
            return Err("the cache has not loaded the cluster yet".into());
        }
        let leader = (self.leader)();
        if leader == Leader::Nobody {
            return Err("no leader is known".into());
        }
        // Only a quorum answers this; a leader that is merely remembered does not.
        match tokio::time::timeout(PROBE, self.kv.barrier()).await {
            Ok(Ok(_)) => Ok(()),
            // It was asked all the same: so a seat that was lost by mistake is found again.
            _ if leader == Leader::Removed => Err(REMOVED.into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the store does not answer".into()),
        }
    }

    /// Takes the store's and the cache's figures.
    fn observe(&self) {
        let status = self.kv.status();
        let cached = self.cache.view().revision;
        let number = |value: u64| value as f64;
        gauge!("tamdao_store_revision").set(number(status.revision.0));
        gauge!("tamdao_store_state_bytes").set(number(status.bytes));
        gauge!("tamdao_store_state_limit_bytes").set(number(limits::STATE_BYTES));
        gauge!("tamdao_store_stopped").set(f64::from(u8::from(status.error.is_some())));
        gauge!("tamdao_store_oldest_revision").set(number(status.oldest.0));
        gauge!("tamdao_store_leader").set(f64::from(u8::from(status.role == Role::Leader)));
        let has_leader = matches!((self.leader)(), Leader::Here | Leader::At(_));
        gauge!("tamdao_store_has_leader").set(f64::from(u8::from(has_leader)));
        gauge!("tamdao_store_term").set(number(status.term));
        gauge!("tamdao_store_last_log").set(number(status.last_log));
        gauge!("tamdao_store_applied").set(number(status.applied));
        gauge!("tamdao_store_snapshot").set(number(status.snapshot));
        gauge!("tamdao_store_members").set(number(status.members.len() as u64));
        if let Some(age_ms) = status.quorum_age_ms {
            gauge!("tamdao_store_quorum_age_seconds").set(number(age_ms) / 1_000.0);
        }
        gauge!("tamdao_cache_revision").set(number(cached.0));
        gauge!("tamdao_admission_waiting").set(number(self.writer.waiting() as u64));
        gauge!("tamdao_cache_lag").set(number(status.revision.0.saturating_sub(cached.0)));
    }
}

/// /healthz and /readyz.
pub fn probes(readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness)
}

/// The routes of the plain port: the probes, and /metrics.
pub fn routes(readiness: Readiness) -> Router {
    let figures = Router::new().route("/metrics", get(render)).with_state(readiness.clone());
    probes(readiness).merge(figures)
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    match readiness.check().await {
        Ok(()) => "ready\n".into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")).into_response(),
    }
}

async fn render(State(readiness): State<Readiness>) -> Response {
    readiness.observe();
    let text = RECORDER.as_ref().map(PrometheusHandle::render).unwrap_or_default();
    let mut response = text.into_response();
    let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, form);
    response
}

/// The layer that measures every request; the outermost one, so that refusals count too.
pub async fn measure(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let path = request.uri().path();
    let method = match catalogue().resolve(request.method(), path) {
        Some(method) => method.path.trim_start_matches('/'),
        None if path.starts_with("/images/") => "images",
        None if path.ends_with("/content") => "content",
        None if path.starts_with("/internal/") => "internal",
        None if path.starts_with("/grpc.") => "grpc",
        None => "other",
    };
    let grpc = answer::is_grpc(request.headers());
    let response = next.run(request).await;
    let code = match grpc {
        // Without the header the status follows in the trailers, and is OK unless a stream breaks.
        true => {
            response.headers().get("grpc-status").map_or(Code::Ok, |v| Code::from_bytes(v.as_bytes())) as i32
        }
        false => i32::from(response.status().as_u16()),
    };
    let face = if grpc { "grpc" } else { "rest" };
    let labels = [("method", method.to_owned()), ("code", code.to_string()), ("face", face.to_owned())];
    histogram!(REQUEST_SECONDS, &labels).record(begun.elapsed().as_secs_f64());
    if (grpc && code != 0) || (!grpc && code >= 400) {
        counter!("tamdao_requests_refused_total", &labels).increment(1);
    }
    response
}

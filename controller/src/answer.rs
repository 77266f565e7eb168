//! Refusals as each face tells them: a gRPC status in headers, or the same as JSON.
//!
//! Its invariant: both carry the same code, message and details, and the JSON has snake_case names as everywhere.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::audit::Refused;
use crate::refusal::Refusal;

/// The reason that HTTP has a status of its own for.
pub const TOO_LARGE: &str = "TooLarge";

/// Whether a request speaks gRPC; all others are answered in JSON.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A refusal as the caller's face tells it. `headers` are the request's.
pub fn refuse(headers: &HeaderMap, refusal: Refusal) -> Response {
    let (too_large, wait) = (refusal.reason == TOO_LARGE, refusal.wait());
    let status = Status::from(refusal);
    let mut response = match is_grpc(headers) {
        true => grpc_response(status),
        false => json_response(&status),
    };
    if too_large && !is_grpc(headers) {
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    }
    if let Some(wait) = wait {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
    }
    response
}

fn grpc_response(status: Status) -> Response {
    let refused = Refused::of(&status);
    let mut response = status.into_http();
    response.extensions_mut().insert(refused);
    response
}

/// Rounded up, so that whoever waits so long is let in.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// A status as REST tells it.
pub fn json_response(status: &Status) -> Response {
    let mut response = Response::new(Body::from(json_of(status).to_string()));
    *response.status_mut() = http_status(status.code());
    response.extensions_mut().insert(Refused::of(status));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status.code() == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A status as a `google.rpc.Status` in JSON.
pub fn json_of(status: &Status) -> Value {
    json!({ "code": status.code() as i32, "message": status.message(), "details": details(status) })
}

/// The details of a status as JSON. Those that we never make are left out.
pub fn details(status: &Status) -> Vec<Value> {
    let found = status.get_error_details();
    let mut details = Vec::new();
    if let Some(info) = found.error_info() {
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": info.reason,
            "domain": info.domain,
            // A map of its own, so that the order is the same every time.
            "metadata": info.metadata.iter().collect::<std::collections::BTreeMap<_, _>>(),
        }));
    }
    if let Some(bad) = found.bad_request() {
        let violations = bad.field_violations.iter();
        let violations = violations.map(|v| json!({ "field": v.field, "description": v.description }));
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "field_violations": violations.collect::<Vec<_>>(),
        }));
    }
    if let Some(wait) = found.retry_info().and_then(|info| info.retry_delay) {
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retry_delay": format!("{}.{:09}s", wait.as_secs(), wait.subsec_nanos()),
        }));
    }
    details
}

/// The HTTP status that stands for a gRPC code, as google/rpc/code.proto has it.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::from_u16(499).expect("a number in range"),
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_faces_say_when_to_come_back() {
        let refusal = Refusal::new(Code::ResourceExhausted, "TooManyRequests", "too often")
            .retry_after(Duration::from_millis(1_499));
        assert_eq!(json_of(&refusal.clone().into())["details"][1]["retry_delay"], "1.500000000s");
        let mut headers = HeaderMap::new();
        let rest = refuse(&headers, refusal.clone());
        assert_eq!((rest.status().as_u16(), &rest.headers()["retry-after"]), (429, &"2".parse().unwrap()));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let grpc = refuse(&headers, refusal);
        let status = Status::from_header_map(grpc.headers()).unwrap();
        assert_eq!(grpc.headers()["retry-after"], "2");
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn both_faces_tell_the_same() {
        let refusal = Refusal::field("spec.vcpus", "is 0").hint("give at least 1");
        let status = Status::from(refusal.clone());
        let body = json_of(&status);
        assert_eq!(body["code"], 3);
        assert_eq!(body["details"][0]["metadata"]["hint"], "give at least 1");
        assert_eq!(body["details"][1]["field_violations"][0]["field"], "spec.vcpus");
        let mut headers = HeaderMap::new();
        assert_eq!(refuse(&headers, refusal.clone()).status(), 400);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        let response = refuse(&headers, refusal);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["grpc-status"]),
            (200, &"3".parse().unwrap())
        );
        assert!(response.headers().contains_key("grpc-status-details-bin"));
    }
}

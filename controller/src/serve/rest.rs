//! The REST face: the public services through the generated transcoder, and its errors made as telling as ours.
//!
//! Its invariant: a request runs the same code as over gRPC, after the same gate; an error is a `google.rpc.Status`
//! in JSON whose details are decoded and whose violations name the field. The crate `rest_over_grpc` is named in this
//! file only. Deliberately absent: routes, which are annotations in the protos.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode, Uri};
use rest_over_grpc::serving::RestService;
use serde_json::Value;
use tamdao_model::limits::BODY_BYTES;
use tamdao_proto::{rest, v1};
use tonic::{Code, Status};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::PublicApi;
use crate::answer;
use crate::forward;
use crate::methods::catalogue;
use crate::refusal::Refusal;

/// The largest error that is read back to be completed, bytes.
const ERROR_BYTES: usize = 256 * 1024;

/// The service that answers everything that is no gRPC and no route of its own.
pub fn service<A: PublicApi>(api: A) -> BoxCloneSyncService<Request, Response, std::convert::Infallible> {
    macro_rules! bridge {
        ($module:ident :: $bridge:ident) => {
            // The gate stands in front of every face, so the bridge has nothing to guard.
            v1::$module::$bridge::externally_authenticated(api.clone())
        };
    }
    let transcoder = rest::Transcoder::new(
        bridge!(__rest_over_grpc_bridge_MoveService::MoveServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_NodeService::NodeServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_VmService::VmServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_AgencyService::AgencyServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_TokenService::TokenServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_AuditService::AuditServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_BackupService::BackupServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_RecoveryService::RecoveryServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_ClusterService::ClusterServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_ControllerService::ControllerServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_EventService::EventServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_FlavorService::FlavorServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_ImageService::ImageServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_NetworkService::NetworkServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_PlacementGroupService::PlacementGroupServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_PoolService::PoolServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_RoleBindingService::RoleBindingServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_SchedulingPolicyService::SchedulingPolicyServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_VolumeService::VolumeServiceRestBridge),
        bridge!(__rest_over_grpc_bridge_StackService::StackServiceRestBridge),
    );
    let inner = RestService::new(transcoder).with_max_body_bytes(BODY_BYTES);
    BoxCloneSyncService::new(tower::service_fn(move |request: Request| {
        let inner = inner.clone();
        async move { Ok(answer_one(inner, request).await) }
    }))
}

async fn answer_one<S>(inner: S, request: Request) -> Response
where
    S: tower::Service<Request, Error = std::convert::Infallible>,
    S::Response: IntoResponse,
{
    if answer::is_grpc(request.headers()) {
        let path = request.uri().path().to_owned();
        let refusal = Refusal::new(Code::Unimplemented, "NoMethod", format!("there is no method {path}"));
        return answer::refuse(request.headers(), refusal);
    }
    if catalogue().resolve(request.method(), request.uri().path()).is_none() {
        return no_route(request.method(), request.uri().path());
    }
    let (mut parts, body) = request.into_parts();
    if let Some(uri) = with_mask_paths(&parts.uri) {
        parts.uri = uri;
    }
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES).await else {
        return answer::refuse(&parts.headers, forward::too_large());
    };
    let response = inner.oneshot(Request::from_parts(parts, Body::from(body.clone()))).await.into_response();
    match response.status().is_success() {
        true => response,
        false => complete(response, &body).await,
    }
}

/// The query with "update_mask=a,b", which is a field mask's form in JSON, as the transcoder's types read it:
/// "update_mask.paths=a&update_mask.paths=b". None when there is nothing to rewrite.
fn with_mask_paths(uri: &Uri) -> Option<Uri> {
    let query =
        uri.query().filter(|query| query.contains("update_mask=") || query.contains("updateMask="))?;
    let mut pairs: Vec<String> = Vec::new();
    for pair in query.split('&') {
        match pair.strip_prefix("update_mask=").or_else(|| pair.strip_prefix("updateMask=")) {
            Some(paths) => {
                let paths = paths.replace("%2C", ",").replace("%2c", ",");
                let paths = paths.split(',').filter(|path| !path.is_empty());
                pairs.extend(paths.map(|path| format!("update_mask.paths={path}")));
            }
            None => pairs.push(pair.to_owned()),
        }
    }
    format!("{}?{}", uri.path(), pairs.join("&")).parse().ok()
}

fn no_route(verb: &Method, path: &str) -> Response {
    let verbs = [Method::GET, Method::POST, Method::PATCH, Method::DELETE, Method::PUT];
    let others: Vec<&str> = verbs
        .iter()
        .filter(|other| catalogue().resolve(other, path).is_some())
        .map(|verb| verb.as_str())
        .collect();
    let refusal = Refusal::new(Code::NotFound, "NoRoute", format!("there is no {verb} {path}"))
        .hint("/openapi.json lists all routes; a name never has a slash");
    let mut response = answer::json_response(&Status::from(refusal));
    if let Ok(allow) = HeaderValue::from_str(&others.join(", "))
        && !others.is_empty()
    {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

/// Decodes the details of an error, or finds out which field it speaks of.
async fn complete(response: Response, request: &[u8]) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, ERROR_BYTES).await.unwrap_or_default();
    let Some(status) = status_of(&bytes, request) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    parts.headers.remove(http::header::CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = answer::json_response(&status);
    *response.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    response
}

/// The status that the transcoder wrote as JSON, with its details back in binary form, as gRPC has them.
fn status_of(body: &[u8], request: &[u8]) -> Option<Status> {
    let error: Value = serde_json::from_slice(body).ok()?;
    let code = Code::from(i32::try_from(error.get("code").and_then(Value::as_i64).unwrap_or(2)).ok()?);
    let message = error.get("message")?.as_str()?;
    let details = error.get("details").and_then(Value::as_array).into_iter().flatten();
    let packed = details
        .filter(|detail| detail.get("kind").is_some_and(|kind| kind == "grpc-status-details-bin"))
        .find_map(|detail| STANDARD.decode(detail.get("value")?.as_str()?).ok());
    Some(match packed {
        Some(packed) => Status::with_details(code, message, Bytes::from(packed)),
        None if code == Code::InvalidArgument => Status::from(violation(message, request)),
        None => Status::new(code, message),
    })
}

/// What the JSON reader found wrong, as a violation of a field.
fn violation(message: &str, request: &[u8]) -> Refusal {
    let what = message.split_once(": ").map_or(message, |(_, what)| what);
    let (what, place) = match what.rsplit_once(" at line ") {
        Some((what, place)) => (what, place.split_once(" column ")),
        None => (what, None),
    };
    let place = place.and_then(|(line, column)| Some((line.parse().ok()?, column.parse().ok()?)));
    let quoted = what.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let field = match (place, quoted) {
        (Some((line, column)), _) => field_at(request, line, column),
        (None, Some((name, _))) => name.to_owned(),
        (None, None) => String::new(),
    };
    match field.is_empty() {
        true => Refusal::new(Code::InvalidArgument, "InvalidArgument", message),
        false => Refusal::field(field, what),
    }
}

/// The path of the field that is being read at a place of a JSON text.
fn field_at(text: &[u8], line: usize, column: usize) -> String {
    enum Level {
        Object(Option<String>),
        Array(usize),
    }
    let before = text.split(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(|line| line.len() + 1);
    // The reader has already seen the byte at the column, which may begin something that is not yet wrong.
    let end = (before.sum::<usize>() + column.saturating_sub(1)).min(text.len());
    let (mut levels, mut at, mut wants_key) = (Vec::new(), 0, false);
    while at < end {
        match text[at] {
            b'{' => {
                levels.push(Level::Object(None));
                wants_key = true;
            }
            b'[' => levels.push(Level::Array(0)),
            b'}' | b']' => drop(levels.pop()),
            b',' => match levels.last_mut() {
                Some(Level::Array(index)) => *index += 1,
                _ => wants_key = true,
            },
            b'"' => {
                let start = at + 1;
                at = start;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                if let (true, Some(Level::Object(key))) = (wants_key, levels.last_mut()) {
                    *key = text.get(start..at).map(|key| String::from_utf8_lossy(key).into_owned());
                    wants_key = false;
                }
            }
            _ => {}
        }
        at += 1;
    }
    let mut path = String::new();
    for level in &levels {
        match level {
            Level::Object(Some(key)) if path.is_empty() => path.push_str(key),
            Level::Object(Some(key)) => path.push_str(&format!(".{key}")),
            Level::Array(index) => path.push_str(&format!("[{index}]")),
            Level::Object(None) => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let body = b"{\n \"spec\": {\"disks\": [{\"size_mib\": 1}, {\"sice_mib\": 2}]}}";
        let message = "request did not match the expected message: unknown field `sice_mib`, expected one of \
            `size_mib` at line 2 column 51";
        let refusal = violation(message, body);
        assert_eq!(refusal.fields[0].0, "spec.disks[1].sice_mib");
        assert!(refusal.message.contains("expected one of"), "{}", refusal.message);
    }

    #[test]
    fn a_mask_is_one_text_with_commas() {
        let rewritten = |text: &str| with_mask_paths(&text.parse().unwrap()).map(|uri| uri.to_string());
        let both = Some("/v1/x?update_mask.paths=a.b&update_mask.paths=c&request_id=1".to_owned());
        assert_eq!(rewritten("/v1/x?update_mask=a.b,c&request_id=1"), both);
        assert_eq!(rewritten("/v1/x?update_mask=a.b%2Cc&request_id=1"), both);
        assert_eq!(rewritten("/v1/x?updateMask=a.b,c&request_id=1"), both);
        assert_eq!(rewritten("/v1/x?update_mask.paths=a"), None);
        assert_eq!(rewritten("/v1/x"), None);
    }

    #[test]
    fn a_value_of_a_wrong_type_is_named() {
        let body = br#"{"name": "a\"b", "spec": {"vcpus": "x", "y": 1}}"#;
        assert_eq!(field_at(body, 1, 38), "spec.vcpus");
        assert_eq!(field_at(body, 1, 15), "name");
        assert_eq!(field_at(b"", 1, 0), "");
        assert_eq!(field_at(b"[1,2]", 1, 4), "[1]");
    }
}

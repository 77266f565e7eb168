//! The routes of images' bytes: files by digest for nodes and controllers, uploads by PUT, and what controllers
//! tell the leader. Who may call them is decided by the gate in front.

use std::io::SeekFrom;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures::StreamExt;
use http::StatusCode;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, RANGE,
};
use serde::Deserialize;
use tamdao_model::convert::Shown;
use tamdao_model::{ImageId, Kind, Scope};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use tonic::Status;

use super::blobs::is_digest;
use super::{Handle, Images};
use crate::answer;
use crate::auth::{self, Principal};
use crate::refusal::Refusal;

const READ_BYTES: usize = 256 * 1024;

/// The routes.
pub fn routes(images: Handle) -> Router {
    Router::new()
        .route("/images/{sha256}", get(send))
        .route("/internal/images/{id}/held", post(held))
        .route("/v1/images/{name}/content", put(upload))
        .route("/v1/agencies/{agency}/images/{name}/content", put(upload_of_agency))
        .with_state(images)
}

/// Sends a file or, by a range, its rest.
async fn send(State(images): State<Handle>, Path(sha256): Path<String>, headers: HeaderMap) -> Response {
    match images.open_file(&sha256, &headers).await {
        Ok(response) => response,
        Err(refusal) => answer::refuse(&headers, refusal),
    }
}

impl Images {
    async fn open_file(&self, sha256: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
        if !is_digest(sha256) {
            return Err(Refusal::field("sha256", "must be 64 lower-case hex digits"));
        }
        let missing =
            |_| Refusal::not_found(Kind::Image, sha256).hint("another controller may hold the file");
        let mut file = tokio::fs::File::open(self.blobs.path(sha256)).await.map_err(missing)?;
        let failed = |error: std::io::Error| Refusal::internal(error.to_string());
        let size = file.metadata().await.map_err(failed)?.len();
        let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
        let (from, to, partial) = match range.map(|range| read_range(range, size)) {
            None | Some(Asked::All) => (0, size, false),
            Some(Asked::Part(from, to)) => (from, to, true),
            Some(Asked::Beyond) => {
                let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
                response.headers_mut().insert(CONTENT_RANGE, number(format!("bytes */{size}")));
                return Ok(response);
            }
        };
        file.seek(SeekFrom::Start(from)).await.map_err(failed)?;
        let bytes = ReaderStream::with_capacity(file.take(to - from), READ_BYTES);
        let mut response = Response::new(Body::from_stream(bytes));
        let headers = response.headers_mut();
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, number((to - from).to_string()));
        headers.insert(ETAG, number(format!("\"{sha256}\"")));
        if partial {
            headers.insert(CONTENT_RANGE, number(format!("bytes {from}-{}/{size}", to - 1)));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Ok(response)
    }
}

fn number(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).expect("digits and digests make a header")
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    /// From the first byte up to, not including, the second.
    Part(u64, u64),
    Beyond,
}

/// One range; several at once are answered with everything, as the standard allows.
fn read_range(text: &str, size: u64) -> Asked {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::All;
    };
    let (from, to) = match (from.trim().parse::<u64>(), to.trim().parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => (from, to.saturating_add(1).min(size)),
        (Ok(from), Err(_)) if to.trim().is_empty() => (from, size),
        (Err(_), Ok(last)) if from.trim().is_empty() => (size.saturating_sub(last), size),
        _ => return Asked::All,
    };
    if from < size { Asked::Part(from, to) } else { Asked::Beyond }
}

#[derive(Deserialize)]
struct Held {
    sha256: String,
}

async fn held(
    State(images): State<Handle>,
    Path(image): Path<ImageId>,
    Query(held): Query<Held>,
    headers: HeaderMap,
) -> Response {
    let told = match auth::of_headers(&headers) {
        Principal::Controller(controller) => images.hold(image, held.sha256, controller).await,
        other => Err(Refusal::internal(format!("{other} is no controller"))),
    };
    match told {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => answer::refuse(&headers, refusal),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default)]
    gzip: bool,
}

async fn upload(
    State(images): State<Handle>,
    name: Result<Path<String>, PathRejection>,
    form: Result<Query<Form>, QueryRejection>,
    request: Request,
) -> Response {
    let place = name.map(|Path(name)| (String::new(), name));
    answer_upload(&images, place, form, request).await
}

async fn upload_of_agency(
    State(images): State<Handle>,
    place: Result<Path<(String, String)>, PathRejection>,
    form: Result<Query<Form>, QueryRejection>,
    request: Request,
) -> Response {
    answer_upload(&images, place.map(|Path(place)| place), form, request).await
}

/// What axum cannot read is refused as everything else is, and not in axum's own words and form.
async fn answer_upload(
    images: &Images,
    place: Result<(String, String), PathRejection>,
    form: Result<Query<Form>, QueryRejection>,
    request: Request,
) -> Response {
    let headers = request.headers().clone();
    let place = place.map_err(|fault| Refusal::field("name", fault.body_text()));
    let form = form.map_err(|fault| Refusal::field("gzip", fault.body_text()));
    let sent = match (place, form) {
        (Ok((agency, name)), Ok(Query(form))) => {
            images.upload(&agency, &name, form.gzip, request.into_body()).await
        }
        (Err(refusal), _) | (_, Err(refusal)) => Err(refusal),
    };
    match sent {
        Ok(response) => response,
        Err(refusal) => answer::refuse(&headers, refusal),
    }
}

impl Images {
    async fn upload(&self, agency: &str, name: &str, gzip: bool, body: Body) -> Result<Response, Refusal> {
        let view = self.cache.view();
        let scope = match agency {
            "" => Scope::Cluster,
            agency => {
                let row = view.agencies.find(Scope::Cluster, agency);
                Scope::Agency(row.ok_or_else(|| Refusal::not_found(Kind::Agency, agency))?.id())
            }
        };
        let image = view.images.find(scope, name).ok_or_else(|| Refusal::not_found(Kind::Image, name))?.id();
        let chunks = body.into_data_stream();
        let chunks = chunks.map(|chunk| chunk.map_err(|error| Status::aborted(error.to_string())));
        let revision = self.receive(image, chunks, gzip).await?;
        let view = self.cache.at_least(revision).await?;
        let row = view.images.get(image).ok_or_else(|| super::not_found(image))?;
        let shown = row.value.show(row.revision.0, &*view);
        let text = serde_json::to_string(&shown).map_err(|error| Refusal::internal(error.to_string()))?;
        Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let cases = [
            ("bytes=0-", Asked::Part(0, 10)),
            ("bytes=4-5", Asked::Part(4, 6)),
            ("bytes=4-99", Asked::Part(4, 10)),
            ("bytes=-3", Asked::Part(7, 10)),
            ("bytes=10-", Asked::Beyond),
            ("bytes=5-4", Asked::All),
            ("bytes=0-1,3-4", Asked::All),
            ("lines=1-2", Asked::All),
        ];
        for (text, asked) in cases {
            assert_eq!(read_range(text, 10), asked, "{text}");
        }
    }
}

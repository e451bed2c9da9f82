//! The routes of tag sources.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use vnet_common::api::{IngestResponse, ScanReport, ScanRequest, SourceStatus, SourceTest};

use super::error::{Refusal, response};
use super::extract::{Body, Path, Query};
use super::routes::{Answer, Routes, ask};
use crate::source::BODY_LIMIT;

/// What the agent does about tag sources. The methods may block.
pub trait Sources: Send + Sync + 'static {
    /// Every source.
    fn sources(&self) -> Result<Vec<SourceStatus>, Refusal>;
    /// May this user send events in the source's name, beside those who may change things? False if there is no such source.
    fn may_send(&self, source: &str, uid: u32) -> bool;
    /// Takes events: a JSON object, a list of objects, or one object a line.
    fn ingest(&self, source: &str, text: &[u8]) -> Result<IngestResponse, Refusal>;
    /// Has ClamAV scan, until `stop` is set: then nobody waits for the report any more.
    fn scan(&self, source: &str, request: &ScanRequest, stop: &AtomicBool) -> Result<ScanReport, Refusal>;
    /// Measures, and looks at the source's own settings: in the file `config`, if one is named.
    fn test(&self, source: &str, config: Option<&FilePath>) -> Result<SourceTest, Refusal>;
}

type Agent = State<Arc<dyn Sources>>;

/// The routes of [`Sources`].
impl From<Arc<dyn Sources>> for Routes {
    fn from(sources: Arc<dyn Sources>) -> Self {
        let router = Router::new()
            .route("/v1/sources", get(all))
            .route("/v1/sources/{name}/events", post(ingest).layer(DefaultBodyLimit::max(BODY_LIMIT)))
            .route("/v1/sources/{name}/scan", post(scan))
            .route("/v1/sources/{name}/test", post(test));
        Self::new(router.with_state(Arc::clone(&sources))).sent_to(sources)
    }
}

/// The source that a request to this path sends events to. Its users may, whoever else may not.
pub(super) fn sent_to(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/v1/sources/")?.strip_suffix("/events")?;
    // As names are written, and not in any other way that the router may take for one.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

async fn all(State(sources): Agent) -> Answer<Vec<SourceStatus>> {
    ask(sources, |sources| sources.sources()).await
}

async fn ingest(
    State(sources): Agent,
    Path(name): Path<String>,
    text: Result<Bytes, BytesRejection>,
) -> Result<Json<IngestResponse>, axum::response::Response> {
    use axum::response::IntoResponse;
    let text = text.map_err(|rejection| match rejection.status() {
        status @ axum::http::StatusCode::PAYLOAD_TOO_LARGE => {
            response(status, format!("the events are over {} MiB: split them", BODY_LIMIT >> 20))
        }
        status => response(status, rejection.body_text()),
    })?;
    ask(sources, move |sources| sources.ingest(&name, &text)).await.map_err(IntoResponse::into_response)
}

async fn scan(State(sources): Agent, Path(name): Path<String>, Body(request): Body<ScanRequest>) -> Answer<ScanReport> {
    let stop = Arc::new(AtomicBool::new(false));
    let _asked = Asked(Arc::clone(&stop));
    ask(sources, move |sources| sources.scan(&name, &request, &stop)).await
}

/// Goes with the request: when it is answered, when the client has gone, when the agent ends.
struct Asked(Arc<AtomicBool>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestQuery {
    config: Option<PathBuf>,
}

async fn test(State(sources): Agent, Path(name): Path<String>, Query(query): Query<TestQuery>) -> Answer<SourceTest> {
    ask(sources, move |sources| sources.test(&name, query.config.as_deref())).await
}

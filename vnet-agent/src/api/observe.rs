//! The routes for what happens, and why: events, flows of endpoints, explanations and metrics.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body as Answered;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use vnet_common::api::{EVENT_KINDS, EndpointFlowList, ExplainRequest, Explanation};

use super::error::Refusal;
use super::extract::{Body, Query};
use super::routes::{Answer, Routes, ask, flow_limit};
use crate::observe::events::{Filter, Follower};

/// Events that are sent at once.
const CHUNK: usize = 256;

/// Answers to what happens, and why. The methods may block: each call has a thread of its own.
pub trait Observe: Send + Sync + 'static {
    /// Events that are wanted: those that were kept (with numbers above `since`), and with `follow` also those to come.
    fn events(&self, filter: Filter, since: Option<u64>, follow: bool) -> Result<Follower, Refusal>;
    /// At most `limit` flows, of one endpoint or all, and how many there are.
    fn endpoint_flows(&self, endpoint: Option<&str>, limit: usize) -> Result<EndpointFlowList, Refusal>;
    /// What would become of a packet.
    fn explain(&self, request: ExplainRequest) -> Result<Explanation, Refusal>;
    /// Prometheus' text format.
    fn metrics(&self) -> Result<String, Refusal>;
}

type Observer = State<Arc<dyn Observe>>;

/// The routes of [`Observe`].
impl From<Arc<dyn Observe>> for Routes {
    fn from(observer: Arc<dyn Observe>) -> Self {
        let router = Router::new()
            .route("/v1/events", get(events))
            .route("/v1/endpoint-flows", get(endpoint_flows))
            .route("/v1/explain", post(explain))
            .route("/metrics", super::metrics::route());
        Self::new(router.with_state(observer))
    }
}

/// Lists are separated by commas.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    #[serde(default)]
    follow: bool,
    since: Option<u64>,
    endpoint: Option<String>,
    kind: Option<String>,
    reason: Option<String>,
}

fn list(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

async fn events(State(observer): Observer, Query(query): Query<EventQuery>) -> Result<Response, Refusal> {
    let filter = Filter { endpoints: list(query.endpoint), kinds: list(query.kind), reasons: list(query.reason) };
    if let Some(unknown) = filter.kinds.iter().find(|k| !EVENT_KINDS.contains(&k.as_str())) {
        let known = EVENT_KINDS.join(", ");
        return Err(Refusal::bad_request(format!("there is no kind '{unknown}' of event; there are {known}")));
    }
    let Json(follower) = ask(observer, move |o| o.events(filter, query.since, query.follow)).await?;
    let chunks = stream::unfold(follower, |mut follower| async {
        let first = follower.next().await?;
        let rest = std::iter::from_fn(|| follower.ready()).take(CHUNK - 1);
        let mut lines = Vec::new();
        for event in std::iter::once(first).chain(rest) {
            // A type of strings and numbers: writing it as JSON cannot fail.
            if serde_json::to_writer(&mut lines, &event).is_ok() {
                lines.push(b'\n');
            }
        }
        Some((Ok::<_, Infallible>(lines), follower))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Answered::from_stream(chunks)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowQuery {
    endpoint: Option<String>,
    limit: Option<usize>,
}

async fn endpoint_flows(State(observer): Observer, Query(query): Query<FlowQuery>) -> Answer<EndpointFlowList> {
    let limit = flow_limit(query.limit)?;
    ask(observer, move |o| o.endpoint_flows(query.endpoint.as_deref(), limit)).await
}

async fn explain(State(observer): Observer, Body(request): Body<ExplainRequest>) -> Answer<Explanation> {
    ask(observer, |o| o.explain(request)).await
}

//! The routes: each turns a request into one call of [`Control`].

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::Value;
use vnet_common::api::moving::{FlowExport, FlowImport};
use vnet_common::api::{
    ApplyRequest, ApplyResponse, AttachRequest, DeleteRequest, DetachResponse, EndpointStatus, FlowList, LbStatus, MemberChange,
    RuleStatus, Status,
};

use super::access::Access;
use super::error::{Refusal, response};
use super::extract::{BODY_LIMIT, Body, Path, Query};
use super::{Control, Sources, access};

/// Flows in an answer, when the request does not say.
const FLOWS: usize = 100;
/// Flows in an answer at most: about 20 MB of JSON.
const FLOWS_LIMIT: usize = 65_536;
/// The kinds of resources.
const KINDS: [&str; 5] = ["LoadBalancer", "Endpoint", "SecurityGroup", "Policy", "TagSource"];

type Agent = State<Arc<dyn Control>>;
/// What a request gets.
pub(super) type Answer<T> = Result<Json<T>, Refusal>;

/// Routes, each with what answers it.
pub struct Routes {
    router: Router,
    /// Knows who may send events to tag sources, beside those who may change things.
    senders: Option<Arc<dyn Sources>>,
}

impl Routes {
    /// These and others.
    #[must_use]
    pub fn with(self, others: impl Into<Self>) -> Self {
        let others = others.into();
        Self { router: self.router.merge(others.router), senders: self.senders.or(others.senders) }
    }

    pub(super) fn new(router: Router) -> Self {
        Self { router, senders: None }
    }

    /// The same, where the users of a tag source may send its events.
    pub(super) fn sent_to(self, senders: Arc<dyn Sources>) -> Self {
        Self { senders: Some(senders), ..self }
    }

    /// All that is served: the members of group `writers` may change things.
    pub(super) fn into_router(self, writers: Arc<str>) -> Router {
        let access = Access { writers, senders: self.senders };
        self.router
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(DefaultBodyLimit::max(BODY_LIMIT))
            .layer(middleware::from_fn_with_state(access, access::check))
    }
}

/// The routes of [`Control`].
impl From<Arc<dyn Control>> for Routes {
    fn from(control: Arc<dyn Control>) -> Self {
        Self::new(router(control))
    }
}

fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/apply", post(apply))
        .route("/v1/resources/{kind}", get(resources))
        .route("/v1/resources/{kind}/{name}", get(resource).delete(delete))
        .route("/v1/delete", post(delete_all))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/endpoints/attach", post(attach))
        .route("/v1/endpoints/{name}/flows", get(export_flows).post(import_flows))
        .route("/v1/rules", get(rules))
        .route("/v1/lb", get(lbs))
        .route("/v1/lb/{name}", get(lb))
        .route("/v1/lb/{name}/members/{member}", post(change_member))
        .route("/v1/flows", get(flows))
        .route("/v1/detach", post(detach))
        .with_state(control)
}

/// Calls `control` on a thread that may block.
pub(super) async fn ask<C, T, F>(control: Arc<C>, call: F) -> Answer<T>
where
    C: ?Sized + Send + Sync + 'static,
    T: Send + 'static,
    F: FnOnce(&C) -> Result<T, Refusal> + Send + 'static,
{
    match tokio::task::spawn_blocking(move || call(control.as_ref())).await {
        Ok(answer) => answer.map(Json),
        Err(error) => Err(anyhow::anyhow!("the agent broke down over this request ({error}); its log says more").into()),
    }
}

async fn status(State(control): Agent) -> Answer<Status> {
    ask(control, |control| control.status()).await
}

async fn apply(State(control): Agent, Body(request): Body<ApplyRequest>) -> Answer<ApplyResponse> {
    ask(control, |control| control.apply(request)).await
}

async fn resources(State(control): Agent, Path(kind): Path<String>) -> Answer<Vec<Value>> {
    let kind = if kind == "all" { None } else { Some(known(&kind)?) };
    ask(control, move |control| control.resources(kind)).await
}

async fn resource(State(control): Agent, Path((kind, name)): Path<(String, String)>) -> Answer<Value> {
    let kind = known(&kind)?;
    ask(control, move |control| {
        let all = control.resources(Some(kind))?;
        let named = |resource: &Value| resource.pointer("/metadata/name").and_then(Value::as_str) == Some(name.as_str());
        all.into_iter().find(named).ok_or_else(|| Refusal::not_found(format!("there is no resource {kind} '{name}'")))
    })
    .await
}

async fn delete(State(control): Agent, Path((kind, name)): Path<(String, String)>) -> Answer<ApplyResponse> {
    let kind = known(&kind)?;
    let request = DeleteRequest { resources: vec![(kind.to_owned(), name)], ignore_not_found: false };
    ask(control, move |control| control.delete(request)).await
}

async fn delete_all(State(control): Agent, Body(mut request): Body<DeleteRequest>) -> Answer<ApplyResponse> {
    for (kind, _) in &mut request.resources {
        *kind = known(kind)?.to_owned();
    }
    ask(control, move |control| control.delete(request)).await
}

async fn endpoints(State(control): Agent) -> Answer<Vec<EndpointStatus>> {
    ask(control, |control| control.endpoints()).await
}

async fn attach(State(control): Agent, Body(request): Body<AttachRequest>) -> Answer<EndpointStatus> {
    ask(control, |control| control.attach(request)).await
}

async fn export_flows(State(control): Agent, Path(name): Path<String>) -> Answer<FlowExport> {
    ask(control, move |control| control.export_flows(&name)).await
}

async fn import_flows(State(control): Agent, Path(name): Path<String>, Body(export): Body<FlowExport>) -> Answer<FlowImport> {
    ask(control, move |control| control.import_flows(&name, &export)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleQuery {
    endpoint: Option<String>,
}

async fn rules(State(control): Agent, Query(query): Query<RuleQuery>) -> Answer<Vec<RuleStatus>> {
    ask(control, move |control| control.rules(query.endpoint.as_deref())).await
}

async fn lbs(State(control): Agent) -> Answer<Vec<LbStatus>> {
    ask(control, |control| control.lbs()).await
}

async fn lb(State(control): Agent, Path(name): Path<String>) -> Answer<LbStatus> {
    ask(control, move |control| control.lb(&name)).await
}

async fn change_member(
    State(control): Agent,
    Path((lb, member)): Path<(String, String)>,
    Body(change): Body<MemberChange>,
) -> Answer<LbStatus> {
    check_change(&change)?;
    ask(control, move |control| control.change_member(&lb, &member, change)).await
}

pub(super) fn check_change(change: &MemberChange) -> Result<(), Refusal> {
    match change {
        MemberChange { drained: None, weight: None } => {
            Err(Refusal::bad_request("nothing to change: give 'drained', 'weight' or both"))
        }
        MemberChange { weight: Some(weight), .. } if !(-1..=1000).contains(weight) => {
            Err(Refusal::invalid(format!("weight {weight} is not one: 0 to 1000, or -1 for the resource's own")))
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowQuery {
    lb: Option<String>,
    limit: Option<usize>,
}

/// How many flows an answer may have.
pub(super) fn flow_limit(asked: Option<usize>) -> Result<usize, Refusal> {
    let limit = asked.unwrap_or(FLOWS);
    if limit > FLOWS_LIMIT {
        return Err(Refusal::bad_request(format!("limit {limit} is over {FLOWS_LIMIT}, the most flows in one answer")));
    }
    Ok(limit)
}

async fn flows(State(control): Agent, Query(query): Query<FlowQuery>) -> Answer<FlowList> {
    let limit = flow_limit(query.limit)?;
    ask(control, move |control| control.flows(query.lb.as_deref(), limit)).await
}

async fn detach(State(control): Agent) -> Answer<DetachResponse> {
    ask(control, |control| control.detach()).await
}

async fn no_such_path(uri: Uri) -> Response {
    response(StatusCode::NOT_FOUND, format!("there is nothing at {}: is the client newer than the agent?", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> Response {
    response(StatusCode::METHOD_NOT_ALLOWED, format!("{method} cannot be done to {}", uri.path()))
}

pub(super) fn known(kind: &str) -> Result<&'static str, Refusal> {
    KINDS.into_iter().find(|known| known.eq_ignore_ascii_case(kind)).ok_or_else(|| {
        Refusal::bad_request(format!("there is no kind '{kind}' of resource; there are {}, and all", KINDS.join(", ")))
    })
}

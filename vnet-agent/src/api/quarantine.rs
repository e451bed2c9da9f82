//! The routes about tags, groups, quarantine and the audit log.

use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::routing::{get, post};
use serde::Deserialize;
use vnet_common::api::{AuditRecord, GroupStatus, QuarantineRequest, QuarantineStatus, Tag, TagRequest};

use super::access::user;
use super::error::Refusal;
use super::extract::{Body, Path, Query};
use super::routes::{Answer, Routes, ask};
use super::socket::Peer;

/// Records in an answer, when the request does not say.
const RECORDS: usize = 100;
/// Records in an answer at most: about 20 MB of JSON.
const RECORDS_LIMIT: usize = 65_536;

/// What the agent does for its clients about quarantine. The methods may block. `who` asks: `user NAME (UID)`.
pub trait Quarantine: Send + Sync + 'static {
    /// Every security group.
    fn groups(&self) -> Result<Vec<GroupStatus>, Refusal>;
    /// Tags, of one endpoint or all.
    fn tags(&self, subject: Option<&str>) -> Result<Vec<Tag>, Refusal>;
    /// Sets an operator's tag; gives it.
    fn set_tag(&self, who: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal>;
    /// Removes a tag; gives it.
    fn remove_tag(&self, who: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal>;
    /// Who is held, and who would be.
    fn quarantine(&self) -> Result<QuarantineStatus, Refusal>;
    /// Does something about an endpoint: `approve`, `dismiss`, `hold`, `release`, `never`, `unnever`.
    fn operate(&self, who: &str, endpoint: &str, verb: &str, request: &QuarantineRequest) -> Result<QuarantineStatus, Refusal>;
    /// The newest `limit` records of the audit log, of one endpoint or all; the newest last.
    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>, Refusal>;
}

type Service = State<Arc<dyn Quarantine>>;

/// The routes of [`Quarantine`].
impl From<Arc<dyn Quarantine>> for Routes {
    fn from(service: Arc<dyn Quarantine>) -> Self {
        let router = Router::new()
            .route("/v1/groups", get(groups))
            .route("/v1/tags", get(tags).post(set_tag))
            .route("/v1/tags/remove", post(remove_tag))
            .route("/v1/quarantine", get(quarantine))
            .route("/v1/quarantine/{endpoint}/{verb}", post(operate))
            .route("/v1/audit", get(audit));
        Self::new(router.with_state(service))
    }
}

async fn groups(State(service): Service) -> Answer<Vec<GroupStatus>> {
    ask(service, |service| service.groups()).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TagQuery {
    subject: Option<String>,
}

async fn tags(State(service): Service, Query(query): Query<TagQuery>) -> Answer<Vec<Tag>> {
    ask(service, move |service| service.tags(query.subject.as_deref())).await
}

async fn set_tag(
    State(service): Service,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<TagRequest>,
) -> Answer<Vec<Tag>> {
    ask(service, move |service| service.set_tag(&user(&peer), &request)).await
}

async fn remove_tag(
    State(service): Service,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<TagRequest>,
) -> Answer<Vec<Tag>> {
    ask(service, move |service| service.remove_tag(&user(&peer), &request)).await
}

async fn quarantine(State(service): Service) -> Answer<QuarantineStatus> {
    ask(service, |service| service.quarantine()).await
}

async fn operate(
    State(service): Service,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path((endpoint, verb)): Path<(String, String)>,
    Body(request): Body<QuarantineRequest>,
) -> Answer<QuarantineStatus> {
    ask(service, move |service| service.operate(&user(&peer), &endpoint, &verb, &request)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditQuery {
    endpoint: Option<String>,
    limit: Option<usize>,
}

async fn audit(State(service): Service, Query(query): Query<AuditQuery>) -> Answer<Vec<AuditRecord>> {
    let limit = query.limit.unwrap_or(RECORDS);
    if limit > RECORDS_LIMIT {
        return Err(Refusal::bad_request(format!("limit {limit} is over {RECORDS_LIMIT}, the most records in one answer")));
    }
    ask(service, move |service| service.audit(query.endpoint.as_deref(), limit)).await
}

//! The routes of the fleet, and of all that operators wrote.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use vnet_common::api::fleet::{Content, FleetStatus, Proposal, ProposeRequest};

use super::error::Refusal;
use super::extract::Body;
use super::routes::{Answer, Routes, ask, check_change, known};

/// What the agent says of its fleet. The methods may block: each call has a thread of its own.
pub trait Fleet: Send + Sync + 'static {
    /// The fleet; [`Class::NotFound`](super::Class::NotFound) without one.
    fn fleet(&self) -> Result<FleetStatus, Refusal>;
    /// What a change of what is desired would be, for whoever writes it to the store that the fleet shares.
    fn propose(&self, request: ProposeRequest) -> Result<Proposal, Refusal>;
    /// All that operators wrote.
    fn content(&self) -> Result<Content, Refusal>;
}

type Agent = State<Arc<dyn Fleet>>;

impl From<Arc<dyn Fleet>> for Routes {
    fn from(fleet: Arc<dyn Fleet>) -> Self {
        let router = Router::new()
            .route("/v1/fleet", get(status))
            .route("/v1/fleet/propose", post(propose))
            .route("/v1/store/content", get(content));
        Self::new(router.with_state(fleet))
    }
}

async fn status(State(agent): Agent) -> Answer<FleetStatus> {
    ask(agent, |agent| agent.fleet()).await
}

async fn propose(State(agent): Agent, Body(mut request): Body<ProposeRequest>) -> Answer<Proposal> {
    match &mut request {
        ProposeRequest::Delete { resources, .. } => {
            for (kind, _) in resources {
                *kind = known(kind)?.to_owned();
            }
        }
        ProposeRequest::Member { change, .. } => check_change(change)?,
        ProposeRequest::Apply { .. } | ProposeRequest::Promote { .. } => {}
    }
    ask(agent, move |agent| agent.propose(request)).await
}

async fn content(State(agent): Agent) -> Answer<Content> {
    ask(agent, |agent| agent.content()).await
}

//! The agent's API: HTTP/JSON on a unix socket. The routes and their types are in [`vnet_common::api`].
//!
//! This layer speaks HTTP and decides who may do what; what is done is behind [`Control`].

mod access;
mod connection;
mod error;
mod extract;
mod fleet;
mod metrics;
mod observe;
mod quarantine;
mod routes;
mod socket;
mod sources;
#[cfg(test)]
mod tests;

use std::future::{Future, IntoFuture};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::sync::oneshot;
use vnet_common::api::moving::{FlowExport, FlowImport};
use vnet_common::api::{
    ApplyRequest, ApplyResponse, AttachRequest, DeleteRequest, DetachResponse, EndpointStatus, FlowList, LbStatus, MemberChange,
    RuleStatus, Status,
};

pub use error::{Class, Refusal};
pub use fleet::Fleet;
pub use metrics::serve_metrics;
pub use observe::Observe;
pub use quarantine::Quarantine;
pub use routes::Routes;
pub use socket::{Peer, Socket};
pub use sources::Sources;

/// How long requests that are under way may go on once the agent ends. A client that stops reading must not hold it.
const GRACE: Duration = Duration::from_secs(3);

/// What the agent does for its clients. The methods may block: each call has a thread of its own.
pub trait Control: Send + Sync + 'static {
    /// The agent as a whole.
    fn status(&self) -> Result<Status, Refusal>;
    /// Applies all files, or none; with `dry_run` only says what would change.
    fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse, Refusal>;
    /// The resources as they were applied, in the order to show them; of one kind (`LoadBalancer`, `Endpoint`) or all.
    fn resources(&self, kind: Option<&str>) -> Result<Vec<Value>, Refusal>;
    /// Deletes all these resources, or none: [`Class::NotFound`], with the names, when some are not there.
    fn delete(&self, request: DeleteRequest) -> Result<ApplyResponse, Refusal>;
    /// Every endpoint, discovered or configured.
    fn endpoints(&self) -> Result<Vec<EndpointStatus>, Refusal>;
    /// Gives an endpoint a device, and waits until its state is in force there.
    fn attach(&self, request: AttachRequest) -> Result<EndpointStatus, Refusal>;
    /// Every rule, or those about an endpoint of this host in their order, with what they decided.
    fn rules(&self, endpoint: Option<&str>) -> Result<Vec<RuleStatus>, Refusal>;
    /// Every load balancer.
    fn lbs(&self) -> Result<Vec<LbStatus>, Refusal>;
    /// One load balancer.
    fn lb(&self, name: &str) -> Result<LbStatus, Refusal>;
    /// Changes a member at run time, and gives the load balancer as it is then. The weight is -1 to 1000, and something changes.
    fn change_member(&self, lb: &str, member: &str, change: MemberChange) -> Result<LbStatus, Refusal>;
    /// At most `limit` flows, of one load balancer or all, and how many there are.
    fn flows(&self, lb: Option<&str>, limit: usize) -> Result<FlowList, Refusal>;
    /// The flows of an endpoint, for the agent of the host that it moves to.
    fn export_flows(&self, endpoint: &str) -> Result<FlowExport, Refusal>;
    /// Takes the flows of an endpoint over that moved here.
    fn import_flows(&self, endpoint: &str, export: &FlowExport) -> Result<FlowImport, Refusal>;
    /// Takes the datapath off this host. The agent is to end afterwards: what implements this resolves the `shutdown` that
    /// [`serve`] was given; this answer is still sent.
    fn detach(&self) -> Result<DetachResponse, Refusal>;
}

/// Makes the socket at `path` and serves it, until `shutdown` resolves and the requests under way are answered.
pub async fn serve(path: &Path, routes: impl Into<Routes>, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    serve_on(Socket::bind(path)?, routes, shutdown).await
}

/// Like [`serve`], on a socket that is already bound: from its binding on, clients wait instead of being refused.
pub async fn serve_on(
    socket: Socket,
    routes: impl Into<Routes>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (path, writers) = (socket.path().to_owned(), socket.group());
    let (begun, ending) = oneshot::channel();
    let server = axum::serve(socket, routes.into().into_router(writers).into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move {
            shutdown.await;
            // Nobody listens any more if the server has ended by itself.
            let _ = begun.send(());
        });
    let out_of_patience = async {
        // An error is a server that ended without the signal: then the other branch of the select has the answer.
        if ending.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server.into_future() => ended.with_context(|| format!("serving the API on {}", path.display())),
        () = out_of_patience => {
            log::warn!("the API ends with requests unfinished: a client did not read its answer within {} s", GRACE.as_secs());
            Ok(())
        }
    }
}

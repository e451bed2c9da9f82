//! `lb`: what is only about load balancing.

mod drain;
mod elsewhere;
mod flows;
mod ls;
pub mod members;
mod weight;

use anyhow::{Result, bail};
use vnet_common::api::fleet::ProposeRequest;
use vnet_common::api::{LbStatus, MemberChange, MemberStatus};

use crate::client::segment;
use crate::failure::is_not_found;
use crate::fleet::{self, InForce, WaitArgs, Wanted};
use crate::output::Session;
use crate::table::Cell;
use crate::target::Kind;
use crate::{get, near};

/// See who gets the connections, and change it: members, draining, weights, flows
///
/// What is changed here is about members at run time: it survives restarts and later applies, and is not in the files. In a fleet it is
/// changed for all hosts.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl lb ls --watch
  vnet-ctl lb members web
  vnet-ctl lb drain web 10.0.0.11
  vnet-ctl lb weight web 10.0.0.12 5
  vnet-ctl lb flows web --limit 20"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    Ls(ls::Args),
    Members(members::Args),
    Drain(drain::Args),
    Undrain(drain::UndrainArgs),
    Weight(weight::Args),
    Flows(flows::Args),
}

/// A member of a load balancer.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// The load balancer
    #[arg(value_name = "LB")]
    lb: String,
    /// The member's name (its address, if it was given no name)
    #[arg(value_name = "MEMBER")]
    member: String,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ls(args) => ls::run(session, args).await,
        Verb::Members(args) => members::run(session, args).await,
        Verb::Drain(args) => drain::run(session, args).await,
        Verb::Undrain(args) => drain::undo(session, args).await,
        Verb::Weight(args) => weight::run(session, args).await,
        Verb::Flows(args) => flows::run(session, args).await,
    }
}

/// The load balancers of these names, or all.
pub async fn find(session: &Session, names: &[String]) -> Result<Vec<LbStatus>> {
    get::pick_lbs(session.agent.get("/v1/lb").await?, names)
}

/// The load balancer of this name.
pub async fn one(session: &Session, name: &str) -> Result<LbStatus> {
    let found = session.agent.get(&format!("/v1/lb/{}", segment(name))).await;
    explain(session, found, name).await
}

/// How many members take new flows, of all.
pub fn ready(lb: &LbStatus) -> Cell {
    let takes = |member: &&MemberStatus| matches!(member.state.as_str(), "active" | "unknown") && member.weight > 0;
    let ready = lb.members.iter().filter(takes).count();
    Cell::new(format!("{ready}/{}", lb.members.len()), get::ready_look(ready, lb.members.len()))
}

/// A member that was changed: the load balancer and the member as they are then on this host.
struct Changed {
    lb: LbStatus,
    member: MemberStatus,
    /// In a fleet: who has it in force.
    force: Option<InForce>,
}

impl Changed {
    /// `in force on 3 of 3 hosts`, where that was waited for.
    fn force(&self) -> String {
        self.force.as_ref().map(InForce::line).unwrap_or_default()
    }
}

/// Changes a member, on this host or in the fleet.
async fn change(session: &Session, which: &Which, change: &MemberChange, wait: WaitArgs) -> Result<Changed> {
    let (lb, force): (LbStatus, _) = match fleet::status(&session.agent).await? {
        Some(fleet) => {
            let Which { lb, member } = which.clone();
            let what = format!("member {lb}/{member}");
            let request = ProposeRequest::Member { lb, member, change: change.clone() };
            let made = fleet::make(session, &fleet, &Wanted { request, what, instead: None }, |_| Ok(())).await;
            let made = explain_member(session, made, which).await?;
            let force = fleet::wait(session, made.revision, wait.wait).await;
            (one(session, &which.lb).await?, force)
        }
        None => {
            let path = format!("/v1/lb/{}/members/{}", segment(&which.lb), segment(&which.member));
            let changed = session.agent.post(&path, change).await;
            (explain_member(session, changed, which).await?, None)
        }
    };
    match lb.members.iter().find(|member| member.name == which.member).cloned() {
        Some(member) => Ok(Changed { lb, member, force }),
        None => bail!("load balancer '{}' was changed, but has no member '{}' any more", which.lb, which.member),
    }
}

/// [`get::explain`] for load balancers.
async fn explain<T>(session: &Session, found: Result<T>, name: &str) -> Result<T> {
    get::explain(session, found, (Kind::LoadBalancer, "/v1/lb"), name).await
}

/// The same where the member may be what does not exist.
async fn explain_member<T>(session: &Session, found: Result<T>, Which { lb, member }: &Which) -> Result<T> {
    match explain(session, found, lb).await {
        Err(error) if is_not_found(&error) => {
            let members = one(session, lb).await?.members;
            let hint = near::hint(member, members.iter().map(|member| member.name.as_str()), "members");
            bail!("load balancer '{lb}' has no member '{member}'; {hint}")
        }
        other => other,
    }
}

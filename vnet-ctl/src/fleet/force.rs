//! Waiting until the hosts of the fleet have a change in force.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use vnet_common::api::fleet::{FleetStatus, HostStatus};

use super::Standing;
use crate::output::Session;
use crate::progress::Progress;
use crate::{human, time};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// When all that do not have it say that they refuse it, for so long, it is of no use to wait on.
const REFUSED: Duration = Duration::from_secs(2);

/// How long to wait.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct WaitArgs {
    /// In a fleet: how long to wait until all hosts have it in force; 0: not at all
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = time::duration)]
    pub wait: Duration,
}

impl Default for WaitArgs {
    fn default() -> Self {
        Self { wait: Duration::from_secs(10) }
    }
}

/// Who has a change in force.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InForce {
    /// The store's revision that has it.
    pub revision: i64,
    /// Hosts that have it in force.
    pub hosts: Vec<String>,
    /// Hosts that are alive and do not, and why.
    pub behind: Vec<(String, String)>,
    /// Hosts that are not alive: they get it when they are back.
    pub silent: Vec<String>,
}

impl InForce {
    /// `in force on 3 of 3 hosts`; nothing if nobody was waited for.
    pub fn line(&self) -> String {
        let all = self.hosts.len() + self.behind.len();
        if all == 0 {
            String::new()
        } else {
            format!("in force on {} of {}\n", self.hosts.len(), human::count(all as u64, "host"))
        }
    }
}

/// [`wait_for`] of all hosts.
pub async fn wait(session: &Session, revision: Option<i64>, limit: Duration) -> Option<InForce> {
    wait_for(session, revision, limit, None).await
}

/// Waits until all hosts, or those named, have `revision` in force, and warns of those that do not. It was written: nothing that goes
/// wrong here is an error. `None`: there was nothing to wait for, or it is not known.
pub async fn wait_for(session: &Session, revision: Option<i64>, limit: Duration, hosts: Option<&[String]>) -> Option<InForce> {
    let revision = revision?;
    if limit.is_zero() {
        return None;
    }
    let (end, mut refused) = (Instant::now() + limit, None);
    let mut progress = Progress::new();
    let fleet: FleetStatus = loop {
        let fleet: FleetStatus = match session.agent.get_quietly("/v1/fleet").await {
            Ok(fleet) => fleet,
            Err(error) => {
                drop(progress);
                session.warn(&format!("it is written; who has it in force is not known: {error:#}"));
                return None;
            }
        };
        let standing = concerned(&fleet, hosts).map(|host| Standing::told(host, revision));
        let missing: Vec<Standing> =
            standing.filter(|standing| matches!(standing, Standing::NotYet(_) | Standing::Refused(_))).collect();
        let unsure = fleet.connected.is_none();
        if missing.is_empty() && !unsure || Instant::now() >= end {
            break fleet;
        }
        match missing.iter().all(|standing| matches!(standing, Standing::Refused(_))) && !unsure {
            false => refused = None,
            true if *refused.get_or_insert(Instant::now()) + REFUSED <= Instant::now() => break fleet,
            true => {}
        }
        progress.show(&format!("waiting for {}", human::count(missing.len() as u64, "host")));
        sleep(PAUSE).await;
    };
    drop(progress);
    Some(told(session, &fleet, revision, hosts))
}

/// The hosts that are named, or all.
fn concerned<'a>(fleet: &'a FleetStatus, hosts: Option<&'a [String]>) -> impl Iterator<Item = &'a HostStatus> {
    fleet.hosts.iter().filter(move |host| hosts.is_none_or(|hosts| hosts.contains(&host.name)))
}

/// Says who does not have it, on standard error.
fn told(session: &Session, fleet: &FleetStatus, revision: i64, hosts: Option<&[String]>) -> InForce {
    let mut force = InForce { revision, ..InForce::default() };
    for host in concerned(fleet, hosts) {
        let why = match Standing::told(host, revision) {
            Standing::Silent => {
                force.silent.push(host.name.clone());
                continue;
            }
            Standing::InForce => {
                force.hosts.push(host.name.clone());
                continue;
            }
            Standing::Refused(why) => {
                session.warn(&format!("host {} refuses it, and goes on with what it has: {why}", host.name));
                why
            }
            Standing::NotYet(applied) => {
                let why = format!("it has revision {applied} of {revision}");
                session.warn(&format!("host {} does not have it in force yet: {why}", host.name));
                why
            }
        };
        force.behind.push((host.name.clone(), why));
    }
    if fleet.connected.is_none() {
        let why = fleet.trouble.as_deref().unwrap_or("no reason is known");
        session.warn(&format!(
            "the agent of this host has not heard of the store for {} ({why}): who has it in force is not known to it",
            human::seconds(fleet.silent_seconds)
        ));
    }
    if !force.silent.is_empty() && session.for_people() {
        session.note(&format!("not alive, and without it until they are back: {}", force.silent.join(", ")));
    }
    force
}

//! A member's flows from other hosts of the fleet, by what these report to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;
use vnet_common::api::MemberStatus;
use vnet_common::api::fleet::HostStatus;
use vnet_common::etcd::{Failure, Snapshot};
use vnet_common::fleet::{Key, LOAD, LoadReport};

use crate::fleet::{self, Etcd};
use crate::output::Session;

/// Hosts without flows report every ten seconds, and one that was away has to be back for as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of a member's flows on other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flows {
    /// So many, of all hosts.
    Known(u64),
    /// What is waited for to know them.
    Awaited(String),
}

/// The flows of one member.
pub struct Elsewhere {
    store: String,
    /// `None`: it did not answer, and others may.
    etcd: Option<Etcd>,
    lb: String,
    at: SocketAddr,
    count: Count,
    /// Since when the store does not answer.
    silent: Option<Instant>,
    warned: BTreeSet<String>,
}

/// Which hosts said how many since the member was drained.
#[derive(Debug, Default)]
struct Count {
    /// Reports up to this revision of the store are from before.
    since: i64,
    /// Flows that hosts said last.
    said: BTreeMap<String, u64>,
    /// Hosts that say nothing, since when.
    mute: BTreeMap<String, Instant>,
}

impl Elsewhere {
    /// Looks what hosts report before the member is drained; `None`: there are no other hosts.
    pub async fn begin(session: &Session, lb: &str, member: &MemberStatus) -> Result<Option<Self>> {
        let (Some(fleet), Ok(ip)) = (fleet::status(&session.agent).await?, member.address.parse::<IpAddr>()) else {
            return Ok(None);
        };
        let store = session.store.address.clone().unwrap_or(fleet.store);
        let mut etcd = fleet::open(session, &store).await?;
        let snapshot = etcd.read(LOAD).await?;
        let at = SocketAddr::new(ip, member.port.unwrap_or(0));
        let said = reports(&snapshot, lb, at).into_iter().map(|(host, (_, flows))| (host, flows)).collect();
        let count = Count { since: i64::MAX, said, mute: BTreeMap::new() };
        let (silent, warned) = (None, BTreeSet::new());
        Ok(Some(Self { store, etcd: Some(etcd), lb: lb.to_owned(), at, count, silent, warned }))
    }

    /// Its flows from all hosts. Those that say nothing for too long are an error, or (`regardless`) have none.
    pub async fn look(&mut self, session: &Session, regardless: bool) -> Result<Flows> {
        let snapshot = match self.read(session).await {
            Ok(snapshot) => snapshot,
            Err(error) if Failure::in_error(&error) == Failure::Denied => return Err(error),
            Err(error) => {
                // Another member of the store may answer.
                self.etcd = None;
                let since = *self.silent.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(error.context("what flows other hosts have to the member is not known"));
                }
                return Ok(Flows::Awaited("the store".to_owned()));
            }
        };
        self.silent = None;
        // The member is drained by now: what was reported before does not count.
        self.count.since = self.count.since.min(snapshot.revision);
        let fleet = fleet::required(session).await?;
        let reports = reports(&snapshot, &self.lb, self.at);
        let mute = self.count.look(&fleet.hosts, &reports, Instant::now());
        // Who asks regardless does not want to wait for those that are away.
        let (late, awaited): (Vec<_>, Vec<_>) = mute.into_iter().partition(|mute| mute.is_late || regardless && !mute.is_alive);
        match (late.first(), regardless) {
            (Some(first), false) => {
                let others: Vec<String> = late.iter().map(|mute| format!("{} {}", mute.host, mute.why)).collect();
                bail!(
                    "the member is drained, and whether its last flow has ended is not known: host {}. Look at `vnet-ctl host ls` and at {}, or give --regardless to count no flows there",
                    others.join(", host "),
                    first.host
                );
            }
            _ => {
                for mute in late.iter().filter(|mute| self.warned.insert(mute.host.clone())) {
                    session.warn(&format!("host {} {}: its flows to this member are not counted", mute.host, mute.why));
                }
            }
        }
        Ok(match awaited.is_empty() {
            true => Flows::Known(self.count.flows()),
            false => Flows::Awaited(awaited.into_iter().map(|mute| mute.host).collect::<Vec<_>>().join(", ")),
        })
    }

    async fn read(&mut self, session: &Session) -> Result<Snapshot> {
        if self.etcd.is_none() {
            self.etcd = Some(fleet::open(session, &self.store).await?);
        }
        self.etcd.as_mut().context("no connection to the store")?.read(LOAD).await
    }
}

/// What hosts report of a member: with the revision of each report.
fn reports(snapshot: &Snapshot, lb: &str, at: SocketAddr) -> BTreeMap<String, (i64, u64)> {
    let each = snapshot.entries.iter().filter_map(|(key, entry)| {
        let (Some(Key::Load(host)), Ok(report)) = (Key::parse(key), serde_json::from_slice::<LoadReport>(&entry.value)) else {
            return None;
        };
        let own = report.members.iter().filter(|(member, _)| member.lb == lb && member.at == at);
        Some((host, (entry.modified, own.map(|(_, load)| load.active).sum())))
    });
    each.collect()
}

/// A host of which nobody knows what flows it has.
#[derive(Debug, PartialEq, Eq)]
struct Mute {
    host: String,
    why: String,
    is_alive: bool,
    /// It has had the time to say it.
    is_late: bool,
}

impl Count {
    /// Takes in what hosts report; gives those of which nothing is known since the member was drained.
    fn look(&mut self, hosts: &[HostStatus], reports: &BTreeMap<String, (i64, u64)>, now: Instant) -> Vec<Mute> {
        let mut mute = Vec::new();
        for host in hosts {
            if !host.alive && !host.registered && !self.said.contains_key(&host.name) {
                continue;
            }
            let fresh = reports.get(&host.name).filter(|(modified, _)| host.alive && *modified > self.since);
            if let Some((_, flows)) = fresh {
                self.said.insert(host.name.clone(), *flows);
                self.mute.remove(&host.name);
                continue;
            }
            let why = match (host.alive, self.said.get(&host.name)) {
                (false, Some(flows)) if *flows > 0 => format!("is not heard of, and had {flows} flows to it"),
                (false, _) => "is not heard of".to_owned(),
                (true, _) => "does not report its flows".to_owned(),
            };
            let since = *self.mute.entry(host.name.clone()).or_insert(now);
            let is_late = now.saturating_duration_since(since) >= PATIENCE;
            mute.push(Mute { host: host.name.clone(), why, is_alive: host.alive, is_late });
        }
        mute
    }

    /// The flows of all hosts that say how many they have.
    fn flows(&self) -> u64 {
        let says = self.said.iter().filter(|(host, _)| !self.mute.contains_key(*host));
        says.map(|(_, flows)| flows).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, alive: bool) -> HostStatus {
        HostStatus { name: name.into(), alive, registered: true, ..HostStatus::default() }
    }

    fn reports(all: &[(&str, i64, u64)]) -> BTreeMap<String, (i64, u64)> {
        all.iter().map(|(host, modified, flows)| ((*host).to_owned(), (*modified, *flows))).collect()
    }

    #[test]
    fn every_host_has_to_say_that_it_has_none() {
        let (mut count, now) = (Count { since: 10, ..Count::default() }, Instant::now());
        let hosts = [host("a", true), host("b", true)];
        let names = |mute: Vec<Mute>| mute.into_iter().map(|m| format!("{} {}", m.host, m.is_late)).collect::<Vec<_>>();
        assert_eq!(names(count.look(&hosts, &reports(&[("a", 11, 3), ("b", 9, 0)]), now)), ["b false"], "that was before");
        assert_eq!(names(count.look(&hosts, &reports(&[("a", 12, 2)]), now + PATIENCE)), ["b true"]);
        assert_eq!(count.flows(), 2);
        assert_eq!(names(count.look(&hosts, &reports(&[("a", 12, 2), ("b", 13, 5)]), now + PATIENCE)), [""; 0]);
        assert_eq!(count.flows(), 7);
        // One that is cut off keeps its flows, and is named with them.
        let hosts = [host("a", true), host("b", false)];
        let mute = count.look(&hosts, &reports(&[("a", 14, 0)]), now + PATIENCE);
        assert_eq!((mute[0].why.as_str(), mute[0].is_late), ("is not heard of, and had 5 flows to it", false));
        assert_eq!(names(count.look(&hosts, &reports(&[("a", 15, 0)]), now + PATIENCE * 2)), ["b true"]);
        assert_eq!(count.flows(), 0);
    }
}

//! A member's flows from other hosts of the fleet, by what these report to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use vnet_common::api::MemberStatus;
use vnet_common::api::fleet::FleetStatus;
use vnet_common::fleet::{Key, LOAD, LoadReport};

use crate::fleet::{self, Etcd};
use crate::output::Session;

/// The flows of one member.
pub struct Elsewhere {
    etcd: Etcd,
    lb: String,
    at: SocketAddr,
    /// Reports up to this revision of the store are from before it was drained.
    since: i64,
    /// Hosts that report nothing, which was said.
    mute: BTreeSet<String>,
}

impl Elsewhere {
    /// Begins to count; `None`: there are no other hosts. What was reported up to now does not count.
    pub async fn begin(session: &Session, lb: &str, member: &MemberStatus) -> Result<Option<Self>> {
        let (Some(fleet), Ok(ip)) = (fleet::status(&session.agent).await?, member.address.parse::<IpAddr>()) else {
            return Ok(None);
        };
        let store = session.store.address.as_ref().unwrap_or(&fleet.store);
        let mut etcd = fleet::open(session, store).await?;
        let since = etcd.read(LOAD).await?.revision;
        let at = SocketAddr::new(ip, member.port.unwrap_or(0));
        Ok(Some(Self { etcd, lb: lb.to_owned(), at, since, mute: BTreeSet::new() }))
    }

    /// Its flows from all hosts that report; `None`: some that are alive did not report since it was drained.
    pub async fn look(&mut self, session: &Session) -> Result<Option<u64>> {
        let fleet = fleet::required(session).await?;
        let snapshot = self.etcd.read(LOAD).await?;
        let mut reports: BTreeMap<String, (i64, u64)> = BTreeMap::new();
        for (key, entry) in &snapshot.entries {
            let (Some(Key::Load(host)), Ok(report)) = (Key::parse(key), serde_json::from_slice::<LoadReport>(&entry.value))
            else {
                continue;
            };
            let own = report.members.iter().filter(|(member, _)| member.lb == self.lb && member.at == self.at);
            reports.insert(host, (entry.modified, own.map(|(_, load)| load.active).sum()));
        }
        self.mention(session, &fleet, &reports);
        let alive = |host: &String| fleet.hosts.iter().any(|each| each.name == *host && each.alive);
        let counted: Vec<_> = reports.iter().filter(|(host, _)| alive(host)).map(|(_, report)| report).collect();
        let fresh = counted.iter().all(|(modified, _)| *modified > self.since);
        Ok(fresh.then(|| counted.iter().map(|(_, flows)| flows).sum()))
    }

    /// Warns, once, of hosts whose flows are not known.
    fn mention(&mut self, session: &Session, fleet: &FleetStatus, reports: &BTreeMap<String, (i64, u64)>) {
        for host in fleet.hosts.iter().filter(|host| host.name != fleet.host && !reports.contains_key(&host.name)) {
            if self.mute.insert(host.name.clone()) {
                session.warn(&format!("host {} reports no flows: whether it has some to this member is not known", host.name));
            }
        }
    }
}

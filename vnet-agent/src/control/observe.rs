//! What happens, and why: the agent's answers. Names are copied under the lock; maps are read without it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use vnet_common::api::{EndpointFlowList, ExplainRequest, Explanation};

use super::inputs::Nic;
use super::{Agent, State, views};
use crate::api::{Observe, Refusal};
use crate::datapath::Datapath;
use crate::explain;
use crate::explain::target::{Place, Scene};
use crate::lb::status::MemberRows;
use crate::observe::events::{Filter, Follower};
use crate::observe::metrics::{self, EventCounts, Snapshot};
use crate::observe::{Names, Reader, Settings, flows};

impl Agent {
    /// Has the programs report events, and reads them, until the agent is dropped or the datapath detached.
    pub fn start_events(&self, settings: Settings) -> Result<()> {
        let datapath = self.datapath().context("everything was detached")?;
        let reader = Reader::start(&self.observer, &datapath, settings)?;
        *self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(reader);
        Ok(())
    }

    fn scene(&self) -> Result<(Scene, Arc<Datapath>), Refusal> {
        let names = self.observer.names.get();
        let (places, datapath) = self.ask(|s| Ok((s.policy.endpoints().iter().map(place).collect(), Arc::clone(&s.datapath))))?;
        Ok((Scene { places, host: host_addresses()?, names }, datapath))
    }
}

impl State {
    /// What numbers and addresses stand for now.
    pub(super) fn rename(&self, names: &mut Names) {
        let nics = self.policy.endpoints();
        let endpoints = nics.iter().filter_map(|n| {
            let id = self.attachments.get(n.ifindex()).map(|a| a.row.id).filter(|id| *id != 0)?;
            Some((id, n.name.as_str().into()))
        });
        names.endpoints = Arc::new(endpoints.collect());
        let addresses = nics.iter().flat_map(|n| n.addresses.iter().map(|a| (*a, n.name.as_str().into())));
        names.addresses = Arc::new(addresses.collect());
        let groups = self.policy.desired().groups();
        let rows = self.policy.known().map(|known| MemberRows::new(known, groups)).unwrap_or_default();
        let mut members = HashMap::new();
        for group in groups {
            let found = group.members.iter().filter_map(|m| Some((rows.find(group, m)?, (group.lb.clone(), m.name.clone()))));
            members.extend(found);
        }
        names.members = Arc::new(members);
    }
}

fn place(nic: &Nic) -> Place {
    Place {
        name: nic.name.clone(),
        device: nic.device.clone(),
        ifindex: nic.ifindex(),
        mac: nic.mac,
        host_mac: nic.host_mac,
        addresses: nic.addresses.clone(),
    }
}

/// The addresses of this host, but for those that only it can use.
fn host_addresses() -> Result<Vec<IpAddr>> {
    let all = getifaddrs().context("asking for this host's addresses")?;
    let addresses = all.filter_map(|i| {
        let address = i.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let usable = |a: &IpAddr| match a {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    };
    Ok(addresses.filter(usable).collect())
}

impl Observe for Agent {
    fn events(&self, filter: Filter, since: Option<u64>, follow: bool) -> Result<Follower, Refusal> {
        Ok(self.observer.events.read(filter, since, follow))
    }

    fn endpoint_flows(&self, endpoint: Option<&str>, limit: usize) -> Result<EndpointFlowList, Refusal> {
        let datapath = self.ask(|s| Ok(Arc::clone(&s.datapath)))?;
        let names = self.observer.names.get();
        let number = |name: &str| names.endpoints.iter().find(|(_, n)| n.as_ref() == name).map(|(number, _)| *number);
        let number = match endpoint {
            None => None,
            Some(name) => Some(number(name).ok_or_else(|| {
                Refusal::not_found(format!(
                    "there is no endpoint '{name}' with a device on this host: see `vnet-ctl get endpoints`"
                ))
            })?),
        };
        Ok(flows::list(&datapath, &names, number, limit)?)
    }

    fn explain(&self, request: ExplainRequest) -> Result<Explanation, Refusal> {
        let (scene, datapath) = self.scene()?;
        explain::loaded(&datapath, &self.rehearsals, &scene, &request)
    }

    fn metrics(&self) -> Result<String, Refusal> {
        let endpoints = views::endpoints(self)?;
        let slots: BTreeMap<String, u32> = self.ask(|s| {
            let slot = |n: &Nic| Some((n.name.clone(), s.attachments.get(n.ifindex()).filter(|a| a.row.id != 0)?.row.slot));
            Ok(s.policy.endpoints().iter().filter_map(slot).collect())
        })?;
        let datapath = self.ask(|s| Ok(Arc::clone(&s.datapath)))?;
        let maps = datapath.maps();
        let flows = slots.into_iter().filter_map(|(name, slot)| Some((name, u64::from(maps.flow_count(slot)?))));
        let budget = maps.event_budget()?;
        let snapshot = Snapshot {
            endpoint_flows: flows.collect(),
            lbs: views::lbs(self, None)?,
            status: views::status(self)?,
            events: EventCounts {
                reported: budget.reported,
                suppressed: budget.suppressed,
                followers: self.observer.events.followers(),
            },
            endpoints,
            ..Snapshot::default()
        };
        Ok(metrics::text(snapshot, &self.observer.timings)?)
    }
}

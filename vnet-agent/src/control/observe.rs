//! What happens, and why: the agent's answers. Names are copied under the lock; maps are read without it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use vnet_common::api::{EndpointFlowList, ExplainRequest, Explanation};

use super::inputs::Nic;
use super::{Agent, State, explain, views};
use crate::api::{Observe, Quarantine as _, Refusal};
use crate::observe::events::{Filter, Follower};
use crate::observe::metrics::{self, EventCounts, Snapshot};
use crate::observe::names::reserved;
use crate::observe::{Names, Reader, Settings, flows};

impl Agent {
    /// Has the programs report events, and reads them, until the agent is dropped or the datapath detached.
    pub fn start_events(&self, settings: Settings) -> Result<()> {
        let datapath = self.datapath().context("everything was detached")?;
        let reader = Reader::start(&self.parts.observer, &datapath, settings)?;
        *self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(reader);
        Ok(())
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
        names.members = Arc::new(views::member_names(self));
        let places = self.security.image().into_iter().flat_map(|image| image.places());
        names.places = Arc::new(places.filter_map(|(identity, place)| Some((identity, reserved(place)?))).collect());
        names.rules = self.security.image().map(|image| image.rules_by_number()).unwrap_or_default();
    }
}

impl Observe for Agent {
    fn events(&self, filter: Filter, since: Option<u64>, follow: bool) -> Result<Follower, Refusal> {
        Ok(self.parts.observer.events.read(filter, since, follow))
    }

    fn endpoint_flows(&self, endpoint: Option<&str>, limit: usize) -> Result<EndpointFlowList, Refusal> {
        let datapath = self.ask(|s| Ok(Arc::clone(&s.datapath)))?;
        let names = self.parts.observer.names.get();
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
        explain::explain(self, &request)
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
                followers: self.parts.observer.events.followers(),
            },
            endpoints,
            rules: views::rules(self, None)?,
            quarantine: self.parts.quarantine.quarantine()?,
            sources: self.parts.sources.status(),
        };
        Ok(metrics::text(snapshot, &self.parts.observer.timings)?)
    }
}

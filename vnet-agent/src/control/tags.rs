//! Between tag sources, the quarantine engine and the endpoints' rows.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::net::if_::if_indextoname;
use vnet_common::api::{AuditRecord, GroupStatus, QuarantineRequest, QuarantineStatus, Tag, TagRequest};
use vnet_common::endpoint::{EndpointRow, flags};

use super::Agent;
use super::policy::Policy;
use crate::api::{Quarantine, Refusal};
use crate::datapath::Datapath;
use crate::observe::{Observer, Saying};
use crate::quarantine::{self, Journal, Operation as Done, Pinned, Service, TagApplied};
use crate::resource::{DEFAULT_GROUP, Operation};
use crate::source::{self, Applied, Refused, SourceName, TagChange};

/// Takes what sources say to the engine.
pub struct Sink {
    service: Arc<Service>,
    observer: Arc<Observer>,
}

impl Sink {
    /// To this engine.
    pub fn new(service: Arc<Service>, observer: Arc<Observer>) -> Self {
        Self { service, observer }
    }
}

impl source::Sink for Sink {
    fn change(&self, change: TagChange) -> Result<Applied, Refused> {
        self.service.heard(change.source.as_str());
        if change.is_trial() {
            return Ok(Applied::Made);
        }
        let operation = match change.operation {
            Operation::Clear => Done::Clear,
            Operation::Set => Done::Set {
                value: change.value,
                severity: change.severity,
                confidence: change.confidence,
                evidence: change.evidence,
                ttl_seconds: change.ttl.map(|ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
                on_expiry: change.on_expiry,
            },
        };
        let change = quarantine::TagChange {
            subject: change.subject,
            source: change.source.as_str().to_owned(),
            name: change.name,
            instance: change.instance,
            operation,
        };
        match self.service.apply_event(&change).map_err(|e| Refused(e.to_string()))? {
            // Also one that was there like this: it counts as set anew.
            TagApplied::Changed | TagApplied::Refreshed | TagApplied::Unchanged => Ok(Applied::Made),
            TagApplied::Absent => Ok(Applied::Absent),
            TagApplied::Dropped => Ok(Applied::NoRoom),
        }
    }

    fn without_room(&self, source: &SourceName) -> u64 {
        self.service.source_counts(source.as_str()).dropped
    }

    fn lost(&self, source: &SourceName, lost: bool) {
        let what = if lost { "lost" } else { "back" };
        self.observer.events.say(Saying::Source, "", what, format!("tag source {source} is {what}"));
    }
}

/// The engine changes an endpoint's own row; the rows of its addresses, by which its peers know it, follow. A client is answered
/// when they did: what it is shown, and what it did, is in force, or it is told that it is not.
impl Quarantine for Agent {
    fn groups(&self) -> Result<Vec<GroupStatus>, Refusal> {
        self.in_force(|service| service.groups())
    }

    fn tags(&self, subject: Option<&str>) -> Result<Vec<Tag>, Refusal> {
        self.parts().quarantine.tags(subject)
    }

    fn set_tag(&self, who: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal> {
        self.done("the tag is set", |service| service.set_tag(who, request))
    }

    fn remove_tag(&self, who: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal> {
        self.done("the tag is removed", |service| service.remove_tag(who, request))
    }

    fn quarantine(&self) -> Result<QuarantineStatus, Refusal> {
        self.in_force(|service| service.quarantine())
    }

    fn operate(&self, who: &str, endpoint: &str, verb: &str, request: &QuarantineRequest) -> Result<QuarantineStatus, Refusal> {
        self.done(verb, |service| service.operate(who, endpoint, verb, request))
    }

    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>, Refusal> {
        self.parts().quarantine.audit(endpoint, limit)
    }
}

impl Agent {
    fn in_force<T>(&self, ask: impl FnOnce(&Service) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let answer = ask(&self.parts().quarantine);
        self.groups_changed();
        answer
    }

    /// The same of a change: where it cannot be put in force for others, the client is told.
    fn done<T>(&self, what: &str, change: impl FnOnce(&Service) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let answer = change(&self.parts().quarantine)?;
        match self.groups_changed() {
            None => Ok(answer),
            Some(trouble) => Err(anyhow::anyhow!(
                "{what}: done and stored, and in force for the endpoint itself; its peers go by what was before: {trouble}. It is tried again every few seconds"
            )
            .into()),
        }
    }
}

/// Who is held according to the rows that are pinned, by the names that their endpoints have now; and the numbers of all groups.
pub fn pinned(
    datapath: &Arc<Datapath>,
    policy: &Policy<Arc<Datapath>>,
    journal: &dyn Journal,
) -> Result<(Vec<Pinned>, HashMap<String, u32>)> {
    let inputs = policy.inputs();
    let mut numbers = HashMap::new();
    for name in inputs.groups().map(|g| g.metadata.name.as_str()).chain([DEFAULT_GROUP]) {
        numbers.insert(name.to_owned(), journal.group_number(name).context("reading the numbers of security groups")?);
    }
    let ids = policy.store().endpoint_ids().context("reading the numbers of endpoints")?;
    let known = Known {
        devices: ids.into_iter().map(|(device, id)| (id, device)).collect(),
        groups: numbers.iter().map(|(name, number)| (*number, name.as_str())).collect(),
        owners: inputs.owners(),
    };
    let rows = datapath.maps().endpoints().context("reading the endpoint rows")?;
    let device_at = |index: u32| if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    let pinned = rows.iter().filter_map(|row| known.pin(row, device_at)).collect();
    Ok((pinned, numbers))
}

/// What the store and the resources say of the numbers in rows.
struct Known<'a> {
    devices: HashMap<u32, String>,
    groups: HashMap<u32, &'a str>,
    owners: HashMap<&'a str, &'a str>,
}

impl Known<'_> {
    /// Who a row is about, and who holds it; `device_at` names the device that has an index now.
    fn pin(&self, row: &EndpointRow, device_at: impl Fn(u32) -> Option<String>) -> Option<Pinned> {
        let quarantined = row.flags & flags::QUARANTINED != 0;
        let (number, moves) = row.membership();
        let (device, group) = match self.devices.get(&row.id) {
            Some(device) => (device.clone(), self.groups.get(&number)),
            // A new store, in the place of one that was lost, knows neither endpoints nor groups by the numbers that rows have: that
            // lets nobody go.
            None if quarantined => (device_at(row.ifindex)?, None),
            None => return None,
        };
        let group = match group {
            Some(group) => (*group).to_owned(),
            None if quarantined => format!("(number {number})"),
            None => return None,
        };
        let endpoint = self.owners.get(device.as_str()).map_or(device.clone(), |name| (*name).to_owned());
        Some(Pinned { endpoint, group, quarantined, moves })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_who_is_held_even_to_a_new_store() {
        let (held, open) = (flags::POLICED | flags::QUARANTINED, flags::POLICED);
        let row =
            |id, ifindex, flags, group| EndpointRow { id, ifindex, flags, ..EndpointRow::default() }.with_membership(group, 7);
        let old = Known {
            devices: HashMap::from([(1, "tap1".to_owned()), (2, "tap2".to_owned())]),
            groups: HashMap::from([(1, "default"), (2, "strict")]),
            owners: HashMap::from([("tap2", "vm2")]),
        };
        let new =
            Known { devices: HashMap::new(), groups: HashMap::from([(2, "lax")]), owners: HashMap::from([("tap2", "vm2")]) };
        for (known, row, expected) in [
            (&old, row(1, 4, held, 2), "tap1 strict held"),
            (&old, row(2, 5, open, 1), "vm2 default open"),
            (&old, row(2, 5, held, 9), "vm2 (number 9) held"),
            (&old, row(2, 5, open, 9), ""),
            (&new, row(1, 4, held, 2), "tap1 (number 2) held"),
            (&new, row(2, 5, held, 2), "vm2 (number 2) held"),
            (&new, row(2, 5, open, 2), ""),
            // Its device went with the agent before this one.
            (&new, row(3, 6, held, 2), ""),
        ] {
            let pin = known.pin(&row, |index| [(4, "tap1"), (5, "tap2")].iter().find(|d| d.0 == index).map(|d| d.1.to_owned()));
            let said = pin.map(|p| {
                assert_eq!(p.moves, 7);
                format!("{} {} {}", p.endpoint, p.group, if p.quarantined { "held" } else { "open" })
            });
            assert_eq!(said.unwrap_or_default(), expected, "{row:?}");
        }
    }
}

//! Between tag sources, the quarantine engine and the endpoints' rows.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::policy::Policy;
use crate::api::Quarantine as _;
use crate::datapath::Datapath;
use crate::observe::{Observer, Saying};
use crate::policy::membership::DEFAULT;
use crate::quarantine::{self, Journal, Operation as Done, Pinned, Service, TagApplied};
use crate::resource::Operation;
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

/// An endpoint's tags, as expressions see them.
pub fn as_json(service: &Service, endpoint: &str) -> Value {
    let tags = service.tags(Some(endpoint)).unwrap_or_default();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let tag = |t: vnet_common::api::Tag| {
        json!({
            "name": t.name, "value": t.value, "instance": t.instance, "severity": t.severity, "confidence": t.confidence,
            "source": t.source, "evidence": t.evidence, "expired": t.expired,
            "age": now.saturating_sub(t.set_at_ms) / 1000,
        })
    };
    Value::Array(tags.into_iter().map(tag).collect())
}

/// Who is held according to the rows that are pinned, by the names that their endpoints have now; and the numbers of all groups.
pub fn pinned(
    datapath: &Arc<Datapath>,
    policy: &Policy<Arc<Datapath>>,
    journal: &dyn Journal,
) -> Result<(Vec<Pinned>, HashMap<String, u32>)> {
    let inputs = policy.inputs();
    let mut numbers = HashMap::new();
    for name in inputs.groups().map(|g| g.metadata.name.as_str()).chain([DEFAULT]) {
        numbers.insert(name.to_owned(), journal.group_number(name).context("reading the numbers of security groups")?);
    }
    let devices: HashMap<u32, String> =
        policy.store().endpoint_ids().context("reading the numbers of endpoints")?.into_iter().map(|(d, id)| (id, d)).collect();
    let owner =
        |device: &str| policy.endpoints().iter().find(|n| n.device == device).map_or(device, |n| n.name.as_str()).to_owned();
    let group = |number: u32| numbers.iter().find(|(_, n)| **n == number).map(|(name, _)| name.clone());
    let rows = datapath.maps().endpoints().context("reading the endpoint rows")?;
    let each = rows.iter().filter_map(|row| {
        let quarantined = row.flags & vnet_common::endpoint::flags::QUARANTINED != 0;
        let device = devices.get(&row.id)?;
        let (number, moves) = row.membership();
        let group = group(number).or_else(|| quarantined.then(|| format!("(number {number})")))?;
        Some(Pinned { endpoint: owner(device), group, quarantined, moves })
    });
    let pinned = each.collect();
    Ok((pinned, numbers))
}

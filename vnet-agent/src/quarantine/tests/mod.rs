//! The engine with a datapath and a journal in memory, which outlive it, and a clock that is set by hand.

mod crash;
mod limits;
mod membership;
mod operators;
mod random;
mod recovery;
mod speed;
mod time;
mod transfers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use vnet_common::api::{AuditRecord, File, Held, Pending, QuarantineRequest, TagRequest};

use super::clock::ManualClock;
use super::{Assignment, Batch, Enforce, Inputs, Journal, Operation, Pinned, Refused, Saved, Service, TagApplied, TagChange};
use crate::api::{Quarantine, Refusal};
use crate::resource::{OnExpiry, Resource, SecurityGroup, TagSource, parse};

/// Who asks in tests.
const USER: &str = "user root (0)";

/// Breaks down at a step that is asked for.
#[derive(Default)]
pub struct Fuse(Mutex<Option<u32>>);

impl Fuse {
    fn set(&self, steps: Option<u32>) {
        *self.0.lock().unwrap() = steps;
    }

    /// A step: is it the one?
    fn burn(&self) {
        let out = match &mut *self.0.lock().unwrap() {
            Some(0) => true,
            Some(steps) => {
                *steps -= 1;
                false
            }
            None => false,
        };
        if out {
            // Without the message of a panic: it is meant.
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

/// Rows by endpoint: group, quarantined, moves.
#[derive(Default)]
pub struct Rows {
    rows: Mutex<BTreeMap<String, (String, bool, u32)>>,
    devices: Mutex<BTreeSet<String>>,
    failing: AtomicBool,
    /// Who is let go keeps its group until there are rules to open it with.
    late: AtomicBool,
    fuse: Arc<Fuse>,
}

impl Rows {
    fn put(&self, endpoint: &str, row: (String, bool, u32)) -> Result<bool> {
        if self.failing.load(Ordering::Relaxed) {
            bail!("no room for its set");
        }
        self.fuse.burn();
        let there = self.devices.lock().unwrap().contains(endpoint);
        if there {
            self.rows.lock().unwrap().insert(endpoint.to_owned(), row);
        }
        self.fuse.burn();
        Ok(there)
    }

    /// The quarantine group of a row.
    fn held_in(&self, endpoint: &str) -> Option<String> {
        self.rows.lock().unwrap().get(endpoint).filter(|row| row.1).map(|row| row.0.clone())
    }
}

impl Enforce for Rows {
    fn hold(&self, endpoint: &str, group: &str, moves: u32) -> Result<bool> {
        self.put(endpoint, (group.to_owned(), true, moves))
    }
    fn release(&self, endpoint: &str, moves: u32) -> Result<bool> {
        let group = self.held_in(endpoint).filter(|_| self.late.load(Ordering::Relaxed));
        self.put(endpoint, (group.clone().unwrap_or_default(), group.is_some(), moves))
    }
    fn pinned(&self) -> Result<Vec<Pinned>> {
        let pin = |(endpoint, (group, quarantined, moves)): (&String, &(String, bool, u32))| Pinned {
            endpoint: endpoint.clone(),
            group: group.clone(),
            quarantined: *quarantined,
            moves: *moves,
        };
        Ok(self.rows.lock().unwrap().iter().map(pin).collect())
    }
}

/// What was written last.
#[derive(Default)]
pub struct Memory {
    saved: Mutex<Saved>,
    audit: Mutex<Vec<AuditRecord>>,
    groups: Mutex<Vec<String>>,
    failing: AtomicBool,
    fuse: Arc<Fuse>,
}

impl Journal for Memory {
    fn load(&self) -> Result<Saved> {
        let mut saved = self.saved.lock().unwrap().clone();
        saved.last_audit = self.audit.lock().unwrap().len() as u64;
        Ok(saved)
    }
    fn commit(&self, batch: &Batch) -> Result<()> {
        if self.failing.load(Ordering::Relaxed) {
            bail!("no space left");
        }
        self.fuse.burn();
        let mut saved = self.saved.lock().unwrap();
        for (name, row) in &batch.members {
            // As it would come out of a file.
            let row = row.as_ref().map(|row| serde_json::from_str(&serde_json::to_string(row).unwrap()).unwrap());
            match row {
                Some(row) => drop(saved.members.insert(name.clone(), row)),
                None => drop(saved.members.remove(name)),
            }
        }
        for write in &batch.tags {
            saved.tags.retain(|(key, _)| *key != *write.key);
            saved.tags.extend(write.state.clone().map(|state| ((*write.key).clone(), state)));
        }
        if let Some(common) = &batch.common {
            saved.common = common.clone();
        }
        saved.mark = Some(batch.mark.clone());
        drop(saved);
        let mut audit = self.audit.lock().unwrap();
        for record in &batch.audit {
            assert_eq!(record.number, audit.len() as u64 + 1, "numbers have no gaps");
            audit.push(record.clone());
        }
        drop(audit);
        self.fuse.burn();
        Ok(())
    }
    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>> {
        let audit = self.audit.lock().unwrap();
        let mut found: Vec<_> = audit.iter().filter(|r| endpoint.is_none_or(|e| e == r.endpoint)).cloned().collect();
        Ok(found.split_off(found.len().saturating_sub(limit)))
    }
    fn group_number(&self, name: &str) -> Result<u32> {
        let mut groups = self.groups.lock().unwrap();
        if !groups.iter().any(|g| g == name) {
            groups.push(name.to_owned());
        }
        Ok(groups.iter().position(|g| g == name).unwrap() as u32 + 1)
    }
}

/// A source named `ids` that may do everything, and quarantine groups `strict` and `lax`.
const COMMON: &str = r#"
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: ids }
spec: { type: clamav, allow: [{ tag: "*" }] }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: strict }
spec: { quarantine: {} }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: lax }
spec: { quarantine: {} }
"#;

/// An engine and what is around it.
pub struct World {
    clock: Arc<ManualClock>,
    rows: Arc<Rows>,
    journal: Arc<Memory>,
    fuse: Arc<Fuse>,
    service: Option<Arc<Service>>,
    groups: Vec<SecurityGroup>,
    sources: Vec<TagSource>,
    endpoints: BTreeMap<String, BTreeMap<String, String>>,
}

impl World {
    /// With these resources and the common ones, and endpoints `a`, `b`, `c` with the label `app: web`.
    fn new(yaml: &str) -> Self {
        let fuse = Arc::new(Fuse::default());
        let rows = Arc::new(Rows { fuse: Arc::clone(&fuse), ..Rows::default() });
        let journal = Arc::new(Memory { fuse: Arc::clone(&fuse), ..Memory::default() });
        let mut world = Self {
            clock: ManualClock::new(),
            rows,
            journal,
            fuse,
            service: None,
            groups: Vec::new(),
            sources: Vec::new(),
            endpoints: BTreeMap::new(),
        };
        for name in ["a", "b", "c"] {
            world.endpoints.insert(name.into(), BTreeMap::from([("app".into(), "web".into())]));
            world.rows.devices.lock().unwrap().insert(name.into());
        }
        world.resources(COMMON);
        world.resources(yaml);
        world.start();
        world
    }

    /// With one group `web` for all, with these transfers.
    pub(crate) fn with(transfers: &str) -> Self {
        Self::new(&web(transfers))
    }

    /// Puts resources beside, or into the place of, those that are there.
    fn resources(&mut self, yaml: &str) {
        let files = [File { name: "test.yaml".into(), text: yaml.into() }];
        for located in parse(&files).unwrap_or_else(|faults| panic!("{faults:?}")) {
            match located.resource {
                Resource::SecurityGroup(group) => {
                    self.groups.retain(|g| g.metadata.name != group.metadata.name);
                    self.groups.push(group);
                }
                Resource::TagSource(source) => {
                    self.sources.retain(|s| s.metadata.name != source.metadata.name);
                    self.sources.push(source);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The same, and they are applied.
    fn apply(&mut self, yaml: &str) {
        self.resources(yaml);
        self.set_inputs();
    }

    fn delete_group(&mut self, name: &str) {
        self.groups.retain(|g| g.metadata.name != name);
        self.set_inputs();
    }

    fn set_inputs(&self) {
        let inputs = Inputs {
            groups: self.groups.iter().collect(),
            sources: self.sources.iter().collect(),
            endpoints: self.endpoints.iter().map(|(name, labels)| (name.as_str(), labels)).collect(),
        };
        self.service().set_inputs(&inputs);
        self.store();
    }

    /// The agent starts.
    fn start(&mut self) {
        self.fuse.set(None);
        let service = Service::open(
            Arc::clone(&self.journal) as Arc<dyn Journal>,
            Arc::clone(&self.rows) as Arc<dyn Enforce>,
            Arc::clone(&self.clock) as Arc<_>,
        );
        self.service = Some(Arc::new(service.unwrap()));
        self.set_inputs();
    }

    /// It is killed, and started again.
    fn restart(&mut self) {
        self.service = None;
        self.start();
    }

    pub(crate) fn service(&self) -> &Arc<Service> {
        self.service.as_ref().unwrap()
    }

    /// What the thread does that writes.
    fn store(&self) {
        let _ = self.service().flush();
    }

    fn change(&self, endpoint: &str, name: &str, operation: Operation) -> Result<TagApplied, Refused> {
        let (subject, name, source) = (endpoint.to_owned(), name.to_owned(), "ids".to_owned());
        let (name, instance) = name.split_once('#').map_or((name.clone(), ""), |(n, i)| (n.to_owned(), i));
        let change = TagChange { subject, source, name, instance: instance.to_owned(), operation };
        let applied = self.service().apply_event(&change);
        self.store();
        applied
    }

    /// Source `ids` sets a tag: `name`, or `name#instance`.
    fn set(&self, endpoint: &str, name: &str, severity: u8) {
        self.set_for(endpoint, name, severity, None, OnExpiry::Release);
    }

    fn set_for(&self, endpoint: &str, name: &str, severity: u8, ttl_seconds: Option<u32>, on_expiry: OnExpiry) {
        self.change(endpoint, name, set(severity, ttl_seconds, on_expiry)).unwrap();
    }

    fn clear(&self, endpoint: &str, name: &str) {
        self.change(endpoint, name, Operation::Clear).unwrap();
    }

    /// Time passes, and what is due in it is done when it is due.
    fn pass(&self, seconds: u64) {
        self.pass_ms(seconds * 1000);
    }

    fn pass_ms(&self, ms: u64) {
        let mut left = Duration::from_millis(ms);
        loop {
            let next = self.service().next_deadline().unwrap_or(left).min(left);
            self.clock.pass(next.as_millis() as u64);
            left -= next;
            self.service().tick();
            self.store();
            if left.is_zero() {
                return;
            }
        }
    }

    fn operate(&self, endpoint: &str, verb: &str, group: Option<&str>, reason: &str) -> Result<(), Refusal> {
        let request = QuarantineRequest { group: group.map(str::to_owned), reason: reason.into() };
        self.service().operate(USER, endpoint, verb, &request).map(drop)
    }

    fn tag(&self, request: TagRequest) -> Result<(), Refusal> {
        self.service().set_tag(USER, &request).map(drop)
    }

    fn assignment(&self, endpoint: &str) -> Assignment {
        self.service().assignments().remove(endpoint).unwrap()
    }

    /// The group that an endpoint is in. The datapath has it, too.
    fn group(&self, endpoint: &str) -> String {
        let assignment = self.assignment(endpoint);
        let held = assignment.quarantined.then(|| assignment.group.clone());
        if self.rows.devices.lock().unwrap().contains(endpoint) {
            assert_eq!(self.rows.held_in(endpoint), held, "{endpoint}");
        }
        assignment.group
    }

    fn groups(&self) -> [String; 3] {
        ["a", "b", "c"].map(|name| self.group(name))
    }

    fn held(&self, endpoint: &str) -> Held {
        let status = self.service().quarantine().unwrap();
        status.held.into_iter().find(|h| h.endpoint == endpoint).unwrap()
    }

    fn pending(&self) -> Vec<Pending> {
        self.service().quarantine().unwrap().pending
    }

    fn is_lost(&self, source: &str) -> bool {
        self.alarms().contains(&format!("tag source {source} is lost"))
    }

    fn alarms(&self) -> String {
        self.service().alarms().join("\n")
    }

    /// What was recorded of an endpoint: `action from>to`.
    fn log(&self, endpoint: &str) -> Vec<String> {
        let records = self.service().audit(Some(endpoint), usize::MAX).unwrap();
        records.iter().map(|r| format!("{} {}>{}", r.action, r.from, r.to)).filter(|r| !r.starts_with("tag-")).collect()
    }
}

fn web(transfers: &str) -> String {
    format!(
        "apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: web }}\nspec:\n  selector: {{ matchLabels: {{ app: web }} }}\n  transfers:\n{transfers}"
    )
}

fn set(severity: u8, ttl_seconds: Option<u32>, on_expiry: OnExpiry) -> Operation {
    Operation::Set { value: String::new(), severity, confidence: 100, evidence: "seen by a test".into(), ttl_seconds, on_expiry }
}

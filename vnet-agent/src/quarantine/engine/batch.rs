//! What is to be stored: the state of what changed, and the records of the audit log.

use vnet_common::api::AuditRecord;

use super::{AUDIT_QUEUE, EVIDENCE, Engine, HEARTBEAT};
use crate::quarantine::clock::{Mark, Now};
use crate::quarantine::state::{Batch, Member};
use crate::quarantine::tags::shown;

impl Engine {
    /// What is to be stored, if anything is. What it gives must be stored, or given back, before this is asked again.
    pub fn take_batch(&mut self, mark: Mark) -> Option<Batch> {
        let touched = std::mem::take(&mut self.touched);
        let leaving = |name: &String| Some((name.clone(), self.live.get(name).filter(|live| live.leaving.is_some())?.row.moves));
        let then = touched.iter().filter_map(leaving).collect();
        let members = touched.into_iter().map(|name| {
            let row = self.live.get(&name).map(|live| live.row.clone()).filter(|row| *row != Member::default());
            (name, row)
        });
        let lost = std::mem::take(&mut self.audit_lost);
        if lost > 0 {
            let reason = format!("{lost} records are missing here: the store took none, and no more could be kept");
            let at_ms = self.audit.back().map_or(0, |record| record.at_ms);
            self.audit.push_back(AuditRecord {
                at_ms,
                action: "error".into(),
                who: "agent".into(),
                reason,
                ..AuditRecord::default()
            });
        }
        let mut batch = Batch {
            members: members.collect(),
            tags: self.tags.take_touched(),
            common: std::mem::take(&mut self.common_touched).then(|| self.common.clone()),
            audit: std::mem::take(&mut self.audit).into(),
            then,
            mark,
        };
        if batch.is_empty() && batch.mark.at < self.last_write + HEARTBEAT {
            return None;
        }
        for record in &mut batch.audit {
            self.last_audit += 1;
            record.number = self.last_audit;
        }
        Some(batch)
    }

    /// Is there something to store?
    #[must_use]
    pub fn has_batch(&self, now: Now) -> bool {
        let changes = !self.touched.is_empty() || self.common_touched || !self.audit.is_empty() || self.tags.is_touched();
        changes || now.at >= self.last_write + HEARTBEAT
    }

    /// It was stored.
    pub fn stored(&mut self, batch: &Batch) {
        self.trouble = None;
        self.last_write = batch.mark.at;
    }

    /// It could not be stored.
    pub fn give_back(&mut self, batch: Batch, why: String) {
        self.last_audit -= batch.audit.len() as u64;
        self.touched.extend(batch.members.into_keys());
        self.tags.give_back(batch.tags);
        self.common_touched |= batch.common.is_some();
        for record in batch.audit.into_iter().rev() {
            self.audit.push_front(record);
        }
        self.trouble = Some(why);
    }

    pub(super) fn record(&mut self, record: AuditRecord) {
        match self.audit.len() < AUDIT_QUEUE {
            true => self.audit.push_back(record),
            false => self.audit_lost += 1,
        }
    }

    /// The tags of an endpoint, and what shows them.
    pub(super) fn evidence(&self, name: &str) -> Vec<String> {
        let mut tags: Vec<String> = self.tags.of(name).take(EVIDENCE).map(|(key, state)| shown(key, state)).collect();
        let all = self.tags.of(name).count();
        if all > EVIDENCE {
            tags.push(format!("and {} more", all - EVIDENCE));
        }
        tags
    }
}

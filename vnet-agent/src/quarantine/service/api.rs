//! What clients of the API ask of it.

use anyhow::Context;
use vnet_common::api::{AuditRecord, GroupStatus, QuarantineRequest, QuarantineStatus, Tag, TagRequest};

use super::Service;
use crate::api::{Quarantine, Refusal};

impl Service {
    /// What an operator asked for is stored when it is answered.
    fn stored<T>(&self, what: &str, done: Result<T, Refusal>) -> Result<T, Refusal> {
        let value = done?;
        self.flush().with_context(|| format!("{what} is not stored yet; it will be, as soon as the store takes it"))?;
        Ok(value)
    }
}

impl Quarantine for Service {
    fn groups(&self) -> Result<Vec<GroupStatus>, Refusal> {
        let mut groups = self.lock().groups();
        for group in &mut groups {
            group.id = self.group_number(&group.name)?;
        }
        Ok(groups)
    }

    fn tags(&self, subject: Option<&str>) -> Result<Vec<Tag>, Refusal> {
        Ok(self.with(|engine, now| engine.tags(subject, now)))
    }

    fn set_tag(&self, who: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal> {
        let done = self.urgently(|engine, now| engine.set_by_operator(request, who, now));
        self.stored("the tag", done)
    }

    fn remove_tag(&self, who: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal> {
        let done = self.urgently(|engine, now| engine.remove_by_operator(request, who, now));
        self.stored("the removal of the tag", done)
    }

    fn quarantine(&self) -> Result<QuarantineStatus, Refusal> {
        Ok(self.with(|engine, now| engine.status(now)))
    }

    fn operate(&self, who: &str, endpoint: &str, verb: &str, request: &QuarantineRequest) -> Result<QuarantineStatus, Refusal> {
        let done = self.urgently(|engine, now| engine.operate(endpoint, verb, request, who, now));
        self.stored(&format!("{verb} of {endpoint}"), done)?;
        self.quarantine()
    }

    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>, Refusal> {
        // What has happened is in it, unless the store takes nothing: then the alarms say so.
        let _ = self.flush();
        Ok(self.journal.audit(endpoint, limit).context("reading the audit log")?)
    }
}

//! The part of the store that quarantine has: a [`Journal`].

use anyhow::{Context as _, Result};
use redb::{ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use vnet_common::api::AuditRecord;

use super::redb::RedbStore;
use crate::quarantine::{Batch, Common, Journal, Saved, TagKey};

/// Endpoint → JSON of [`crate::quarantine::Member`]: its group, who holds it, what waits, and the intent to open it.
const MEMBERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("members");
/// (subject, source, name, instance) → JSON of [`crate::quarantine::TagState`].
const TAGS: TableDefinition<'_, (&str, &str, &str, &str), &[u8]> = TableDefinition::new("tags");
/// `common` → JSON of [`Common`]; `mark` → JSON of when this was written.
const QUARANTINE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("quarantine");
/// Number → JSON of [`AuditRecord`]. Records are added at the end and never changed.
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
/// Name of a security group → number.
const GROUPS: TableDefinition<'_, &str, u32> = TableDefinition::new("security_groups");

/// Records of the audit log that are kept: of more, the oldest go, so that nobody can fill the disk with alerts. About 400 MB.
const KEPT: u64 = 1_000_000;

/// Makes the tables.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<()> {
    txn.open_table(MEMBERS)?;
    txn.open_table(TAGS)?;
    txn.open_table(QUARANTINE)?;
    txn.open_table(AUDIT)?;
    txn.open_table(GROUPS)?;
    Ok(())
}

fn parse<T: DeserializeOwned>(json: &[u8], what: impl FnOnce() -> String) -> Result<T> {
    serde_json::from_slice(json).with_context(what)
}

fn put_group(table: &mut Table<'_, &str, u32>, name: &str) -> Result<u32> {
    // Names are never taken out: their count is the last number.
    let number = u32::try_from(table.len()? + 1).context("every number of a group was given out")?;
    table.insert(name, number)?;
    Ok(number)
}

impl Journal for RedbStore {
    fn load(&self) -> Result<Saved> {
        self.reading(|txn| {
            let mut saved = Saved::default();
            for row in txn.open_table(MEMBERS)?.iter()? {
                let (name, json) = row?;
                let name = name.value().to_owned();
                let member = parse(json.value(), || format!("the state of endpoint {name}"))?;
                saved.members.insert(name, member);
            }
            for row in txn.open_table(TAGS)?.iter()? {
                let (key, json) = row?;
                let (subject, source, name, instance) = key.value();
                let state = parse(json.value(), || format!("tag {source}/{name} of {subject}"))?;
                let text = str::to_owned;
                let key = TagKey { subject: text(subject), source: text(source), name: text(name), instance: text(instance) };
                saved.tags.push((key, state));
            }
            let table = txn.open_table(QUARANTINE)?;
            if let Some(json) = table.get("common")? {
                saved.common = parse::<Common>(json.value(), || "brakes and lost sources".to_owned())?;
            }
            if let Some(json) = table.get("mark")? {
                saved.mark = Some(parse(json.value(), || "the time of the last write".to_owned())?);
            }
            saved.last_audit = txn.open_table(AUDIT)?.last()?.map_or(0, |(number, _)| number.value());
            Ok(saved)
        })
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        self.writing(|txn| {
            let mut members = txn.open_table(MEMBERS)?;
            for (name, member) in &batch.members {
                match member {
                    Some(member) => drop(members.insert(name.as_str(), serde_json::to_vec(member)?.as_slice())?),
                    None => drop(members.remove(name.as_str())?),
                }
            }
            let mut tags = txn.open_table(TAGS)?;
            for write in &batch.tags {
                let TagKey { subject, source, name, instance } = write.key.as_ref();
                let key = (subject.as_str(), source.as_str(), name.as_str(), instance.as_str());
                match &write.state {
                    Some(state) => drop(tags.insert(key, serde_json::to_vec(state)?.as_slice())?),
                    None => drop(tags.remove(key)?),
                }
            }
            let mut table = txn.open_table(QUARANTINE)?;
            if let Some(common) = &batch.common {
                table.insert("common", serde_json::to_vec(common)?.as_slice())?;
            }
            table.insert("mark", serde_json::to_vec(&batch.mark)?.as_slice())?;
            let mut audit = txn.open_table(AUDIT)?;
            let mut last = audit.last()?.map_or(0, |(number, _)| number.value());
            for record in &batch.audit {
                let json = serde_json::to_vec(record)?;
                // A write that failed at its end may be there all the same: then it comes once more.
                if audit.get(record.number)?.is_some_and(|there| there.value() == json) {
                    continue;
                }
                anyhow::ensure!(record.number == last + 1, "record {} of the audit log does not follow {last}", record.number);
                audit.insert(record.number, json.as_slice())?;
                last = record.number;
            }
            while audit.len()? > KEPT {
                audit.pop_first()?;
            }
            Ok(())
        })
    }

    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>> {
        self.reading(|txn| {
            let mut records = Vec::new();
            for row in txn.open_table(AUDIT)?.iter()?.rev() {
                if records.len() == limit {
                    break;
                }
                let (number, json) = row?;
                let record: AuditRecord = parse(json.value(), || format!("record {} of the audit log", number.value()))?;
                if endpoint.is_none_or(|endpoint| endpoint == record.endpoint) {
                    records.push(record);
                }
            }
            records.reverse();
            Ok(records)
        })
    }

    fn group_number(&self, name: &str) -> Result<u32> {
        let known = self.reading(|txn| Ok(txn.open_table(GROUPS)?.get(name)?.map(|v| v.value())))?;
        match known {
            Some(number) => Ok(number),
            None => self.writing(|txn| put_group(&mut txn.open_table(GROUPS)?, name)),
        }
    }
}

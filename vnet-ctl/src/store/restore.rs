//! `store restore`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;
use vnet_common::etcd::Write;
use vnet_common::fleet::{DESIRED, Key, SERIAL};

use super::content::{Desired, Kept, counted, few, what};
use super::write::Writing;
use super::{Report, RestoreArgs, backup};
use crate::fleet::{self, Etcd};
use crate::output::Session;

/// Runs it.
pub async fn run(session: &Session, args: &RestoreArgs) -> Result<u8> {
    let wanted = backup::read(&args.file)?;
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let snapshot = etcd.read(DESIRED).await?;
    let found = Desired::of_store(&snapshot)?;
    refuse(&mut etcd, &wanted, &found, args.replace).await?;
    let serial = snapshot.entries.get(SERIAL).map_or(0, |entry| entry.modified);
    let mut writing = Writing::new(&mut etcd, serial, "store restore");
    let mut writes: Vec<Write> = puts(&wanted, &found, |key| !is_rollout(key)).collect();
    writes.extend(deletions(&wanted, &found));
    // Without what rollouts change, their hosts would have something else for a moment.
    match wanted.0.iter().any(|(key, kept)| is_rollout(key) && !is_same(Some(kept), found.0.get(key))) {
        true => writing.hold(&writes).await?,
        false => writing.finish(&writes).await?,
    }
    // What rollouts were compared with has other revisions now.
    let now = Desired::of_store(&writing.etcd().read(DESIRED).await?)?;
    let wanted = rebased(&wanted, &now);
    let rollouts: Vec<Write> = puts(&wanted, &now, is_rollout).collect();
    writing.finish(&rollouts).await?;
    let now = Desired::of_store(&etcd.read(DESIRED).await?)?;
    let kept = now.filter(|key| matches!(key, Key::Registration(_)) && !wanted.0.contains_key(&key.to_string()));
    let differences: Vec<String> = wanted.differences(&Desired(without(&now, &kept)), |a, b| a == b);
    if !differences.is_empty() {
        bail!("what was read back is not what the backup has: {}; somebody else may be changing the store", few(&differences));
    }
    let changed = writes.len() + rollouts.len();
    let mut report = Report::default();
    report.done.push(format!(
        "{} are in {}, read back and compared; {changed} values were written",
        counted(&wanted.counts()),
        etcd.access
    ));
    if serial == 0 && !found.without_hosts().0.is_empty() {
        report
            .done
            .push("the store had been written half by something that was interrupted: hosts go by it from now on".to_owned());
    }
    if !kept.0.is_empty() {
        let names: Vec<String> = kept.0.keys().map(|key| what(key)).collect();
        report.done.push(format!("not in the backup, and still there: {}", few(&names)));
    }
    report.show(session)
}

fn is_rollout(key: &str) -> bool {
    matches!(Key::parse(key), Some(Key::Rollout(_)))
}

/// Do hosts have the same by both?
fn is_same(one: Option<&Kept>, other: Option<&Kept>) -> bool {
    one.map(|kept| unbased(&kept.value)) == other.map(|kept| unbased(&kept.value))
}

fn without(all: &Desired, others: &Desired) -> BTreeMap<String, Kept> {
    all.0.iter().filter(|(key, _)| !others.0.contains_key(*key)).map(|(key, kept)| (key.clone(), kept.clone())).collect()
}

/// What keeps this from being restored.
async fn refuse(etcd: &mut Etcd, wanted: &Desired, found: &Desired, replace: bool) -> Result<()> {
    let registered = |all: &Desired| {
        let hosts = all.filter(|key| matches!(key, Key::Registration(_))).0;
        hosts.into_iter().map(|(key, kept)| (key, kept.value["number"].clone())).collect::<Vec<(String, Value)>>()
    };
    let others = registered(found);
    for (key, number) in registered(wanted) {
        for (other, taken) in &others {
            if *other != key && *taken == number && !wanted.0.contains_key(other) {
                bail!(
                    "{} has the number {number} in the backup, and {} has it in the store: remove that host first",
                    what(&key),
                    what(other)
                );
            }
        }
        let was = others.iter().find(|(other, _)| *other == key);
        let Some(Key::Registration(host)) = Key::parse(&key) else { continue };
        if was.is_some_and(|(_, was)| *was != number) && fleet::alive(etcd, &host).await? {
            bail!(
                "host '{host}' is alive with another number than the backup has for it: stop its agent first (`store init --from` gives \
                 hosts of a new store the numbers of the backup at once)"
            );
        }
    }
    if replace {
        return Ok(());
    }
    let more: Vec<String> = found
        .without_hosts()
        .0
        .iter()
        .filter(|(key, kept)| !is_same(wanted.0.get(*key), Some(kept)))
        .map(|(key, _)| what(key))
        .collect();
    match more.is_empty() {
        true => Ok(()),
        false => bail!(
            "nothing was written: the store has what the backup has not, or has otherwise ({}); --replace deletes and changes it",
            few(&more)
        ),
    }
}

/// What is there, and not in the backup; hosts stay.
fn deletions(wanted: &Desired, found: &Desired) -> impl Iterator<Item = Write> {
    found.without_hosts().0.into_keys().filter(|key| !wanted.0.contains_key(key)).map(Write::Delete)
}

/// What of the backup is not there, or not like this. Resources come before hosts: from then on nobody takes the store for empty.
fn puts<'a>(wanted: &'a Desired, found: &'a Desired, which: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = Write> + 'a {
    let differs = |key: &str, kept: &Kept| found.0.get(key).is_none_or(|there| there.value != kept.value);
    let meant = wanted.0.iter().rev().filter(move |(key, kept)| which(key) && differs(key, kept));
    meant.map(|(key, kept)| fleet::put(key, &kept.value))
}

/// Without what a rollout was compared with: revisions are each store's own.
fn unbased(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut().filter(|object| object.contains_key("put")) {
        object.remove("bases");
    }
    value
}

/// The backup, with the revisions that rollouts were compared with as they are in the store now. What had been changed since a rollout
/// was begun gets one that there never is: it cannot be promoted here, either.
fn rebased(wanted: &Desired, now: &Desired) -> Desired {
    let revision = |all: &Desired, base: &Value| {
        let (kind, name) = (base[0].as_str()?, base[1].as_str()?);
        Some(all.0.get(&Key::Resource(kind.to_owned(), name.to_owned()).to_string()).map_or(0, |kept| kept.revision))
    };
    let mut rebased = wanted.clone();
    for (key, kept) in &mut rebased.0 {
        if !is_rollout(key) {
            continue;
        }
        for base in kept.value["bases"].as_array_mut().into_iter().flatten() {
            let fits = base[2].as_i64() == revision(wanted, base);
            base[2] = if fits { revision(now, base) } else { Some(-1) }.into();
        }
    }
    rebased
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_rollouts_were_compared_with_is_found_again() {
        let resource = |name: &str| Key::Resource("Policy".into(), name.into()).to_string();
        let of = |values: &[(String, i64, Value)]| {
            let kept =
                |(key, revision, value): &(String, i64, Value)| (key.clone(), Kept { revision: *revision, value: value.clone() });
            Desired(values.iter().map(kept).collect())
        };
        let rollout = json!({"put": [], "bases": [["Policy", "a", 5], ["Policy", "b", 5], ["Policy", "new", 0]], "later": 1});
        let key = Key::Rollout("r".into()).to_string();
        let backup = of(&[(resource("a"), 5, json!(1)), (resource("b"), 7, json!(2)), (key.clone(), 9, rollout)]);
        let now = of(&[(resource("a"), 105, json!(1)), (resource("b"), 105, json!(2))]);
        let value = &rebased(&backup, &now).0[&key].value;
        assert_eq!(value["bases"], json!([["Policy", "a", 105], ["Policy", "b", -1], ["Policy", "new", 0]]));
        assert_eq!(value["later"], 1);
        assert_eq!(puts(&backup, &now, is_rollout).count(), 1);
        let there = of(&[(key.clone(), 1, json!({"put": [], "bases": [], "later": 1}))]);
        assert!(is_same(backup.0.get(&key), there.0.get(&key)), "only its revisions differ");
    }
}

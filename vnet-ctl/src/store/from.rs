//! `store migrate --from`: from an etcd into the agent's own store.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use vnet_common::api::{ApplyRequest, ApplyResponse, File, LbStatus, MemberChange};
use vnet_common::fleet::{DESIRED, Key};

use super::Report;
use super::content::{Desired, counted, few, what};
use super::to::content;
use crate::client::segment;
use crate::fleet;
use crate::output::Session;

/// Runs it.
pub async fn run(session: &Session, store: &str, replace: bool) -> Result<u8> {
    if let Some(fleet) = fleet::status(&session.agent).await? {
        bail!("the agent of this host is in a fleet, with {}: start it without --store first", fleet.store);
    }
    let mut etcd = fleet::open(session, store).await?;
    let all = Desired::of_store(&etcd.read(DESIRED).await?)?;
    for key in all.filter(|key| matches!(key, Key::Rollout(_))).0.keys() {
        session.warn(&format!("{} stays in the store: what it changes is not in the resources", what(key)));
    }
    let mut wanted = all.of_one_host();
    // It changes nothing, and an agent does not keep it.
    wanted.0.retain(|key, kept| !matches!(Key::parse(key), Some(Key::Override(..))) || !idle(&kept.value));
    let found = content(session).await?;
    let more: Vec<String> = found.0.keys().filter(|key| !wanted.0.contains_key(*key)).map(|key| what(key)).collect();
    if !more.is_empty() && !replace {
        bail!("nothing was changed: only this agent has {}; --replace deletes what {store} does not have", few(&more));
    }
    put(session, &wanted, &found).await?;
    members(session, &wanted, &found).await?;
    let mut now = content(session).await?;
    now.0.retain(|key, kept| !matches!(Key::parse(key), Some(Key::Override(..))) || !idle(&kept.value));
    let differences = wanted.differences(&now, same);
    if !differences.is_empty() {
        for difference in &differences {
            session.warn(difference);
        }
        bail!("the agent does not have what {store} has: {}", few(&differences));
    }
    let mut report = Report::default();
    report.done.push(format!(
        "{} of {} are in the agent's own store, read back and compared",
        counted(&wanted.counts()),
        etcd.access
    ));
    report.next.push(
        "the store is left as it is; where each rule was written is not known any more until files are applied again".to_owned(),
    );
    report.show(session)
}

/// The resource, whatever place it was written at; or all of it.
fn same(a: &Value, b: &Value) -> bool {
    let resource = |value: &Value| value.get("resource").cloned().unwrap_or_else(|| value.clone());
    resource(a) == resource(b)
}

/// What was changed of a member, and was taken back.
fn idle(change: &Value) -> bool {
    change["drained"] != true && change["weight"].is_null()
}

/// Applies the resources, and deletes those that are not wanted: all of it together, or nothing.
async fn put(session: &Session, wanted: &Desired, found: &Desired) -> Result<()> {
    let resources = wanted.filter(|key| matches!(key, Key::Resource(..)));
    let file = |(key, kept): (&String, &super::content::Kept)| File {
        name: format!("store:{}", what(key)),
        text: format!("{:#}\n", kept.value["resource"]),
    };
    let files: Vec<File> = resources.0.iter().map(file).collect();
    let more = found.0.keys().filter(|key| !wanted.0.contains_key(*key)).filter_map(|key| match Key::parse(key) {
        Some(Key::Resource(kind, name)) => Some((kind, name)),
        _ => None,
    });
    let delete: Vec<_> = more.collect();
    if !files.is_empty() || !delete.is_empty() {
        let done: ApplyResponse = session.agent.post("/v1/apply", &ApplyRequest { files, delete, dry_run: false }).await?;
        for warning in &done.warnings {
            session.warn(warning);
        }
    }
    Ok(())
}

/// Changes members as they are in the store, and takes back what is not.
async fn members(session: &Session, wanted: &Desired, found: &Desired) -> Result<()> {
    let nothing = json!({ "drained": false, "weight": null });
    let keys = wanted.0.keys().chain(found.0.keys().filter(|key| !wanted.0.contains_key(*key)));
    for key in keys {
        let Some(Key::Override(lb, member)) = Key::parse(key) else { continue };
        // It went with its load balancer.
        let load_balancer = Key::Resource("LoadBalancer".to_owned(), lb.clone()).to_string();
        if !wanted.0.contains_key(&load_balancer) {
            continue;
        }
        let value = wanted.0.get(key).map_or(&nothing, |kept| &kept.value);
        let weight = value["weight"].as_i64().and_then(|weight| i32::try_from(weight).ok()).unwrap_or(-1);
        let change = MemberChange { drained: Some(value["drained"] == true), weight: Some(weight) };
        let path = format!("/v1/lb/{}/members/{}", segment(&lb), segment(&member));
        if let Err(error) = session.agent.post::<_, LbStatus>(&path, &change).await {
            session.warn(&format!("member {lb}/{member} could not be changed: {error:#}"));
        }
    }
    Ok(())
}

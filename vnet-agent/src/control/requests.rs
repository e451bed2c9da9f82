//! What clients ask of the agent: each request is one question, or one change, under the agent's lock.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use vnet_common::api::moving::{FlowExport, FlowImport};
use vnet_common::api::{
    ApplyRequest, ApplyResponse, AttachRequest, DeleteRequest, DetachResponse, EndpointStatus, FlowList, LbStatus, MemberChange,
    RuleStatus, Status,
};

use super::change::Edit;
use super::inputs::Key;
use super::{Agent, State, change, moving, parse, views};
use crate::api::{Control, Refusal};

/// How long `detach` waits for requests that are still reading the datapath.
const PATIENCE: Duration = Duration::from_secs(10);

impl Control for Agent {
    fn status(&self) -> Result<Status, Refusal> {
        let mut status = views::status(self)?;
        status.alarms.extend(self.metrics_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(status)
    }

    fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse, Refusal> {
        let located = parse(&request.files)?;
        self.ask(|s| {
            if !request.dry_run {
                s.refuse_if_shared()?;
            }
            let edit = s.edit_and_delete(located, request.delete)?;
            let versions = !edit.versions.is_empty();
            let mut response = s.change(edit, request.dry_run)?;
            if versions {
                response.warnings.push("`resourceVersion` says nothing here: only the store of a fleet has versions".to_owned());
            }
            Ok(response)
        })
    }

    fn resources(&self, kind: Option<&str>) -> Result<Vec<Value>, Refusal> {
        let is_wanted = |(k, _): &Key| kind.is_none_or(|kind| kind == k);
        self.ask(|s| {
            // In a fleet that is what all share, with its versions: who changes it and gives it back changes that.
            if let Some(sharing) = s.sharing.as_ref().filter(|sharing| sharing.is_read()) {
                let wanted = sharing.all_shared().filter(|(k, ..)| is_wanted(k));
                let json = wanted.map(|(_, version, mut json)| {
                    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
                        metadata.insert("resourceVersion".to_owned(), version.into());
                    }
                    json
                });
                return Ok(json.collect());
            }
            let wanted = s.policy.inputs().resources.iter().filter(|(k, _)| is_wanted(k));
            let json = wanted.map(|(_, r)| serde_json::to_value(r).context("writing a resource as JSON"));
            Ok(json.collect::<Result<Vec<Value>>>()?)
        })
    }

    fn delete(&self, request: DeleteRequest) -> Result<ApplyResponse, Refusal> {
        self.ask(|s| {
            s.refuse_if_shared()?;
            let delete = s.policy.deletable(request)?;
            s.change(Edit { delete, ..Edit::default() }, false)
        })
    }

    fn endpoints(&self) -> Result<Vec<EndpointStatus>, Refusal> {
        views::endpoints(self)
    }

    fn attach(&self, request: AttachRequest) -> Result<EndpointStatus, Refusal> {
        change::attach(self, &request)
    }

    fn rules(&self, endpoint: Option<&str>) -> Result<Vec<RuleStatus>, Refusal> {
        views::rules(self, endpoint)
    }

    fn lbs(&self) -> Result<Vec<LbStatus>, Refusal> {
        views::lbs(self, None)
    }

    fn lb(&self, name: &str) -> Result<LbStatus, Refusal> {
        let found = views::lbs(self, Some(name))?.pop();
        found.ok_or_else(|| Refusal::not_found(format!("there is no load balancer '{name}'")))
    }

    fn change_member(&self, lb: &str, member: &str, change: MemberChange) -> Result<LbStatus, Refusal> {
        self.ask(|s| {
            s.refuse_if_shared()?;
            s.policy.change_member(lb, member, &change)
        })?;
        self.lb(lb)
    }

    fn flows(&self, lb: Option<&str>, limit: usize) -> Result<FlowList, Refusal> {
        views::flows(self, lb, limit)
    }

    fn export_flows(&self, endpoint: &str) -> Result<FlowExport, Refusal> {
        moving::export(self, endpoint)
    }

    fn import_flows(&self, endpoint: &str, export: &FlowExport) -> Result<FlowImport, Refusal> {
        moving::import(self, endpoint, export)
    }

    fn detach(&self) -> Result<DetachResponse, Refusal> {
        let Some(state) = self.lock().take() else {
            return Err(Refusal::conflict("everything was detached already"));
        };
        let result = state.detach();
        self.end();
        Ok(result?)
    }
}

impl State {
    fn detach(self) -> Result<DetachResponse> {
        let Self { datapath, policy, parts, .. } = self;
        let names = policy.inputs().world.devices.clone();
        let flows = datapath.maps().flow_total()?;
        parts.placements.close();
        drop(policy);
        let datapath = only(datapath)?;
        let name = |i: u32| names.get(&i).map_or_else(|| format!("index {i}"), |d| d.name.clone());
        let devices = datapath.detach_all().context("taking the datapath off")?.into_iter().map(name).collect();
        log::info!("everything was detached");
        Ok(DetachResponse { devices, flows })
    }
}

/// Waits until nobody else uses the value.
fn only<T>(mut shared: Arc<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match Arc::try_unwrap(shared) {
            Ok(value) => return Ok(value),
            Err(_) if start.elapsed() > PATIENCE => anyhow::bail!(
                "nothing was detached: requests were still reading the datapath after {} s. This agent ends now; start it again, and detach then",
                PATIENCE.as_secs()
            ),
            Err(again) => shared = again,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

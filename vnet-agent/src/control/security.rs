//! Rules in force: brings the policy's maps, and the endpoints' rows, after what the resources and the endpoints' groups say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vnet_common::endpoint::flags;

use super::elsewhere::{changes, subjects as subjects_elsewhere};
use super::inputs::{Inputs, Nic};
use super::placements::{Placements, Quarters};
use crate::api::Refusal;
use crate::elsewhere::Elsewhere;
use crate::lb::compile::{Desired, members};
use crate::lb::known::Known;
use crate::lb::live::{port_keys, protocol_number};
use crate::observe::metrics::Timings;
use crate::policy::apply::{Applier, PlanError};
use crate::policy::ids::{IdChange, RuleIds};
use crate::policy::live::PolicyRows;
use crate::policy::plan::Plan;
use crate::policy::{self, HostKind, Image, Led, Previous, Subject, Target, Written};
use crate::resource::{Cidr, KeepAlive};

/// What is in force, and what it follows from.
#[derive(Default)]
pub struct Security {
    /// Networks that endpoints are in.
    pub networks: Vec<Cidr>,
    image: Option<Arc<Image>>,
    /// What the image was made of, beside rules and this host's endpoints.
    around: Around,
    applier: Applier,
    /// Numbers of rules, as they are stored.
    ids: RuleIds,
    trouble: Option<String>,
}

/// What rules follow from besides resources and this host's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    hosts: Vec<(IpAddr, HostKind)>,
    elsewhere: Arc<Elsewhere>,
    beside: Beside,
}

/// Of that, what only rules follow from: another makes all of them anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Beside {
    /// The groups of load balancers that quarantines send flows to.
    targets: BTreeMap<String, Vec<Target>>,
    /// Where those lead flows to, if there are other hosts.
    led: Option<BTreeMap<String, Vec<Led>>>,
}

impl Around {
    /// The hosts, their endpoints, and the load balancers that quarantines send flows to.
    pub fn new(inputs: &Inputs, desired: &Desired, known: Option<&Known>) -> Self {
        let lbs: BTreeSet<String> =
            inputs.groups().flat_map(|g| g.spec.quarantine.iter().flat_map(|q| q.redirect_to.clone())).collect();
        let elsewhere = Arc::clone(&inputs.elsewhere);
        let targets = |lb: &String| (lb.clone(), known.map(|known| targets(lb, desired, known)).unwrap_or_default());
        let beside = Beside {
            targets: lbs.iter().map(targets).collect(),
            led: (!elsewhere.is_empty()).then(|| lbs.iter().map(|lb| (lb.clone(), led(lb, desired))).collect()),
        };
        let own = inputs.world.addresses.iter().map(|a| (*a, HostKind::This));
        let others = elsewhere.hosts.values().flat_map(|host| &host.addresses).map(|a| (*a, HostKind::Remote));
        Self { hosts: own.chain(others).collect(), elsewhere, beside }
    }
}

fn targets(lb: &str, desired: &Desired, known: &Known) -> Vec<Target> {
    let each = desired.of(lb).iter().filter_map(|g| {
        let vip = g.vips.first()?;
        let row = known.live().vips.get(port_keys(*vip, (g.port, g.last_port), protocol_number(g.protocol)).first()?)?;
        Some(Target { v4: vip.is_ipv4(), protocol: g.protocol, port: g.port, group: row.group, serial: row.serial })
    });
    each.collect()
}

fn led(lb: &str, desired: &Desired) -> Vec<Led> {
    let all = members(desired.of(lb)).map(|(g, m)| Led { address: m.address, protocol: g.protocol, port: m.port });
    all.collect::<BTreeSet<Led>>().into_iter().collect()
}

/// What was compiled and found to fit, but is not in force.
pub struct Draft {
    /// What the maps are to say.
    pub image: Arc<Image>,
    plan: Plan,
    around: Around,
}

impl Security {
    /// With the numbers of rules that are stored, in networks that endpoints are in.
    pub fn new(ids: RuleIds, networks: Vec<Cidr>) -> Self {
        let trouble = Some("the datapath does not follow the policies: the agent is starting".to_owned());
        Self { ids, networks, trouble, ..Self::default() }
    }

    /// What is in force, once something is.
    pub fn image(&self) -> Option<&Arc<Image>> {
        self.image.as_ref()
    }

    /// Why the datapath does not say what it should.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Rows in use.
    pub fn usage(&self) -> policy::apply::Usage {
        self.applier.usage()
    }

    /// What should be in force. `here`: the endpoints of this host. `rules`: resources changed, not only endpoints.
    pub fn draft(
        &mut self,
        rows: &impl PolicyRows,
        inputs: &Inputs,
        here: Vec<Subject>,
        around: Around,
        rules: bool,
    ) -> Result<Draft, PlanError> {
        let image = match &self.image {
            Some(image) if !rules && around.beside == self.around.beside => {
                let (changed, gone) = changes(image, here, &self.around.elsewhere, &around.elsewhere);
                let hosts = (around.hosts != self.around.hosts).then_some(&around.hosts[..]);
                match changed.is_empty() && gone.is_empty() && hosts.is_none() {
                    true => Arc::clone(image),
                    false => Arc::new(image.with_hosts(changed, &gone, hosts)?),
                }
            }
            _ => Arc::new(self.compile(rows, inputs, here, &around)?),
        };
        let plan = self.applier.plan(rows, &image)?;
        Ok(Draft { image, plan, around })
    }

    fn compile(&self, rows: &impl PolicyRows, inputs: &Inputs, here: Vec<Subject>, around: &Around) -> Result<Image, PlanError> {
        let led = around.beside.led.as_ref();
        let led = led.map(|led| |lb: &str| led.get(lb).cloned().unwrap_or_default());
        let written = Written {
            groups: inputs.groups().collect(),
            policies: inputs.policies().collect(),
            origins: &inputs.origins,
            targets: &|lb| around.beside.targets.get(lb).cloned().unwrap_or_default(),
            elsewhere: led.as_ref().map(|led| led as &dyn Fn(&str) -> Vec<Led>),
        };
        let names: HashSet<Arc<str>> = here.iter().map(|s| Arc::clone(&s.name)).collect();
        let elsewhere = subjects_elsewhere(&around.elsewhere, |name| names.contains(name));
        let subjects = here.into_iter().chain(elsewhere).collect();
        let inputs = policy::Inputs { written, subjects, hosts: around.hosts.clone(), networks: self.networks.clone() };
        let image = match &self.image {
            Some(image) => Image::compile(&inputs, Previous::Image(image)),
            None => {
                let tables = rows.read().context("reading the policy's maps").map_err(PlanError::Maps)?;
                Image::compile(&inputs, Previous::Start { ids: &self.ids, tables: &tables })
            }
        };
        Ok(image?)
    }

    /// Stores the numbers of a draft's rules, before it is put in force. Most drafts change endpoints only: they are put in force also
    /// where nothing can be stored.
    pub fn store_ids(&mut self, draft: &Draft, store: impl FnOnce(&IdChange) -> Result<()>) -> Result<()> {
        let ids = draft.image.ids();
        let change = ids.change_since(&self.ids);
        if change != IdChange::default() {
            store(&change).context("storing the numbers of rules")?;
        }
        // Not when the draft is in force: what takes it back has to find what is stored.
        self.ids = ids.clone();
        Ok(())
    }

    /// Puts a draft in force; it must be the last one that was made. `groups` gives what quarantine groups do besides their rules, and
    /// the numbers of all groups.
    pub fn run(
        &mut self,
        rows: &impl PolicyRows,
        placements: &Placements,
        draft: Draft,
        groups: impl FnOnce(&dyn Fn(&str) -> u32) -> (HashMap<String, Quarters>, HashMap<String, u32>),
    ) -> Result<()> {
        let Draft { image, plan, around } = draft;
        let group = |name: &str| image.endpoint(name).map(|placed| Arc::clone(&placed.subject.group));
        let done = self.applier.run(rows, plan, &mut |assignments| placements.assign(assignments, group));
        let done = done.and_then(|()| {
            let (quarters, numbers) = groups(&|group| self.applier.quarantine_set(group).unwrap_or(0));
            placements.set_groups(quarters, numbers)
        });
        self.trouble = done.as_ref().err().map(|e| format!("the datapath does not follow the policies: {e:#}"));
        if let Err(e) = done {
            self.applier.forget();
            return Err(e);
        }
        (self.image, self.around) = (Some(image), around);
        Ok(())
    }

    /// Nothing could be put in force.
    pub fn failed(&mut self, why: &anyhow::Error) {
        self.trouble = Some(format!("the datapath does not follow the policies: {why:#}"));
    }

    /// Takes out what nothing leads to any more.
    pub fn sweep(&mut self, rows: &impl PolicyRows) {
        if let Err(e) = self.applier.sweep(rows) {
            log::error!("taking out rules that are not used any more: {e:#}");
        }
    }
}

/// The endpoints of this host as rules see them; `group` says which group each is in.
pub fn subjects(nics: &[Nic], group: impl Fn(&Nic) -> Arc<str>) -> Vec<Subject> {
    let subject = |nic: &Nic| {
        let (given, learned) = if nic.given { (nic.addresses.clone(), Vec::new()) } else { (Vec::new(), nic.addresses.clone()) };
        Subject {
            name: nic.name.as_str().into(),
            labels: Arc::new(nic.labels.clone()),
            addresses: given,
            learned,
            group: group(nic),
            local: true,
            held: false,
            network: 0,
        }
    };
    nics.iter().map(subject).collect()
}

/// What quarantine groups do besides their rules; `set` gives the row of a group's set, `device` that of an endpoint or device.
pub fn quarters(inputs: &Inputs, nics: &[Nic], set: &dyn Fn(&str) -> u32) -> HashMap<String, Quarters> {
    let named = |name: &str| inputs.world.devices.values().find(|d| d.name == name).map_or(0, |d| d.ifindex);
    let endpoint = |name: &str| nics.iter().find(|n| n.name == name).map_or(0, Nic::ifindex);
    let each = inputs.groups().filter_map(|g| {
        let q = g.spec.quarantine.as_ref()?;
        let keep = q.keep_alive.iter().fold(0, |bits, keep| match keep {
            KeepAlive::Dhcp => bits | flags::DHCP,
            KeepAlive::Neighbors => bits | flags::NEIGHBORS,
        });
        let mirror = match (&q.mirror_to, &q.mirror_device) {
            (Some(name), _) => endpoint(name),
            (None, Some(device)) => named(device),
            (None, None) => 0,
        };
        let name = g.metadata.name.clone();
        Some((name.clone(), Quarters { set: set(&name), keep, mirror }))
    });
    each.collect()
}

/// Measures a compilation.
pub fn timed<T>(timings: &Timings, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = f();
    timings.compiled(start.elapsed());
    value
}

/// Why there is no draft, for whoever asked for it.
pub fn refusal(e: PlanError) -> Refusal {
    match e {
        PlanError::Refused(why) => Refusal::invalid(format!("{why}. Nothing was changed")),
        PlanError::Maps(e) => Refusal::from(e.context("nothing was changed")),
    }
}

#[cfg(test)]
mod tests;

//! Rules in force: brings the policy's maps, and the endpoints' rows, after what the resources and the endpoints' groups say.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vnet_common::endpoint::flags;

use super::inputs::{Inputs, Nic};
use super::placements::{Placements, Quarters};
use crate::api::Refusal;
use crate::lb::compile::Desired;
use crate::lb::known::Known;
use crate::lb::live::{port_keys, protocol_number};
use crate::observe::metrics::Timings;
use crate::policy::apply::{Applier, PlanError};
use crate::policy::ids::{IdChange, RuleIds};
use crate::policy::live::PolicyRows;
use crate::policy::plan::Plan;
use crate::policy::{self, HostKind, Image, Previous, Subject, Target, Written};
use crate::resource::{Cidr, KeepAlive};

/// What is in force, and what it follows from.
#[derive(Default)]
pub struct Security {
    /// Networks that endpoints are in.
    pub networks: Vec<Cidr>,
    image: Option<Arc<Image>>,
    /// Hosts and targets that the image was made of.
    around: Around,
    applier: Applier,
    /// Numbers of rules, as they are stored.
    ids: RuleIds,
    trouble: Option<String>,
}

/// What rules follow from besides resources and endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    hosts: Vec<IpAddr>,
    targets: BTreeMap<String, Vec<Target>>,
}

impl Around {
    /// This host's addresses, and the groups of load balancers that quarantines send flows to.
    pub fn new(inputs: &Inputs, desired: &Desired, known: Option<&Known>) -> Self {
        let lbs = inputs.groups().flat_map(|g| g.spec.quarantine.iter().flat_map(|q| q.redirect_to.clone()));
        let targets = lbs.map(|lb| (lb.clone(), known.map(|known| targets(&lb, desired, known)).unwrap_or_default()));
        Self { hosts: inputs.world.addresses.clone(), targets: targets.collect() }
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

    /// What should be in force. `rules`: resources changed, not only endpoints.
    pub fn draft(
        &mut self,
        rows: &impl PolicyRows,
        inputs: &Inputs,
        subjects: Vec<Subject>,
        around: Around,
        rules: bool,
    ) -> Result<Draft, PlanError> {
        let image = match &self.image {
            Some(image) if !rules && around == self.around => {
                let changed = |s: &Subject| image.endpoint(&s.name).is_none_or(|placed| placed.subject != *s);
                let there: std::collections::HashSet<&str> = subjects.iter().map(|s| &*s.name).collect();
                let gone: Vec<Arc<str>> =
                    image.endpoints().map(|p| &p.subject.name).filter(|n| !there.contains(&***n)).cloned().collect();
                let changed: Vec<Subject> = subjects.iter().filter(|s| changed(s)).cloned().collect();
                if changed.is_empty() && gone.is_empty() { Arc::clone(image) } else { Arc::new(image.with(changed, &gone)?) }
            }
            _ => Arc::new(self.compile(rows, inputs, subjects, &around)?),
        };
        let plan = self.applier.plan(rows, &image)?;
        Ok(Draft { image, plan, around })
    }

    fn compile(
        &self,
        rows: &impl PolicyRows,
        inputs: &Inputs,
        subjects: Vec<Subject>,
        around: &Around,
    ) -> Result<Image, PlanError> {
        let written = Written {
            groups: inputs.groups().collect(),
            policies: inputs.policies().collect(),
            origins: &inputs.origins,
            targets: &|lb| around.targets.get(lb).cloned().unwrap_or_default(),
        };
        let hosts = around.hosts.iter().map(|a| (*a, HostKind::This)).collect();
        let inputs = policy::Inputs { written, subjects, hosts, networks: self.networks.clone() };
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
mod tests {
    use super::super::inputs::key;
    use super::*;
    use crate::policy::ids::RuleKey;
    use crate::policy::live::{Limits, Tables, Write};
    use crate::resource::parse;
    use vnet_common::api::File;

    /// Maps that take everything.
    struct Maps;

    impl PolicyRows for Maps {
        fn limits(&self) -> Result<Limits> {
            Ok(Limits::NONE)
        }
        fn read(&self) -> Result<Tables> {
            Ok(Tables::default())
        }
        fn write(&self, _: &Write) -> Result<()> {
            Ok(())
        }
        fn bump_generation(&self) -> Result<()> {
            Ok(())
        }
        fn wait_for_programs(&self) {}
    }

    /// A group of one rule.
    fn inputs(rule: &str) -> Inputs {
        let text = format!(
            "apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: web }}\nspec: {{ ingress: [{{ name: {rule}, action: allow }}] }}\n"
        );
        let located = parse(&[File { name: "t.yaml".into(), text }]).unwrap();
        Inputs { resources: located.into_iter().map(|l| (key(&l.resource), l.resource)).collect(), ..Inputs::default() }
    }

    #[test]
    fn numbers_are_stored_when_rules_come_or_go() {
        let mut security = Security::new(RuleIds::default(), Vec::new());
        // (the rule, did resources change, does the store take it, what is stored)
        for (what, rule, rules, takes, expected) in [
            ("at first", "a", true, true, Some("+a -")),
            ("a device came", "a", false, true, None),
            ("the same again", "a", true, true, None),
            ("the maps will not take it", "b", true, true, Some("+b -a")),
            ("so it is taken back", "a", true, true, Some("+a -b")),
            ("the store does not take it", "c", true, false, Some("+c -a")),
            ("a is still stored", "a", true, true, None),
        ] {
            let nobody = subjects(&[], |_| "default".into());
            let draft = security.draft(&Maps, &inputs(rule), nobody, Around::default(), rules);
            let draft = draft.unwrap_or_else(|e| panic!("{what}: {e}"));
            let mut stored = None;
            let done = security.store_ids(&draft, |change| {
                let own = |key: &&RuleKey| key.rule != "default";
                let given: String = change.given.iter().map(|(key, _)| key).filter(own).map(|key| key.rule.as_str()).collect();
                let freed: String = change.freed.iter().filter(own).map(|key| key.rule.as_str()).collect();
                stored = Some(format!("+{given} -{freed}"));
                if takes { Ok(()) } else { Err(anyhow::anyhow!("disk full")) }
            });
            assert_eq!((stored.as_deref(), done.is_ok()), (expected, takes), "{what}");
            // The first is in force.
            security.image.get_or_insert(draft.image);
        }
    }
}

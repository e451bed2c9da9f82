//! Changes of the resources, from the first question to what follows: everything of a change takes effect, or nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use vnet_common::api::{ApplyResponse, AttachRequest, EndpointStatus};

use super::inputs::{Inputs, Key, Nic, endpoint_key, key};
use super::policy::Policy;
use super::security::{Around, Draft, Security, quarters, refusal, subjects, timed};
use super::{Agent, Parts, State, effects};
use crate::api::Refusal;
use crate::datapath::Datapath;
use crate::explain::rows::Balancing;
use crate::observe::Saying;
use crate::policy::apply::PlanError;
use crate::quarantine;
use crate::resource::{DEFAULT_GROUP, Origin, Resource};
use crate::source;

/// How long an endpoint's device may take to be seen and attached.
const ATTACHED_WITHIN: Duration = Duration::from_secs(10);

/// Resources to put and to delete.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// These are put.
    pub put: Vec<Resource>,
    /// These are deleted.
    pub delete: Vec<Key>,
    /// Where those that are put were written.
    pub origins: Vec<(Key, Origin)>,
    /// The versions that those that are put were made from, where that was said.
    pub versions: Vec<(Key, u64)>,
    /// Devices that endpoints among those that are put had been given at run time.
    pub bindings: Vec<(String, String)>,
}

impl Edit {
    fn kinds(&self) -> impl Iterator<Item = &str> + '_ {
        self.put.iter().map(|r| r.kind()).chain(self.delete.iter().map(|(kind, _)| kind.as_str()))
    }

    /// Does it change rules, and not only endpoints?
    fn has_rules(&self) -> bool {
        self.kinds().any(|kind| matches!(kind, "Policy" | "SecurityGroup"))
    }

    fn balancers(&self) -> Vec<String> {
        let put = self.put.iter().filter(|r| r.kind() == "LoadBalancer").map(|r| r.name().to_owned());
        put.chain(self.delete.iter().filter(|(kind, _)| kind == "LoadBalancer").map(|(_, name)| name.clone())).collect()
    }

    /// The resources after it.
    pub fn resources<'a>(&'a self, inputs: &'a Inputs) -> BTreeMap<Key, &'a Resource> {
        let gone: BTreeSet<&Key> = self.delete.iter().collect();
        let stay = inputs.resources.iter().filter(|(k, _)| !gone.contains(k));
        let mut after: BTreeMap<Key, &Resource> = stay.map(|(k, r)| (k.clone(), r)).collect();
        after.extend(self.put.iter().map(|r| (key(r), r)));
        after
    }

    /// This, and then `next`, as one.
    pub fn then(mut self, next: Self) -> Self {
        let named: BTreeSet<Key> = next.put.iter().map(key).chain(next.delete.iter().cloned()).collect();
        self.put.retain(|r| !named.contains(&key(r)));
        self.delete.retain(|k| !named.contains(k));
        self.put.extend(next.put);
        self.delete.extend(next.delete);
        self.origins.extend(next.origins);
        self
    }

    /// The inputs after it.
    fn over(&self, inputs: &Inputs) -> Inputs {
        let mut after = inputs.clone();
        let put = self.put.iter().map(|r| (key(r), Some(r.clone())));
        drop(after.replace(put.chain(self.delete.iter().map(|k| (k.clone(), None))).collect()));
        after.origins.extend(self.origins.iter().cloned());
        after
    }

    /// What undoes it.
    fn undo(&self, inputs: &Inputs) -> Self {
        let named = self.put.iter().map(key).chain(self.delete.iter().cloned());
        let (mut undo, mut seen) = (Self::default(), BTreeMap::new());
        for k in named.filter(|k| seen.insert(k.clone(), ()).is_none()) {
            match inputs.resources.get(&k) {
                Some(r) => undo.put.push(r.clone()),
                None => undo.delete.push(k.clone()),
            }
            if k.0 == "Endpoint" && self.delete.contains(&k) {
                undo.bindings.extend(inputs.bindings.get(&k.1).map(|device| (k.1.clone(), device.clone())));
            }
            undo.origins.extend(inputs.origins.get(&k).map(|origin| (k, origin.clone())));
        }
        undo
    }

    /// Leaves quarantine groups alone that are to go though they hold somebody by now; gives that as the end of a sentence.
    fn without_held(&mut self, holds: &BTreeMap<String, String>, inputs: &Inputs) -> String {
        let after = self.over(inputs);
        let mut stay: BTreeMap<&str, &str> = BTreeMap::new();
        for (endpoint, group) in holds.iter().filter(|(_, group)| inputs.has_quarantine(group) && !after.has_quarantine(group)) {
            stay.entry(group).or_insert(endpoint);
        }
        let stays = |kind: &str, name: &str| kind == "SecurityGroup" && stay.contains_key(name);
        self.put.retain(|r| !stays(r.kind(), r.name()));
        self.delete.retain(|(kind, name)| !stays(kind, name));
        self.origins.retain(|((kind, name), _)| !stays(kind, name));
        stay.iter()
            .map(|(group, endpoint)| format!(", but for quarantine group '{group}', which holds endpoint '{endpoint}'"))
            .collect()
    }
}

/// What would be in force.
pub struct Preview {
    /// The policy.
    pub image: Arc<crate::policy::Image>,
    /// Every endpoint.
    pub nics: Vec<Nic>,
    /// What load balancers would have, if it would be anything else.
    pub balancing: Option<Balancing>,
}

impl State {
    /// Does a change, or says what it would do.
    pub(super) fn change(&mut self, edit: Edit, dry_run: bool) -> Result<ApplyResponse, Refusal> {
        let start = Instant::now();
        let after = edit.over(self.policy.inputs());
        let nics = after.endpoints();
        keep_the_held(&self.parts.quarantine.holds(), self.policy.inputs(), &after)?;
        let bases = self.parts.quarantine.bases(&told(&after, &nics));
        let draft = self.draft(&after, &nics, edit.has_rules(), Some(&bases)).map_err(refusal)?;
        let mut warnings: Vec<String> = draft.image.warnings();
        if dry_run {
            let mut response = self.policy.change(edit.put.clone(), edit.delete.clone(), true)?;
            let change = effects::Change {
                old: self.security.image().map(|image| &**image),
                new: &draft.image,
                inputs: &after,
                surroundings: &after.surroundings(&nics),
                balancers: &edit.balancers(),
            };
            response.effects = Some(effects::of(&change, &self.datapath, &self.parts.observer.names.get())?);
            response.warnings.append(&mut warnings);
            return Ok(response);
        }
        let undo = edit.undo(self.policy.inputs());
        let rules = edit.has_rules();
        let mut response = self.policy.change(edit.put, edit.delete, false)?;
        if let Err(e) = self.policy.set_origins(edit.origins) {
            warnings.push(format!("{e:#}"));
        }
        self.tell();
        if let Err(e) = self.put_in_force(rules) {
            return Err(self.take_back(undo, &e));
        }
        warnings.extend(self.policy.drop_overrides().err().map(|e| format!("{e:#}")));
        self.follow(false);
        self.parts.observer.timings.applied(start.elapsed());
        response.warnings.append(&mut warnings);
        let named = response.changes.iter().map(|c| format!("{} {}", c.kind, c.name)).collect::<Vec<_>>().join(", ");
        self.parts.observer.events.say(Saying::Policy, "", "applied", named);
        Ok(response)
    }

    /// What would be in force after a change.
    pub(super) fn preview(&mut self, edit: &Edit) -> Result<Preview, Refusal> {
        let inputs = edit.over(self.policy.inputs());
        let nics = inputs.endpoints();
        let bases = self.parts.quarantine.bases(&told(&inputs, &nics));
        let image = self.draft(&inputs, &nics, edit.has_rules(), Some(&bases)).map_err(refusal)?.image;
        let mut writes = None;
        let balancers = edit.balancers();
        if let Some(known) = self.policy.known().filter(|_| !balancers.is_empty()) {
            let surroundings = inputs.surroundings(&nics);
            let stay = self.policy.desired().groups().iter().filter(|g| !balancers.contains(&g.lb)).cloned();
            let changed = balancers.iter().flat_map(|name| inputs.compile(name, &surroundings).1);
            let groups: Vec<_> = stay.chain(changed).collect();
            let plan = crate::lb::plan::plan(&groups, known, &crate::lb::apply::Rows::limits(&self.datapath)?, &[]);
            let plan = plan.map_err(|e| Refusal::invalid(format!("{e}. Nothing was changed")))?;
            writes = Some(Balancing::after(known.live().clone(), &plan.writes));
        }
        Ok(Preview { image, nics, balancing: writes })
    }

    fn take_back(&mut self, mut undo: Edit, why: &anyhow::Error) -> Refusal {
        let stay = undo.without_held(&self.parts.quarantine.holds(), self.policy.inputs());
        let back = self.policy.change(undo.put, undo.delete, false);
        let origins = self.policy.set_origins(undo.origins);
        let bound = undo.bindings.iter().try_for_each(|(endpoint, device)| self.policy.bind(endpoint, device));
        self.policy.refresh();
        self.tell();
        let force = self.put_in_force(true);
        self.follow(false);
        match back.map_err(|e| anyhow::anyhow!("{e}")).map(drop).and(origins).and(bound).and(force) {
            Ok(()) => Refusal::from(anyhow::anyhow!("{why:#}; the change was taken back{stay}")),
            Err(e) => Refusal::from(anyhow::anyhow!("a change failed half-way ({why:#}), and could not be taken back: {e:#}")),
        }
    }

    fn draft(
        &mut self,
        inputs: &Inputs,
        nics: &[Nic],
        rules: bool,
        bases: Option<&HashMap<String, String>>,
    ) -> Result<Draft, PlanError> {
        let Self { security, policy, parts, datapath, .. } = self;
        Drafting { security, policy, parts, datapath }.draft((inputs, nics), rules, bases)
    }

    /// Tells those who have locks of their own what there is.
    pub(super) fn tell(&self) {
        let (inputs, nics) = (self.policy.inputs(), self.policy.endpoints());
        self.parts.quarantine.set_inputs(&told(inputs, nics));
        let known = nics.iter().map(|n| source::Known {
            name: n.name.clone(),
            addresses: n.addresses.clone(),
            mac: (n.mac != [0; 6]).then_some(n.mac),
            labels: n.labels.clone().into_iter().collect(),
        });
        self.parts.directory.replace(known.collect());
        self.parts.sources.configure(&inputs.tag_sources().collect::<Vec<_>>());
    }

    /// Puts in force what should be; tries again later if it cannot.
    pub(super) fn secure(&mut self, rules: bool) {
        if let Err(e) = self.put_in_force(rules || self.security.image().is_none()) {
            self.security.failed(&e);
            log::error!("putting the policies in force: {e:#}");
        }
    }

    fn put_in_force(&mut self, rules: bool) -> Result<()> {
        let Self { security, policy, parts, datapath, .. } = self;
        let (inputs, nics) = (policy.inputs(), policy.endpoints());
        let draft = Drafting { security: &mut *security, policy, parts, datapath }.draft((inputs, nics), rules, None)?;
        security.store_ids(&draft, |change| policy.store().change_rule_ids(change))?;
        let mut numbers = HashMap::new();
        let names = inputs.groups().map(|g| g.metadata.name.as_str()).chain([DEFAULT_GROUP]);
        for name in names {
            numbers.insert(name.to_owned(), parts.quarantine.group_number(name)?);
        }
        let placements = &parts.placements;
        security.run(&*datapath, placements, draft, |set| (quarters(inputs, nics, set), numbers))?;
        let there: std::collections::HashSet<&str> = nics.iter().map(|n| n.name.as_str()).collect();
        placements.retain(|name| there.contains(name));
        self.parts.observer.names.update(|names| self.rename(names));
        Ok(())
    }
}

/// What drafts are made by and from.
struct Drafting<'a> {
    security: &'a mut Security,
    policy: &'a Policy<Arc<Datapath>>,
    parts: &'a Parts,
    datapath: &'a Arc<Datapath>,
}

impl Drafting<'_> {
    /// What rules should be in force, given these inputs, and the endpoints of this host that follow from them. `bases`: the groups that
    /// endpoints would belong to, if the engine was not told of the inputs.
    fn draft(
        self,
        (inputs, nics): (&Inputs, &[Nic]),
        rules: bool,
        bases: Option<&HashMap<String, String>>,
    ) -> Result<Draft, PlanError> {
        let around = Around::new(inputs, self.policy.desired(), self.policy.known());
        let assignments = self.parts.quarantine.assignments();
        let group = |nic: &Nic| -> Arc<str> {
            let assigned = assignments.get(&nic.name);
            let base = match bases {
                Some(bases) => bases.get(&nic.name),
                None => assigned.map(|a| &a.base).filter(|base| !base.is_empty()),
            };
            group_in(inputs, assigned, base.map_or(DEFAULT_GROUP, String::as_str)).into()
        };
        let here = subjects(nics, group);
        timed(&self.parts.observer.timings, || self.security.draft(self.datapath, inputs, here, around, rules))
    }
}

/// The group whose rules an endpoint is to have. Who is held in a group that is gone has those of the group that it belongs to: its row
/// lets nothing through ([`Placements`](super::placements::Placements)), and others' rules can be made.
fn group_in<'a>(inputs: &Inputs, assigned: Option<&'a quarantine::Assignment>, base: &'a str) -> &'a str {
    assigned.filter(|a| a.quarantined && inputs.has_quarantine(&a.group)).map_or(base, |held| held.group.as_str())
}

/// A quarantine group that holds somebody cannot go, though the endpoint may be gone: it can come back. `holds`: groups by endpoint.
fn keep_the_held(holds: &BTreeMap<String, String>, before: &Inputs, after: &Inputs) -> Result<(), Refusal> {
    match holds.iter().find(|(_, group)| before.has_quarantine(group) && !after.has_quarantine(group)) {
        None => Ok(()),
        Some((endpoint, group)) => Err(Refusal::conflict(format!(
            "quarantine group '{group}' holds endpoint '{endpoint}': let it go first (vnet-ctl quarantine release {endpoint}). \
             Nothing was changed"
        ))),
    }
}

/// What the quarantine engine is told of these inputs.
fn told<'a>(inputs: &'a Inputs, nics: &'a [Nic]) -> quarantine::Inputs<'a> {
    quarantine::Inputs {
        groups: inputs.groups().collect(),
        sources: inputs.tag_sources().collect(),
        endpoints: nics.iter().map(|n| (n.name.as_str(), &n.labels)).collect(),
    }
}

/// Gives an endpoint a device, and waits until its state is in force there.
pub fn attach(agent: &Agent, request: &AttachRequest) -> Result<EndpointStatus, Refusal> {
    let device = &request.device;
    if let Some(endpoint) = &request.endpoint {
        agent.ask(|s| {
            if !s.policy.inputs().resources.contains_key(&endpoint_key(endpoint)) {
                return Err(Refusal::not_found(format!("there is no Endpoint resource '{endpoint}': apply one first")));
            }
            s.policy.bind(endpoint, device)?;
            s.tell();
            s.policy.refresh();
            s.put_in_force(false)?;
            s.follow(false);
            Ok(())
        })?;
    }
    let start = Instant::now();
    loop {
        let found = super::views::endpoints(agent)?.into_iter().find(|e| e.device == *device && e.ifindex != 0);
        match found {
            Some(e) if e.state == "attached" => return Ok(e),
            other if start.elapsed() > ATTACHED_WITHIN => {
                return Err(Refusal::conflict(match other {
                    Some(e) => format!("device '{device}' of endpoint '{}' is not attached: {}", e.name, e.state),
                    None => format!(
                        "device '{device}' is no endpoint's, or not there: name its endpoint, apply an Endpoint resource with this device, \
                         or start the agent with --attach for it"
                    ),
                }));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::parse;
    use vnet_common::api::File;

    /// Security groups: those of quarantine, and others.
    fn inputs(quarantines: &[&str], others: &[&str]) -> Inputs {
        let group = |name: &&str, spec: &str| {
            format!("apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n")
        };
        let text = quarantines.iter().map(|name| group(name, "quarantine: {}"));
        let text = text.chain(others.iter().map(|name| group(name, "selector: { matchLabels: { app: web } }"))).collect();
        let located = parse(&[File { name: "t.yaml".into(), text }]).unwrap();
        Inputs { resources: located.into_iter().map(|l| (key(&l.resource), l.resource)).collect(), ..Inputs::default() }
    }

    #[test]
    fn who_is_held_in_a_group_that_is_gone_has_the_rules_of_its_own() {
        let assigned = |group: &str, quarantined| quarantine::Assignment {
            base: "of-the-engine".into(),
            group: group.into(),
            quarantined,
            moves: 1,
        };
        let inputs = inputs(&["isolated"], &["web"]);
        for (assigned, group) in [
            (None, "base"),
            (Some(assigned("of-the-engine", false)), "base"),
            (Some(assigned("isolated", true)), "isolated"),
            (Some(assigned("gone", true)), "base"),
            (Some(assigned("(number 7)", true)), "base"),
            (Some(assigned("web", true)), "base"),
        ] {
            assert_eq!(group_in(&inputs, assigned.as_ref(), "base"), group, "{assigned:?}");
        }
    }

    #[test]
    fn what_is_taken_back_leaves_a_quarantine_group_that_holds_somebody_by_now() {
        let before = inputs(&[], &["web", "odd"]);
        let after = inputs(&["isolated", "empty", "odd"], &[]);
        let put: Vec<Resource> = after.resources.values().cloned().collect();
        let edit = Edit { put, delete: vec![("SecurityGroup".into(), "web".into())], ..Edit::default() };
        let group = |name: &str| ("SecurityGroup".to_owned(), name.to_owned());
        for (holds, said, stay) in [
            (&[][..], "", &[][..]),
            (&[("vm", "web")], "", &[]),
            (&[("vm", "isolated")], ", but for quarantine group 'isolated', which holds endpoint 'vm'", &["isolated"]),
            (
                &[("a", "odd"), ("b", "isolated"), ("c", "odd")],
                ", but for quarantine group 'isolated', which holds endpoint 'b', but for quarantine group 'odd', which holds endpoint 'a'",
                &["isolated", "odd"],
            ),
        ] {
            let holds = holds.iter().map(|(endpoint, group)| ((*endpoint).to_owned(), (*group).to_owned())).collect();
            let mut undo = edit.undo(&before);
            assert_eq!(undo.without_held(&holds, &after), said, "{holds:?}");
            let mut expected = before.resources.clone();
            expected.extend(stay.iter().map(|name| (group(name), after.resources[&group(name)].clone())));
            assert_eq!(undo.over(&after).resources, expected, "{holds:?}");
        }
    }

    #[test]
    fn a_quarantine_group_that_holds_somebody_cannot_go() {
        let holds = |group: &str| BTreeMap::from([("tap5".to_owned(), group.to_owned())]);
        let before = inputs(&["isolated", "other"], &["web"]);
        for (held_in, after, may) in [
            ("isolated", inputs(&["isolated"], &[]), true),
            ("isolated", inputs(&["other"], &["web"]), false),
            ("isolated", inputs(&["other"], &["isolated"]), false),
            ("other", inputs(&["isolated"], &["web"]), false),
            // It was none before: nobody is held any worse than before.
            ("web", inputs(&["isolated", "other"], &[]), true),
            ("(number 7)", inputs(&[], &[]), true),
        ] {
            let result = keep_the_held(&holds(held_in), &before, &after);
            assert_eq!(result.is_ok(), may, "{held_in}");
            if let Err(e) = result {
                let said = format!("'{held_in}' holds endpoint 'tap5': let it go first");
                assert!(e.response.error.contains(&said), "{e:?}");
            }
        }
    }
}

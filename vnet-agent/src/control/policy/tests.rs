//! A change takes effect as a whole, or not at all: in the store and in the maps.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use anyhow::bail;
use vnet_common::fleet::MemberKey;
use vnet_common::lb::state;

use super::*;
use crate::lb::compile::fixtures::{health_check, lb, member};
use crate::lb::live::{Live, Write};
use crate::lb::plan::Limits;
use crate::policy::ids::{IdChange, RuleKey};
use crate::random::Random;
use crate::resource::{Algorithm, Metadata};

/// A store in memory that can be told to fail.
#[derive(Default)]
struct Memory {
    content: Mutex<Content>,
    failing: Mutex<bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    resources: BTreeMap<Key, Resource>,
    overrides: BTreeMap<(String, String), MemberOverride>,
    bindings: BTreeMap<String, String>,
}

impl Memory {
    fn write(&self, f: impl FnOnce(&mut Content)) -> Result<()> {
        if *self.failing.lock().unwrap() {
            bail!("disk full");
        }
        f(&mut self.content.lock().unwrap());
        Ok(())
    }
}

impl Store for Arc<Memory> {
    fn resources(&self) -> Result<Vec<Resource>> {
        Ok(self.content.lock().unwrap().resources.values().cloned().collect())
    }
    fn change(&self, put: &[Resource], delete: &[Key]) -> Result<()> {
        self.write(|c| {
            c.resources.extend(put.iter().map(|r| (key(r), r.clone())));
            c.resources.retain(|k, _| !delete.contains(k));
            c.bindings.retain(|name, _| !delete.contains(&("Endpoint".to_owned(), name.clone())));
        })
    }
    fn overrides(&self) -> Result<Vec<(String, String, MemberOverride)>> {
        let content = self.content.lock().unwrap();
        Ok(content.overrides.iter().map(|((lb, m), o)| (lb.clone(), m.clone(), o.clone())).collect())
    }
    fn set_override(&self, lb: &str, member: &str, value: &MemberOverride) -> Result<()> {
        self.write(|c| {
            c.overrides.insert((lb.into(), member.into()), value.clone());
            c.overrides.retain(|_, o| *o != MemberOverride::default());
        })
    }
    fn endpoint_id(&self, _: &str) -> Result<u32> {
        Ok(1)
    }
    fn endpoint_ids(&self) -> Result<Vec<(String, u32)>> {
        Ok(Vec::new())
    }
    fn origins(&self) -> Result<Vec<(Key, Origin)>> {
        Ok(Vec::new())
    }
    fn set_origins(&self, _: &[(Key, Origin)]) -> Result<()> {
        Ok(())
    }
    fn rule_ids(&self) -> Result<Vec<(RuleKey, u32)>> {
        Ok(Vec::new())
    }
    fn change_rule_ids(&self, _: &IdChange) -> Result<()> {
        Ok(())
    }
    fn bindings(&self) -> Result<Vec<(String, String)>> {
        Ok(self.content.lock().unwrap().bindings.clone().into_iter().collect())
    }
    fn has_joined(&self) -> Result<bool> {
        Ok(false)
    }
    fn set_joined(&self, _: bool) -> Result<()> {
        Ok(())
    }
    fn bind(&self, endpoint: &str, device: &str) -> Result<()> {
        self.write(|c| {
            c.bindings.retain(|_, bound| bound != device);
            c.bindings.insert(endpoint.into(), device.into());
        })
    }
}

impl Policy<Rc<Maps>> {
    fn delete(&mut self, request: DeleteRequest) -> Result<ApplyResponse, Refusal> {
        let keys = self.deletable(request)?;
        self.change(Vec::new(), keys, false)
    }
}

/// Maps in memory of which writes can fail.
#[derive(Default)]
pub(super) struct Maps {
    pub(super) live: RefCell<Live>,
    /// Writes until one fails; the ones after it work again, unless `broken`.
    left: Cell<Option<u32>>,
    broken: Cell<bool>,
    members: Cell<u32>,
    pub(super) blocks: Cell<u32>,
    pub(super) written: Cell<u32>,
    pub(super) generation: Cell<u32>,
}

impl Rows for Rc<Maps> {
    fn limits(&self) -> Result<Limits> {
        Ok(Limits { vips: 100, groups: 100, members: self.members.get(), blocks: self.blocks.get() })
    }
    fn read(&self) -> Result<Live> {
        Ok(self.live.borrow().clone())
    }
    fn write(&self, write: &Write) -> Result<()> {
        match self.left.get() {
            Some(0) => {
                self.left.set(if self.broken.get() { Some(0) } else { None });
                bail!("no memory");
            }
            left => self.left.set(left.map(|n| n - 1)),
        }
        self.live.borrow_mut().record(write);
        self.written.set(self.written.get() + 1);
        Ok(())
    }
    fn bump_generation(&self) -> Result<()> {
        self.generation.set(self.generation.get() + 1);
        Ok(())
    }
    fn wait_for_programs(&self) {}
}

pub(super) struct Rig {
    pub(super) policy: Policy<Rc<Maps>>,
    store: Arc<Memory>,
    pub(super) maps: Rc<Maps>,
}

pub(super) fn rig() -> Rig {
    let (store, maps) = (Arc::new(Memory::default()), Rc::new(Maps::default()));
    maps.members.set(100);
    maps.blocks.set(10_000);
    let mut policy = Policy::load(Box::new(Arc::clone(&store)), Rc::clone(&maps), Inputs::default()).unwrap();
    policy.refresh();
    Rig { policy, store, maps }
}

fn web(members: &[&str]) -> Resource {
    Resource::LoadBalancer(lb("web", &["10.0.0.1"], members.iter().map(|m| member(m)).collect()))
}

impl Rig {
    fn apply(&mut self, r: Resource) -> Result<ApplyResponse, Refusal> {
        self.policy.change(vec![r], vec![], false)
    }

    /// Addresses' last bytes and states in the maps.
    fn members(&self) -> Vec<(u8, u8)> {
        let live = self.maps.live.borrow();
        let mut members: Vec<(u8, u8)> =
            live.members.values().filter(|m| m.state != state::NONE).map(|m| (m.addr[3], m.state)).collect();
        members.sort_unstable();
        members
    }

    fn snapshot(&self) -> (Content, Vec<(u8, u8)>, usize) {
        (self.store.content.lock().unwrap().clone(), self.members(), self.maps.live.borrow().vips.len())
    }
}

fn actions(r: &ApplyResponse) -> Vec<Action> {
    r.changes.iter().map(|c| c.action).collect()
}

#[test]
fn a_change_goes_to_the_store_and_the_maps_and_says_what_it_did() {
    let mut rig = rig();
    let r = rig.apply(web(&["10.9.0.1"])).unwrap();
    assert_eq!(actions(&r), [Action::Created]);
    assert!(r.changes[0].diff.contains("+") && !r.changes[0].diff.contains("\n-"));
    assert_eq!(rig.members(), [(1, state::ACTIVE)]);
    let again = rig.apply(web(&["10.9.0.1"])).unwrap();
    assert_eq!((actions(&again), again.changes[0].diff.as_str()), (vec![Action::Unchanged], ""));
    let r = rig.apply(web(&["10.9.0.1", "10.9.0.2"])).unwrap();
    assert_eq!(actions(&r), [Action::Configured]);
    assert!(r.changes[0].diff.contains("10.9.0.2"), "{}", r.changes[0].diff);
    let r = rig.policy.change(vec![], vec![("LoadBalancer".into(), "web".into())], false).unwrap();
    assert_eq!(actions(&r), [Action::Deleted]);
    assert_eq!(rig.snapshot(), (Content::default(), vec![], 0));
}

#[test]
fn resources_are_deleted_together_or_not_at_all() {
    let mut rig = rig();
    let other = Resource::LoadBalancer(lb("dns", &["10.0.0.2"], vec![member("10.9.0.2")]));
    rig.policy.change(vec![web(&["10.9.0.1"]), other], vec![], false).unwrap();
    let before = rig.snapshot();
    let delete = |names: &[&str], ignore_not_found| DeleteRequest {
        resources: names.iter().map(|n| ("LoadBalancer".to_owned(), n.to_string())).collect(),
        ignore_not_found,
    };
    let e = rig.policy.delete(delete(&["web", "nope", "dns", "no"], false)).unwrap_err().to_string();
    assert_eq!(e, "nothing was deleted: there is no LoadBalancer 'no', no LoadBalancer 'nope'");
    assert_eq!(rig.snapshot(), before);
    rig.maps.left.set(Some(3));
    rig.policy.delete(delete(&["web", "dns"], false)).unwrap_err();
    assert_eq!(rig.snapshot(), before, "what fails half-way is taken back as a whole");
    let r = rig.policy.delete(delete(&["web", "nope", "dns"], true)).unwrap();
    assert_eq!((actions(&r), rig.snapshot()), (vec![Action::Deleted; 2], (Content::default(), vec![], 0)));
}

#[test]
fn what_others_need_is_not_deleted() {
    let mut rig = rig();
    let text =
        "apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: held }\nspec: { quarantine: { redirectTo: [web] } }\n";
    let file = vnet_common::api::File { name: "q.yaml".into(), text: text.into() };
    let group = crate::resource::parse(&[file]).unwrap().remove(0);
    let origin = (key(&group.resource), group.origin());
    rig.policy.change(vec![web(&["10.9.0.1"]), group.resource], vec![], false).unwrap();
    rig.policy.set_origins(vec![origin.clone()]).unwrap();
    let before = rig.snapshot();
    let keys = [("LoadBalancer".to_owned(), "web".to_owned()), origin.0];
    let delete =
        |rig: &mut Rig, keys: &[Key]| rig.policy.delete(DeleteRequest { resources: keys.to_vec(), ignore_not_found: false });
    let e = delete(&mut rig, &keys[..1]).unwrap_err().to_string();
    assert_eq!(
        e,
        "nothing was deleted: SecurityGroup `held` redirects to LoadBalancer `web`. Change or delete that before, or together with it"
    );
    assert_eq!((rig.snapshot(), &rig.policy.inputs().origins[&keys[1]]), (before, &origin.1));
    delete(&mut rig, &keys).unwrap();
    assert_eq!(rig.snapshot(), (Content::default(), vec![], 0));
    assert!(rig.policy.inputs().origins.is_empty());
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut rig = rig();
    let before = rig.snapshot();
    let r = rig.policy.change(vec![web(&["10.9.0.1"])], vec![], true).unwrap();
    assert_eq!((actions(&r), rig.snapshot()), (vec![Action::Created], before));
    assert!(rig.policy.inputs().resources.is_empty());
}

#[test]
fn what_does_not_fit_or_cannot_be_stored_changes_nothing() {
    let mut rig = rig();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    let before = rig.snapshot();
    rig.maps.members.set(2);
    let e = rig.apply(web(&["10.9.0.1", "10.9.0.2", "10.9.0.3"])).unwrap_err().to_string();
    assert!(e.contains("load balancer web") && e.contains("--max-members") && e.ends_with("Nothing was changed"), "{e}");
    *rig.store.failing.lock().unwrap() = true;
    let e = rig.apply(web(&["10.9.0.2"])).unwrap_err().to_string();
    assert_eq!(e, "writing the store; nothing was changed: disk full");
    assert_eq!((rig.snapshot(), rig.policy.trouble()), (before, None));
}

#[test]
fn a_write_that_fails_takes_the_whole_change_back() {
    for writes in 0..20 {
        let mut rig = rig();
        rig.apply(web(&["10.9.0.1", "10.9.0.2"])).unwrap();
        let before = rig.snapshot();
        rig.maps.left.set(Some(writes));
        match rig.apply(web(&["10.9.0.2", "10.9.0.3"])) {
            Ok(_) => assert!(writes > 4, "table, counters, member, group, removal"),
            Err(e) => {
                assert!(e.to_string().ends_with("no memory; the change was taken back"), "{e}");
                assert_eq!((rig.snapshot(), rig.policy.trouble()), (before, None), "after {writes} writes");
            }
        }
    }
}

#[test]
fn what_cannot_be_taken_back_is_an_alarm_until_it_is_healed() {
    let mut rig = rig();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    // The new member is in use by then.
    rig.maps.left.set(Some(6));
    rig.maps.broken.set(true);
    rig.apply(web(&["10.9.0.2"])).unwrap_err();
    assert!(rig.policy.trouble().is_some_and(|t| t.contains("could not be taken back") && t.contains("no memory")));
    rig.policy.refresh();
    assert!(rig.policy.trouble().is_some_and(|t| t.starts_with("the datapath does not follow the resources")));
    rig.maps.left.set(None);
    rig.policy.refresh();
    assert_eq!((rig.members(), rig.policy.trouble()), (vec![(1, state::ACTIVE)], None));
}

#[test]
fn operators_drain_and_weigh_members_and_that_survives_applies_and_restarts() {
    let mut rig = rig();
    rig.apply(web(&["10.9.0.1", "10.9.0.2"])).unwrap();
    let drain = |drained| MemberChange { drained: Some(drained), weight: None };
    rig.policy.change_member("web", "10.9.0.1", &drain(true)).unwrap();
    rig.policy.change_member("web", "10.9.0.2", &MemberChange { drained: None, weight: Some(7) }).unwrap();
    rig.apply(web(&["10.9.0.1", "10.9.0.2", "10.9.0.3"])).unwrap();
    assert_eq!(rig.members(), [(1, state::DRAINING), (2, state::ACTIVE), (3, state::ACTIVE)]);
    let mut again = Policy::load(Box::new(Arc::clone(&rig.store)), Rc::clone(&rig.maps), Inputs::default()).unwrap();
    again.refresh();
    assert_eq!((again.trouble(), again.desired()), (None, rig.policy.desired()));
    assert_eq!(again.desired().groups()[0].members[1].weight, 7);
    rig.policy.change_member("web", "10.9.0.1", &drain(false)).unwrap();
    rig.policy.change_member("web", "10.9.0.2", &MemberChange { drained: None, weight: Some(-1) }).unwrap();
    assert!(rig.store.content.lock().unwrap().overrides.is_empty());
    assert_eq!(rig.policy.desired().groups()[0].members[1].weight, 1);
}

#[test]
fn overrides_name_what_is_there_and_go_with_the_load_balancer() {
    let mut rig = rig();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    let drain = MemberChange { drained: Some(true), weight: None };
    assert!(rig.policy.change_member("nope", "10.9.0.1", &drain).unwrap_err().to_string().contains("no load balancer 'nope'"));
    assert!(rig.policy.change_member("web", "nope", &drain).unwrap_err().to_string().contains("no member 'nope'"));
    rig.policy.change_member("web", "10.9.0.1", &drain).unwrap();
    let delete = |rig: &mut Rig| rig.policy.change(vec![], vec![("LoadBalancer".into(), "web".into())], false).unwrap();
    delete(&mut rig);
    rig.apply(web(&["10.9.0.1"])).unwrap();
    assert_eq!(rig.members(), [(1, state::DRAINING)], "the deletion was taken back");
    rig.policy.drop_overrides().unwrap();
    assert_eq!(rig.store.content.lock().unwrap().overrides.len(), 1, "of what is there");
    delete(&mut rig);
    rig.policy.drop_overrides().unwrap();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    assert_eq!(rig.members(), [(1, state::ACTIVE)]);
    assert!(rig.store.content.lock().unwrap().overrides.is_empty());
}

#[test]
fn a_failed_drain_is_taken_back() {
    let mut rig = rig();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    let before = rig.snapshot();
    rig.maps.left.set(Some(0));
    rig.policy.change_member("web", "10.9.0.1", &MemberChange { drained: Some(true), weight: None }).unwrap_err();
    assert_eq!(rig.snapshot(), before);
}

#[test]
fn selectors_follow_endpoint_resources() {
    let mut rig = rig();
    let mut selecting = lb("web", &["10.0.0.1"], vec![]);
    let labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
    selecting.spec.member_selector = Some(crate::resource::MemberSelector { match_labels: labels.clone(), port: None });
    let endpoint = crate::resource::Endpoint {
        api_version: crate::resource::API_VERSION.into(),
        metadata: Metadata { name: "vm1".into(), labels, resource_version: None },
        spec: crate::resource::EndpointSpec {
            device: "tap1".into(),
            addresses: vec![[10, 9, 0, 5].into()],
            ..Default::default()
        },
    };
    let both = vec![Resource::LoadBalancer(selecting), Resource::Endpoint(endpoint.clone())];
    rig.policy.change(both, vec![], false).unwrap();
    assert_eq!(rig.members(), [(5, state::ACTIVE)]);
    // A device that it was given at run time goes with it.
    rig.policy.bind("vm2", "vnet0").unwrap();
    rig.policy.bind("vm1", "vnet0").unwrap();
    let before = rig.snapshot();
    assert_eq!(
        (&before.0.bindings, rig.policy.endpoints()[0].device.as_str()),
        (&[("vm1".into(), "vnet0".into())].into(), "vnet0")
    );
    let delete = |rig: &mut Rig| rig.policy.change(vec![], vec![("Endpoint".into(), "vm1".into())], false);
    rig.maps.left.set(Some(0));
    delete(&mut rig).unwrap_err();
    assert_eq!((rig.snapshot(), rig.policy.endpoints()[0].device.as_str()), (before, "vnet0"), "what fails is taken back");
    delete(&mut rig).unwrap();
    assert_eq!((rig.members(), rig.snapshot().0.bindings), (vec![], BTreeMap::new()));
    rig.apply(Resource::Endpoint(endpoint)).unwrap();
    assert_eq!(rig.policy.endpoints()[0].device, "tap1");
}

#[test]
fn a_member_that_was_down_is_down_after_a_restart() {
    let mut rig = rig();
    let Resource::LoadBalancer(mut checked) = web(&["10.9.0.1", "10.9.0.2"]) else { unreachable!() };
    checked.spec.health_check = Some(health_check("{ intervalMs: 500, timeoutMs: 100, rise: 1, fall: 2 }"));
    rig.apply(Resource::LoadBalancer(checked)).unwrap();
    let first = rig.policy.desired().groups()[0].members[0].check.clone().unwrap();
    rig.policy.set_health(first.clone(), Health::Down, None);
    rig.policy.refresh();
    let down = [(1, state::DOWN), (2, state::ACTIVE)];
    assert_eq!(rig.members(), down);
    let mut again = Policy::load(Box::new(Arc::clone(&rig.store)), Rc::clone(&rig.maps), Inputs::default()).unwrap();
    again.recall_health().unwrap();
    again.refresh();
    assert_eq!(rig.members(), down);
    assert_eq!(again.inputs().health[&first].0, Health::Down);
}

/// Load balancers share few VIPs, each on ports of its own, and few members.
fn some_lb(r: &mut Random, i: usize, slot: u8) -> Resource {
    let vips: BTreeSet<String> = (0..=r.below(2)).map(|_| format!("10.0.0.{}", slot / 4 * 2 + r.byte(2))).collect();
    let members: BTreeSet<String> = (0..r.below(5)).map(|_| format!("10.9.0.{}", r.byte(12))).collect();
    let mut it = lb(
        &format!("lb{i:02}"),
        &vips.iter().map(String::as_str).collect::<Vec<_>>(),
        members.iter().map(|m| member(m)).collect(),
    );
    if r.one_in(4) {
        it.spec.vips.push("fd00::1".parse().unwrap());
        it.spec.members.push(member(&format!("fd00::{}", 16 + r.below(4))));
    }
    it.spec.ports = vec![80 + u16::from(slot)];
    if r.one_in(3) {
        it.spec.ports.push(1000 + u16::from(slot));
    }
    if r.one_in(3) {
        let match_labels = BTreeMap::from([("app".to_string(), format!("a{}", r.below(3)))]);
        it.spec.member_selector = Some(crate::resource::MemberSelector { match_labels, port: Some(8080) });
    }
    if r.one_in(2) {
        it.spec.health_check = Some(health_check("{ intervalMs: 500, timeoutMs: 100, rise: 1, fall: 2 }"));
    }
    if r.one_in(2) {
        let algorithms = [Algorithm::Maglev, Algorithm::RoundRobin, Algorithm::LeastConnections];
        it.spec.algorithm = algorithms[r.index(3)];
        it.spec.feedback = Some(serde_saphyr::from_str("{ mode: leastLoad }").unwrap());
    }
    if r.one_in(3) {
        it.spec.delivery = crate::resource::Delivery::Redirect;
        it.spec.members.iter_mut().for_each(|m| m.mac = r.one_in(2).then(|| format!("02:00:00:00:00:{:02x}", r.below(4))));
    }
    Resource::LoadBalancer(it)
}

fn some_endpoint(r: &mut Random, i: u8) -> Resource {
    let labels = BTreeMap::from([("app".to_string(), format!("a{}", r.below(3)))]);
    let addresses = if r.one_in(4) { vec![] } else { vec![[10, 9, 0, 2 * i].into(), [10, 9, 0, 2 * i + 1].into()] };
    Resource::Endpoint(crate::resource::Endpoint {
        api_version: crate::resource::API_VERSION.into(),
        metadata: Metadata { name: format!("vm{i}"), labels, resource_version: None },
        spec: crate::resource::EndpointSpec { device: format!("tap{i}"), addresses, ..Default::default() },
    })
}

fn some_world(r: &mut Random) -> World {
    let mut world = World::default();
    let mut add = |name: String, ifindex: u32, master: u32| {
        let is_bridge = name.starts_with("br");
        let device = crate::device::Device { name, ifindex, mac: [2; 6], mtu: 1500, master, is_bridge, peer_elsewhere: false };
        world.devices.insert(ifindex, device);
    };
    add("br0".into(), 2, 0);
    add("br1".into(), 3, 0);
    for i in 0..4 {
        if !r.one_in(4) {
            add(format!("tap{i}"), 10 + i, [2, 2, 3, 0][r.below(4) as usize]);
        }
    }
    for i in 0..6 {
        let mac = [4, 0, 0, 0, 0, r.byte(4)];
        world.neighbours.extend((!r.one_in(3)).then(|| ((2 + u32::from(i) % 2, [10, 9, 0, i].into()), mac)));
    }
    world
}

/// That every plan is that of everything is looked at where it is made, in all tests.
#[test]
fn whatever_changes_the_rest_need_not_be_looked_at() {
    for seed in 1..=8u64 {
        let (mut r, mut rig) = (Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)), rig());
        rig.maps.members.set(90);
        // Whose VIPs and ports a load balancer has: two of them may change places.
        let mut slots: Vec<u8> = (0..36).collect();
        let (mut done, mut refused) = (0, 0);
        for _ in 0..150 {
            let i = r.byte(36);
            let broken = r.one_in(20);
            if broken {
                rig.maps.left.set(Some(r.below(12) as u32));
            }
            let result = match r.below(8) {
                0 => rig.policy.change(vec![some_endpoint(&mut r, i % 4)], vec![], false).map(drop),
                1 => {
                    let gone = [("LoadBalancer".into(), format!("lb{i:02}")), ("Endpoint".into(), format!("vm{}", i % 4))];
                    rig.policy.change(vec![], gone[..=usize::from(r.one_in(4))].to_vec(), false).map(drop)
                }
                2 => {
                    let member = format!("10.9.0.{}", r.below(12));
                    let change = MemberChange { drained: Some(r.one_in(2)), weight: Some(r.below(5) as i32 - 1) };
                    rig.policy.change_member(&format!("lb{i:02}"), &member, &change).or(Ok(()))
                }
                3 => {
                    let all = members(rig.policy.desired().groups()).filter_map(|(_, m)| m.check.clone());
                    let checks: BTreeMap<_, _> = all.map(|c| (c.target, c)).collect();
                    for check in checks.into_values() {
                        let health = [Health::Down, Health::Up, Health::Unknown][r.below(3) as usize];
                        if r.one_in(6) {
                            rig.policy.set_health(check, health, None);
                        }
                    }
                    rig.policy.refresh();
                    Ok(())
                }
                4 if r.one_in(3) => {
                    let all = members(rig.policy.desired().groups()).map(|(g, m)| MemberKey {
                        lb: g.lb.clone(),
                        port: g.port,
                        at: (m.address, m.port).into(),
                    });
                    let all: Vec<MemberKey> = all.filter(|_| r.one_in(2)).collect();
                    let factors = all.iter().map(|key| (key.clone(), r.below(300) as u32)).collect();
                    let elsewhere = all.iter().map(|key| (key.clone(), r.below(3) as u32)).collect();
                    rig.policy.set_feedback(&factors, &elsewhere);
                    Ok(())
                }
                4 if r.one_in(2) => {
                    rig.policy.set_world(some_world(&mut r));
                    rig.policy.refresh();
                    Ok(())
                }
                _ => {
                    let (i, other) = (usize::from(i), usize::from((i + 1) % 36));
                    let (swap, dry_run) = (r.one_in(3), r.one_in(8));
                    if swap {
                        slots.swap(i, other);
                    }
                    let put = [i, other].map(|i| some_lb(&mut r, i, slots[i])).to_vec();
                    let result = rig.policy.change(put, vec![], dry_run);
                    if swap && (dry_run || result.is_err()) {
                        slots.swap(i, other);
                    }
                    result.map(drop)
                }
            };
            done += usize::from(result.is_ok());
            refused += usize::from(result.is_err());
            rig.maps.left.set(None);
            if rig.policy.trouble().is_some() {
                rig.policy.refresh();
            }
            rig.policy.take_checks();
            let mut anew =
                Policy::load(Box::new(Arc::clone(&rig.store)), Rc::clone(&rig.maps), rig.policy.inputs().clone()).unwrap();
            anew.follow();
            assert!(rig.policy.desired() == anew.desired(), "seed {seed}");
            if rig.policy.trouble().is_none() {
                let target = Target { all: anew.desired.groups(), old: &[], new: &[] };
                assert_eq!(anew.applier.plan(&anew.rows, target).unwrap().writes, [], "seed {seed}");
            }
        }
        assert!(done > 75 && refused > 3, "{done} done, {refused} refused");
    }
}

//! A change takes effect as a whole, or not at all: in the store and in the maps.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;

use anyhow::bail;
use vnet_common::lb::state;

use super::*;
use crate::lb::compile::fixtures::{lb, member};
use crate::lb::live::Write;
use crate::lb::plan::Limits;
use crate::resource::Metadata;

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

impl Store for std::sync::Arc<Memory> {
    fn resources(&self) -> Result<Vec<Resource>> {
        Ok(self.content.lock().unwrap().resources.values().cloned().collect())
    }
    fn change(&self, put: &[Resource], delete: &[Key]) -> Result<()> {
        self.write(|c| {
            c.resources.extend(put.iter().map(|r| (key(r), r.clone())));
            c.resources.retain(|k, _| !delete.contains(k));
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
}

/// Maps in memory of which writes can fail.
#[derive(Default)]
struct Maps {
    live: RefCell<Live>,
    /// Writes until one fails; the ones after it work again, unless `broken`.
    left: Cell<Option<u32>>,
    broken: Cell<bool>,
    members: Cell<u32>,
}

impl Rows for Rc<Maps> {
    fn limits(&self) -> Result<Limits> {
        Ok(Limits { vips: 100, groups: 100, members: self.members.get(), blocks: 10_000 })
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
        Ok(())
    }
    fn bump_generation(&self) -> Result<()> {
        Ok(())
    }
    fn wait_for_programs(&self) {}
}

struct Rig {
    policy: Policy<Rc<Maps>>,
    store: std::sync::Arc<Memory>,
    maps: Rc<Maps>,
}

fn rig() -> Rig {
    let (store, maps) = (std::sync::Arc::new(Memory::default()), Rc::new(Maps::default()));
    maps.members.set(100);
    let mut policy = Policy::load(Box::new(std::sync::Arc::clone(&store)), Rc::clone(&maps), Inputs::default()).unwrap();
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
    let mut again = Policy::load(Box::new(std::sync::Arc::clone(&rig.store)), Rc::clone(&rig.maps), Inputs::default()).unwrap();
    again.refresh();
    assert_eq!((again.trouble(), again.desired()), (None, rig.policy.desired()));
    assert_eq!(again.desired().groups[0].members[1].weight, 7);
    rig.policy.change_member("web", "10.9.0.1", &drain(false)).unwrap();
    rig.policy.change_member("web", "10.9.0.2", &MemberChange { drained: None, weight: Some(-1) }).unwrap();
    assert!(rig.store.content.lock().unwrap().overrides.is_empty());
    assert_eq!(rig.policy.desired().groups[0].members[1].weight, 1);
}

#[test]
fn overrides_name_what_is_there_and_go_with_the_load_balancer() {
    let mut rig = rig();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    let drain = MemberChange { drained: Some(true), weight: None };
    assert!(rig.policy.change_member("nope", "10.9.0.1", &drain).unwrap_err().to_string().contains("no load balancer 'nope'"));
    assert!(rig.policy.change_member("web", "nope", &drain).unwrap_err().to_string().contains("no member 'nope'"));
    rig.policy.change_member("web", "10.9.0.1", &drain).unwrap();
    rig.policy.change(vec![], vec![("LoadBalancer".into(), "web".into())], false).unwrap();
    rig.apply(web(&["10.9.0.1"])).unwrap();
    assert_eq!(rig.members(), [(1, state::ACTIVE)]);
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
        metadata: Metadata { name: "vm1".into(), labels },
        spec: crate::resource::EndpointSpec { device: "tap1".into(), mac: None, addresses: vec![[10, 9, 0, 5].into()] },
    };
    let both = vec![Resource::LoadBalancer(selecting), Resource::Endpoint(endpoint)];
    rig.policy.change(both, vec![], false).unwrap();
    assert_eq!(rig.members(), [(5, state::ACTIVE)]);
    rig.policy.change(vec![], vec![("Endpoint".into(), "vm1".into())], false).unwrap();
    assert_eq!(rig.members(), []);
}

#[test]
fn a_member_that_was_down_is_down_after_a_restart() {
    let mut rig = rig();
    let Resource::LoadBalancer(mut checked) = web(&["10.9.0.1", "10.9.0.2"]) else { unreachable!() };
    checked.spec.health_check =
        Some(crate::resource::HealthCheck { port: None, interval_ms: 500, timeout_ms: 100, rise: 1, fall: 2 });
    rig.apply(Resource::LoadBalancer(checked)).unwrap();
    let first = rig.policy.desired().groups[0].members[0].check.unwrap();
    rig.policy.inputs_mut().health.insert(first, (Health::Down, None));
    rig.policy.refresh();
    let down = [(1, state::DOWN), (2, state::ACTIVE)];
    assert_eq!(rig.members(), down);
    let mut again = Policy::load(Box::new(std::sync::Arc::clone(&rig.store)), Rc::clone(&rig.maps), Inputs::default()).unwrap();
    again.recall_health().unwrap();
    again.refresh();
    assert_eq!(rig.members(), down);
    assert_eq!(again.inputs().health[&first].0, Health::Down);
}

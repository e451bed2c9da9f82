//! What becomes of members, by their names; and those whose connections fail.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use vnet_common::lb::state;

use super::{Agent, State};
use crate::datapath::Datapath;
use crate::lb::compile::{Desired, Group, Member, members};
use crate::lb::eject::{Change, Counted, Ejected, Ejector, Seen, Settings};
use crate::lb::health::Check;
use crate::lb::status::MemberRows;
use crate::observe::Saying;

/// Load balancer and member.
type Names = BTreeSet<(String, String)>;

/// The members that ask for each of these checks.
pub fn checked<'a>(desired: &Desired, checks: impl Iterator<Item = &'a Check>) -> HashMap<&'a Check, Names> {
    let mut names: HashMap<&Check, Names> = checks.map(|check| (check, Names::new())).collect();
    let balancers: BTreeSet<&String> = names.keys().flat_map(|check| desired.checked_by(check)).collect();
    for (group, member) in balancers.into_iter().flat_map(|lb| members(desired.of(lb))) {
        if let Some(names) = member.check.as_ref().and_then(|check| names.get_mut(check)) {
            names.insert((group.lb.clone(), member.name.clone()));
        }
    }
    names
}

/// The target of a check, as people know it.
pub fn described(check: &Check, names: Option<&Names>) -> String {
    let Some((lb, member)) = names.and_then(BTreeSet::first) else { return check.whom() };
    let others = match names.map_or(0, BTreeSet::len) {
        0 | 1 => String::new(),
        number => format!(" (and {} more)", number - 1),
    };
    let at = if *member == check.whom() { String::new() } else { format!(" ({})", check.whom()) };
    format!("member {member} of {lb}{others}{at}")
}

/// A load balancer's group: the port that clients connect to, and whether it is for IPv4.
type GroupKey = (String, u16, bool);

/// What is watched of a group.
struct Watched {
    group: GroupKey,
    settings: Settings,
    members: Vec<Watch>,
}

/// A member, and its row.
struct Watch {
    at: SocketAddr,
    row: u32,
    serves: bool,
}

/// What was seen of a group's members.
type Seens = (GroupKey, Settings, Vec<(SocketAddr, Seen)>);

/// Who watches the members of which group.
#[derive(Debug, Default)]
pub struct Passive(HashMap<GroupKey, Ejector<SocketAddr>>);

impl Agent {
    /// Looks at what becomes of the members' connections, where somebody asks for it.
    pub fn watch_members(&self) {
        let Ok((watched, datapath)) = self.ask(|s| Ok((s.watched(), Arc::clone(&s.datapath)))) else { return };
        // Counters are read without the lock.
        match watched.iter().map(|group| group.look(&datapath)).collect::<Result<Vec<_>>>() {
            Ok(seen) => self.event(|s| s.judge_members(&seen)),
            Err(e) => log::error!("looking at what becomes of the members' connections: {e:#}"),
        }
    }
}

impl Watched {
    fn look(&self, datapath: &Datapath) -> Result<Seens> {
        let seen = |member: &Watch| -> Result<(SocketAddr, Seen)> {
            let (c, a) = (datapath.maps().member_counters(member.row)?, datapath.maps().member_answers(member.row)?);
            // What clients reset is not the member's fault.
            let established = c.established + a.given_up;
            let counted = Counted { new: c.new_flows, established, resets: a.resets, unreachable: a.unreachable };
            Ok((member.at, Seen { counted, serves: member.serves }))
        };
        Ok((self.group.clone(), self.settings, self.members.iter().map(seen).collect::<Result<_>>()?))
    }
}

impl State {
    fn watched(&self) -> Vec<Watched> {
        let Some(known) = self.policy.known() else { return Vec::new() };
        let mut watched = Vec::new();
        for lb in self.policy.inputs().load_balancers() {
            let Some(passive) = &lb.spec.passive_health else { continue };
            let groups = self.policy.desired().of(&lb.metadata.name);
            let rows = MemberRows::new(known, groups);
            watched.extend(groups.iter().map(|g| Watched { group: key(g), settings: passive.into(), members: watch(g, &rows) }));
        }
        watched
    }

    fn judge_members(&mut self, seen: &[Seens]) {
        let watched: HashSet<&GroupKey> = seen.iter().map(|(group, ..)| group).collect();
        self.passive.0.retain(|group, _| watched.contains(group));
        let before = &self.policy.inputs().ejected;
        let mut now: Ejected = before.keys().map(|lb| (lb.clone(), HashMap::new())).collect();
        for (group, settings, seen) in seen {
            let (lb, port, _) = group;
            let ejector = self.passive.0.entry(group.clone()).or_insert_with(|| Ejector::new(*settings));
            ejector.set(*settings);
            let changes = ejector.look(Instant::now(), seen);
            let mut reasons = HashMap::new();
            for change in changes {
                let (reason, at, what) = match change {
                    Change::Out { member, time, why } => {
                        let why = format!("ejected for {}: {why}", shown(time));
                        reasons.insert(member, why.clone());
                        ("ejected", member, format!("is {why}"))
                    }
                    Change::Back { member } => ("returned", member, "takes connections again after it was ejected".to_owned()),
                };
                let name = members(self.policy.desired().of(lb)).find(|(_, m)| SocketAddr::new(m.address, m.port) == at);
                let what = format!("member {} of {lb} ({at}) {what}", name.map_or("", |(_, m)| &m.name));
                log::log!(if reason == "ejected" { log::Level::Warn } else { log::Level::Info }, "{what}");
                self.parts.observer.events.say(Saying::Health, "", reason, what);
            }
            for at in ejector.out() {
                let known = || before.get(lb).and_then(|out| out.get(&(*port, *at))).cloned();
                let why = reasons.remove(at).or_else(known).unwrap_or_default();
                now.entry(lb.clone()).or_default().insert((*port, *at), why);
            }
        }
        for (lb, out) in now {
            if self.policy.inputs().ejected.get(&lb) != Some(&out) {
                self.policy.set_ejected(&lb, out);
            }
        }
        self.policy.refresh();
    }
}

fn key(group: &Group) -> GroupKey {
    (group.lb.clone(), group.port, group.vips.iter().all(IpAddr::is_ipv4))
}

fn watch(group: &Group, rows: &MemberRows) -> Vec<Watch> {
    let watch = |m: &Member| {
        let (row, _) = rows.find(group, m)?;
        Some(Watch { at: SocketAddr::new(m.address, m.port), row, serves: m.state == state::ACTIVE })
    };
    group.members.iter().filter_map(watch).collect()
}

fn shown(time: Duration) -> String {
    match time.as_millis() % 1000 {
        0 => format!("{} s", time.as_secs()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::compile::fixtures::{Input, compile, health_check, lb, member};

    #[test]
    fn targets_are_called_by_their_members() {
        let check = |yaml: &str, names: &[&str]| {
            let mut lbs: Vec<_> = names.iter().map(|name| lb(name, &["10.0.0.1"], vec![member("10.9.0.1")])).collect();
            lbs.iter_mut().for_each(|lb| {
                lb.spec.health_check = Some(health_check(yaml));
                lb.spec.members[0].name = Some("m1".into());
            });
            let desired = compile(&Input { load_balancers: lbs, ..Input::default() });
            let check = desired.groups()[0].members[0].check.clone().unwrap();
            described(&check, checked(&desired, [&check].into_iter()).get(&check))
        };
        assert_eq!(check("{}", &["web"]), "member m1 of web (10.9.0.1:80)");
        assert_eq!(check("{ icmp: {} }", &["a", "b", "c"]), "member m1 of a (and 2 more) (10.9.0.1)");
        let desired = compile(&Input { load_balancers: vec![lb("a", &["10.0.0.1"], vec![])], ..Input::default() });
        let mut gone = lb("x", &["10.0.0.1"], vec![member("10.9.0.1")]);
        gone.spec.health_check = Some(health_check("{}"));
        let gone = compile(&Input { load_balancers: vec![gone], ..Input::default() });
        let check = gone.groups()[0].members[0].check.clone().unwrap();
        assert_eq!(described(&check, checked(&desired, [&check].into_iter()).get(&check)), "10.9.0.1:80");
        assert_eq!([1500, 30_000].map(|ms| shown(Duration::from_millis(ms))), ["1.5 s", "30 s"]);
    }
}

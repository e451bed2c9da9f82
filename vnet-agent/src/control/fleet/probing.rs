//! Health checks that hosts share: which of them are made here, and what the others say of the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use vnet_common::fleet::{ALIVE_SECONDS, HealthReport, Key};

use super::super::{State, members};
use super::{Sharing, now};
use crate::fleet::Hold;
use crate::fleet::probing::{Around, Duty, name};
use crate::lb::health::{Check, Health};
use crate::observe::Saying;

impl Sharing {
    /// Is it known who is alive? Once the store has been silent for longer than a host stays alive without it, it is not.
    pub(super) fn is_current(&self) -> bool {
        self.is_read() && self.fleet.link().silent() <= Duration::from_secs(ALIVE_SECONDS as u64)
    }

    /// The hosts that may ask members: those that are alive, as long as that is known.
    fn asking(&self) -> Vec<&str> {
        let own = self.fleet.host();
        if !self.is_current() {
            return vec![own];
        }
        let may = |host: &&str| self.view.registered.get(*host).is_some_and(|r| !r.drained);
        self.view.alive.keys().map(String::as_str).filter(|host| *host != own && may(host)).chain([own]).collect()
    }
}

impl State {
    /// Makes the checks that are this host's, believes others about the rest, and says what it has found out.
    pub(in super::super) fn share_checks(&mut self) {
        let Self { sharing: Some(sharing), policy, checker, runtime, .. } = self else { return };
        let mut probing = std::mem::take(&mut sharing.probing);
        let desired = policy.desired();
        probing.retain(|check| desired.has_check(check));
        let hosts = sharing.asking();
        let around = Around { own: sharing.fleet.host(), hosts: &hosts, reports: &sharing.view.health };
        for check in desired.checks().filter(|check| checker.has(check)) {
            if policy.inputs().health.get(check).is_some_and(|(health, _)| *health == Health::Down) {
                probing.found_down(check, now());
            }
        }
        let duties: Vec<(Check, Duty)> =
            desired.checks().map(|check| (check.clone(), probing.duty(check, &around, now()))).collect();
        let mut news: Vec<(Check, Health, Option<String>)> = Vec::new();
        for (check, duty) in duties {
            let known = policy.inputs().health.get(&check).cloned().unwrap_or_default();
            match duty {
                Duty::Ask => {
                    let _runtime = runtime.enter();
                    checker.start(check, known.0);
                }
                Duty::Believe(health, why) => {
                    checker.stop(&check);
                    // Who has heard nothing yet knows what it knew.
                    if health != Health::Unknown && health != known.0 {
                        news.push((check, health, why));
                    }
                }
            }
        }
        sharing.probing = probing;
        self.say_health();
        self.believe(news);
    }

    fn believe(&mut self, news: Vec<(Check, Health, Option<String>)>) {
        if news.is_empty() {
            return;
        }
        let names = members::checked(self.policy.desired(), news.iter().map(|(check, ..)| check));
        for (check, _, why) in &news {
            let who = members::described(check, names.get(check));
            let (reason, what) = match why {
                Some(why) => ("down", format!("{who} is down: {why}")),
                None => ("up", format!("{who} is up, as other hosts say")),
            };
            self.parts.observer.events.say(Saying::Health, "", reason, what);
        }
        for (check, health, why) in news {
            self.policy.set_health(check, health, why);
        }
        self.refresh();
    }

    fn say_health(&self) {
        let Some(sharing) = self.sharing.as_ref() else { return };
        let mut checks: BTreeMap<String, Result<(), String>> = BTreeMap::new();
        for (check, (health, why)) in self.policy.inputs().health.iter().filter(|(check, _)| self.checker.has(check)) {
            let said = match health {
                Health::Up => Ok(()),
                Health::Down => Err(why.clone().unwrap_or_default()),
                Health::Unknown => continue,
            };
            checks.insert(name(check), said);
        }
        let report = (!checks.is_empty()).then_some(HealthReport { checks });
        let said = sharing.fleet.say(&Key::Health(sharing.fleet.host().to_owned()), report.as_ref(), Hold::Alive);
        said.unwrap_or_else(|e| log::error!("{e:#}"));
    }
}

//! Load feedback at work: every window this host reports, the elected one answers, and all follow.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::block_in_place;
use tokio::time::{MissedTickBehavior, interval};
use vnet_common::fleet::{Global, Key, LoadReport, MemberKey};

use super::super::{Agent, State};
use crate::fleet::load::{Aggregator, Received, Reporter, WINDOW};
use crate::fleet::{Fleet, Hold};
use crate::lb::compile::members;
use crate::resource::Protocol;

/// New connections to a member within a window of which none was accepted, from which on it is asked from here.
const FAILED: u64 = 3;

/// A host without flows reports in one of so many windows: whoever waits for the end of a member's flows has to know that there are none.
const QUIET: u32 = 5;

/// What goes on from window to window.
struct Windows {
    /// Windows without flows.
    quiet: u32,
    reporter: Reporter,
    received: Received,
    /// While this host is the elected one.
    aggregator: Option<Aggregator>,
}

/// Reports, answers and follows, for ever. A host without others is the elected one of itself.
pub async fn feed_back(agent: Arc<Agent>) {
    let fleet = agent.fleet();
    let own = fleet.as_ref().map_or("", |fleet| fleet.host()).to_owned();
    let mut windows = Windows { quiet: 0, reporter: Reporter::default(), received: Received::new(&own), aggregator: None };
    let mut ticks = interval(WINDOW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let reports = match fleet.as_deref().filter(|_| block_in_place(|| agent.is_elected(&own))) {
            Some(fleet) => reports(fleet, &own).await,
            None => Vec::new(),
        };
        if block_in_place(|| windows.pass(&agent, fleet.as_deref(), &own, reports)).is_none() {
            return;
        }
    }
}

/// What the others report.
async fn reports(fleet: &Fleet, own: &str) -> Vec<(String, LoadReport)> {
    let entries = match fleet.loads().await {
        Ok(entries) => entries,
        Err(e) => {
            log::debug!("reading what hosts report of their load: {e:#}");
            return Vec::new();
        }
    };
    let read = |(key, entry): (&String, &vnet_common::etcd::Entry)| {
        let Some(Key::Load(host)) = Key::parse(key) else { return None };
        Some((host, serde_json::from_slice(&entry.value).ok()?))
    };
    let counts = |(host, report): &(String, LoadReport)| host != own && !report.members.is_empty();
    entries.iter().filter_map(read).filter(counts).collect()
}

impl Windows {
    /// One window; `None`: everything was detached.
    fn pass(&mut self, agent: &Agent, fleet: Option<&Fleet>, own: &str, reports: Vec<(String, LoadReport)>) -> Option<()> {
        agent.datapath()?;
        let now = Instant::now();
        // To count costs something, and alone nobody else wants to know.
        if fleet.is_none() && agent.feedback_groups().is_empty() {
            (self.reporter, self.aggregator) = (Reporter::default(), None);
            return Some(());
        }
        let report = match agent.member_loads() {
            Ok(counted) => self.reporter.look(now, counted),
            Err(e) => {
                log::debug!("{e:#}");
                None
            }
        };
        if let Some(report) = &report {
            agent.suspect(report);
            self.received.reported(report.clone());
            let is_due = !report.members.is_empty() || self.quiet.is_multiple_of(QUIET);
            self.quiet = if report.members.is_empty() { self.quiet + 1 } else { 0 };
            if let Some(fleet) = fleet.filter(|_| is_due) {
                fleet.report(report).unwrap_or_else(|e| log::error!("{e:#}"));
            }
        }
        if fleet.is_none() || agent.is_elected(own) {
            let answer = self.answer(agent, own, report, reports, now);
            if let Some(fleet) = fleet {
                let said = fleet.say(&Key::Global(own.to_owned()), answer.as_ref(), Hold::Alive);
                said.unwrap_or_else(|e| log::error!("{e:#}"));
            }
            if let Some(answer) = answer {
                self.received.take(own, answer, now);
            }
        } else {
            self.aggregator = None;
            if let Some(fleet) = fleet {
                let said = fleet.say::<Global>(&Key::Global(own.to_owned()), None, Hold::Alive);
                said.unwrap_or_else(|e| log::error!("{e:#}"));
            }
            if let Some((from, answer)) = agent.answer_of_the_elected() {
                self.received.take(&from, answer, now);
            }
        }
        agent.set_feedback(&self.received.factors(now), &self.received.elsewhere(now));
        Some(())
    }

    fn answer(
        &mut self,
        agent: &Agent,
        own: &str,
        report: Option<LoadReport>,
        reports: Vec<(String, LoadReport)>,
        now: Instant,
    ) -> Option<Global> {
        if self.received.is_empty()
            && let Some((last, heard)) = agent.last_answer()
        {
            self.received.take(own, last, heard);
        }
        let received = &self.received;
        let aggregator = self.aggregator.get_or_insert_with(|| Aggregator::new(received.newest(now).as_ref()));
        for (host, report) in report.map(|report| (own.to_owned(), report)).into_iter().chain(reports) {
            aggregator.hear(&host, report, now);
        }
        let alive = agent.alive();
        // Nothing to do, nothing to say.
        let answer = aggregator.step(|host| host == own || alive.contains(host), &agent.feedback_groups(), now);
        answer.filter(|answer| !answer.members.is_empty() || !answer.factors.is_empty())
    }
}

impl Agent {
    fn fleet(&self) -> Option<Arc<Fleet>> {
        self.ask(|s| Ok(s.sharing.as_ref().map(|sharing| Arc::clone(&sharing.fleet)))).ok().flatten()
    }

    /// Nobody is elected for long without the store: what one host knows is not what all have to do.
    fn is_elected(&self, own: &str) -> bool {
        let is_elected = |s: &mut State| {
            let sharing = s.sharing.as_ref();
            sharing.is_some_and(|sharing| sharing.is_current() && sharing.view.elected() == Some(own))
        };
        self.ask(|s| Ok(is_elected(s))).unwrap_or(false)
    }

    fn alive(&self) -> HashSet<String> {
        let alive = |s: &mut State| s.sharing.as_ref().map(|sharing| sharing.view.alive.keys().cloned().collect());
        self.ask(|s| Ok(alive(s))).ok().flatten().unwrap_or_default()
    }

    fn answer_of_the_elected(&self) -> Option<(String, Global)> {
        let answer = |s: &mut State| {
            let view = &s.sharing.as_ref()?.view;
            let host = view.elected()?;
            Some((host.to_owned(), view.globals.get(host)?.clone()))
        };
        self.ask(|s| Ok(answer(s))).ok().flatten()
    }

    /// What this host said before its agent was started, and when that was heard of.
    fn last_answer(&self) -> Option<(Global, Instant)> {
        self.ask(|s| Ok(s.sharing.as_ref().and_then(|sharing| sharing.answer.clone()))).ok().flatten()
    }

    /// Members that accepted none of this host's connections are asked from here, whoever else says that they are well.
    fn suspect(&self, report: &LoadReport) {
        let failing: HashSet<&MemberKey> =
            report.members.iter().filter(|(_, load)| load.new >= FAILED && load.connected == 0).map(|(key, _)| key).collect();
        if failing.is_empty() {
            return;
        }
        self.event(|s| {
            let Some(sharing) = s.sharing.as_mut() else { return };
            for (group, member) in members(s.policy.desired().groups()).filter(|(g, _)| g.protocol == Protocol::Tcp) {
                let at = std::net::SocketAddr::new(member.address, member.port);
                let key = MemberKey { lb: group.lb.clone(), port: group.port, at };
                if let Some(check) = member.check.as_ref().filter(|_| failing.contains(&key)) {
                    sharing.probing.suspect(check, super::now());
                }
            }
            s.share_checks();
        });
    }
}

//! What a host makes of the fleet's load.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use vnet_common::fleet::{Global, LoadReport, MemberKey};

use super::STALE;

/// An answer holds whole for as long.
const HOLDS: Duration = STALE;
/// And fades away within this.
const FADES: Duration = Duration::from_secs(30);
/// A weight that is multiplied by more, in percent, or by less, was never asked for: whoever says so is mistaken.
const SANE: RangeInclusive<u32> = 1..=10_000;
/// Own reports that are remembered: the answer to one comes within a window or two.
const REPORTS: usize = 8;
/// How much of what the hosts do about a difference they do at once, all together. Each sees the same difference, and what the others do
/// about it only later: if each made up for all of it, the next difference would be larger.
const TOGETHER: f64 = 0.5;

/// The newest answer of the elected host.
#[derive(Debug)]
pub struct Received {
    host: String,
    /// The serial of the newest answer of each host that was ever elected.
    serials: HashMap<String, u64>,
    newest: Option<(Global, Instant)>,
    /// What this host reported, the newest last.
    reported: VecDeque<LoadReport>,
    /// Flows of other hosts, as this host goes by them.
    elsewhere: HashMap<MemberKey, f64>,
}

impl Received {
    /// Of nothing, at this host.
    #[must_use]
    pub fn new(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            serials: HashMap::new(),
            newest: None,
            reported: VecDeque::new(),
            elsewhere: HashMap::new(),
        }
    }

    /// This host reported this.
    pub fn reported(&mut self, report: LoadReport) {
        if self.reported.len() == REPORTS {
            self.reported.pop_front();
        }
        self.reported.push_back(report);
    }

    /// The elected host `from` handed this out. One that was seen before says nothing new.
    pub fn take(&mut self, from: &str, mut global: Global, now: Instant) {
        if self.serials.insert(from.to_owned(), global.serial) == Some(global.serial) {
            return;
        }
        global.factors.iter_mut().for_each(|(_, percent)| *percent = (*percent).clamp(*SANE.start(), *SANE.end()));
        self.follow(&global);
        self.newest = Some((global, now));
    }

    /// Was there no answer yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.newest.is_none()
    }

    /// The newest answer, for an elected host to go on from: with the factors that hosts go by now.
    #[must_use]
    pub fn newest(&self, now: Instant) -> Option<Global> {
        let (global, _) = self.newest.as_ref()?;
        Some(Global { factors: self.factors(now).into_iter().collect(), ..global.clone() })
    }

    /// By what members' weights are multiplied, in percent. Those that are not here are as configured.
    #[must_use]
    pub fn factors(&self, now: Instant) -> HashMap<MemberKey, u32> {
        let Some((global, part)) = self.fading(now) else { return HashMap::new() };
        let factor = |percent: u32| (100.0 + (f64::from(percent) - 100.0) * part).round() as u32;
        global.factors.iter().map(|(key, percent)| (key.clone(), factor(*percent))).collect()
    }

    /// How many flows members have from other hosts' clients. Those that are not here have none.
    #[must_use]
    pub fn elsewhere(&self, now: Instant) -> HashMap<MemberKey, u32> {
        let Some((_, part)) = self.fading(now) else { return HashMap::new() };
        let flows = self.elsewhere.iter().map(|(key, flows)| (key.clone(), (flows * part).round() as u32));
        flows.filter(|(_, flows)| *flows > 0).collect()
    }

    /// The newest answer, and how much of it still holds.
    fn fading(&self, now: Instant) -> Option<(&Global, f64)> {
        let (global, came) = self.newest.as_ref()?;
        let past = now.saturating_duration_since(*came).saturating_sub(HOLDS);
        (past < FADES).then(|| (global, 1.0 - past.as_secs_f64() / FADES.as_secs_f64()))
    }

    /// Goes a part of the way to what the answer says of other hosts' flows.
    fn follow(&mut self, global: &Global) {
        let at = global.hosts.iter().position(|host| *host == self.host);
        let serial = at.and_then(|at| global.serials.get(at));
        let own = self.reported.iter().rev().find(|report| Some(&report.serial) == serial);
        let mut flows: HashMap<&MemberKey, f64> = global.members.iter().map(|(key, load)| (key, load.active as f64)).collect();
        for (key, load) in own.map_or(&[][..], |own| &own.members) {
            flows.entry(key).and_modify(|flows| *flows = (*flows - load.active as f64).max(0.0));
        }
        let step = TOGETHER / global.hosts.len().max(1) as f64;
        self.elsewhere.values_mut().for_each(|known| *known *= 1.0 - step);
        for (key, flows) in flows {
            *self.elsewhere.entry(key.clone()).or_default() += flows * step;
        }
        self.elsewhere.retain(|_, flows| *flows > 0.01);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use vnet_common::fleet::MemberLoad;

    use super::*;

    fn key(member: u8) -> MemberKey {
        MemberKey { lb: "web".into(), port: 80, at: SocketAddr::from(([10, 9, 0, member], 80)) }
    }

    fn loads(active: &[u64]) -> Vec<(MemberKey, MemberLoad)> {
        active.iter().zip(0..).map(|(n, m)| (key(m), MemberLoad { active: *n, ..MemberLoad::default() })).collect()
    }

    /// An answer to `h1` and `h2`, whose report has this serial.
    fn answer(serial: u64, of_h2: u64, active: &[u64], percent: u32) -> Global {
        let hosts = vec!["h1".to_owned(), "h2".to_owned()];
        Global {
            serial,
            hosts,
            serials: vec![5, of_h2],
            members: loads(active),
            factors: vec![(key(0), percent)],
            window_ms: 2000,
        }
    }

    #[test]
    fn an_answer_holds_and_fades() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut r = Received::new("h2");
        assert!(r.factors(start).is_empty() && r.elsewhere(start).is_empty() && r.is_empty());
        r.take("h1", answer(1, 9, &[400], 300), start);
        let percent = |r: &Received, seconds| r.factors(at(seconds)).get(&key(0)).copied();
        assert_eq!([0, 6, 21, 35, 36, 99].map(|s| percent(&r, s)), [Some(300), Some(300), Some(200), Some(107), None, None]);
        let flows = |r: &Received, seconds| r.elsewhere(at(seconds)).get(&key(0)).copied();
        assert_eq!([0, 6, 21, 36].map(|s| flows(&r, s)), [Some(100), Some(100), Some(50), None]);
        // The same again says nothing new; the next does.
        r.take("h1", answer(1, 9, &[400], 300), at(20));
        assert_eq!(percent(&r, 21), Some(200));
        r.take("h1", answer(2, 9, &[400], 50), at(21));
        assert_eq!((percent(&r, 21), r.newest(at(21)).map(|g| g.serial)), (Some(50), Some(2)));
        // Another host is elected, which counts anew; what the first one left behind is not new when it is again.
        r.take("h3", answer(1, 9, &[400], 70), at(22));
        assert_eq!(percent(&r, 22), Some(70));
        r.take("h1", answer(2, 9, &[400], 50), at(23));
        assert_eq!(percent(&r, 23), Some(70));
    }

    #[test]
    fn who_is_elected_goes_on_from_what_is_left_of_the_answer() {
        let start = Instant::now();
        let mut r = Received::new("h2");
        r.take("h1", answer(7, 9, &[400], 300), start);
        let from = |seconds| r.newest(start + Duration::from_secs(seconds)).map(|g| (g.serial, g.factors));
        assert_eq!(from(0), Some((7, vec![(key(0), 300)])));
        assert_eq!(from(21), Some((7, vec![(key(0), 200)])));
        assert_eq!(from(600), Some((7, vec![])));
    }

    #[test]
    fn factors_that_nobody_asked_for_are_not_taken() {
        let now = Instant::now();
        let mut r = Received::new("h2");
        for (serial, said, taken) in [(1, 0, 1), (2, u32::MAX, 10_000), (3, 250, 250)] {
            r.take("h1", answer(serial, 9, &[], said), now);
            assert_eq!(r.factors(now)[&key(0)], taken);
        }
    }

    #[test]
    fn others_flows_are_all_but_those_that_were_reported() {
        let now = Instant::now();
        let mut r = Received::new("h2");
        for (serial, own) in [(1, [30, 0]), (2, [40, 10])] {
            r.reported(LoadReport { serial, window_ms: 2000, members: loads(&own) });
        }
        // The answer is to the first report, whatever came since.
        (1..60).for_each(|n| r.take("h1", answer(n, 1, &[100, 20, 0], 100), now));
        assert_eq!(r.elsewhere(now), HashMap::from([(key(0), 70), (key(1), 20)]));
        (60..120).for_each(|n| r.take("h1", answer(n, 2, &[100, 20], 100), now));
        assert_eq!(r.elsewhere(now), HashMap::from([(key(0), 60), (key(1), 10)]));
        // Its report was not in it; and what is gone goes.
        (120..180).for_each(|n| r.take("h1", answer(n, 99, &[100], 100), now));
        assert_eq!(r.elsewhere(now), HashMap::from([(key(0), 100)]));
    }
}

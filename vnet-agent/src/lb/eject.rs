//! Passive health: members whose connections fail are out for a while.
//!
//! It follows from what the datapath counts of each member, looked at now and then. A connection fails that is reset, that is answered by an
//! ICMP error, or that is not answered within three seconds. Within [`Settings::window`] it takes [`Settings::failures`] of them, and that
//! these are [`Settings::failed_percent`] of the new ones. Then the member is out for [`Settings::base`]; for twice as long each further
//! time, up to [`Settings::max`]. When it has stayed in for as long as it was out, the next time is half as long again.
//!
//! Nobody is ejected when more than [`Settings::max_out_percent`] of all members would then be out of service: what fails everywhere is not
//! a member's fault, and a group is never emptied.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::resource::PassiveHealth;

/// A connection that is not answered for so long has failed: three SYNs are (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(3);
/// Samples of each member that are kept, about.
const SAMPLES: u32 = 16;

/// A member of a load balancer: the port that clients connect to, and where it serves.
pub type Place = (u16, SocketAddr);

/// Members that are out, by load balancer, and why.
pub type Ejected = HashMap<String, HashMap<Place, String>>;

/// When a member is out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections that must have failed within the window.
    pub failures: u64,
    /// The share of the new ones that this must be.
    pub failed_percent: u64,
    /// The window.
    pub window: Duration,
    /// For how long a member is out for the first time.
    pub base: Duration,
    /// And at most.
    pub max: Duration,
    /// The share of the members that may be out of service.
    pub max_out_percent: usize,
}

impl From<&PassiveHealth> for Settings {
    fn from(of: &PassiveHealth) -> Self {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        Self {
            failures: of.failures.into(),
            failed_percent: of.failed_percent.into(),
            window: ms(of.window_ms),
            base: ms(of.base_eject_ms),
            max: ms(of.max_eject_ms),
            max_out_percent: of.max_ejected_percent.into(),
        }
    }
}

impl Settings {
    /// How long a member is out that was ejected so often.
    fn time(&self, times: u32) -> Duration {
        2_u32.checked_pow(times).and_then(|factor| self.base.checked_mul(factor)).map_or(self.max, |time| time.min(self.max))
    }
}

/// What was counted of a member so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Connections, or flows, given to it.
    pub new: u64,
    /// Of those, answered ones.
    pub established: u64,
    /// Resets.
    pub resets: u64,
    /// ICMP errors about packets to it.
    pub unreachable: u64,
}

impl Counted {
    /// What came since; `None` if this does not go on from there.
    fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            new: self.new.checked_sub(before.new)?,
            established: self.established.checked_sub(before.established)?,
            resets: self.resets.checked_sub(before.resets)?,
            unreachable: self.unreachable.checked_sub(before.unreachable)?,
        })
    }
}

/// A member as it is seen at one time.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// What was counted.
    pub counted: Counted,
    /// Does it take new flows? The answer for one that is out does not matter.
    pub serves: bool,
}

/// What failed within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Failed {
    /// Resets.
    pub resets: u64,
    /// ICMP errors.
    pub unreachable: u64,
    /// Connections that were not answered, those that were refused included. At least so many.
    pub unanswered: u64,
    /// New connections.
    pub new: u64,
}

impl Failed {
    /// Refused ones are among the resets as well as among those that were not answered.
    pub fn total(&self) -> u64 {
        self.unanswered.max(self.resets + self.unreachable)
    }

    /// Connections of before the window may fail in it.
    fn of(&self) -> u64 {
        self.new.max(self.total())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} connections failed", self.total(), self.of())?;
        let kinds = [(self.resets, "reset"), (self.unreachable, "unreachable"), (self.unanswered, "not answered")];
        let mut before = " (";
        for (number, what) in kinds.into_iter().filter(|(number, _)| *number > 0) {
            write!(f, "{before}{number} {what}")?;
            before = ", ";
        }
        f.write_str(")")
    }
}

/// What becomes of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K> {
    /// It is out.
    Out {
        /// Which.
        member: K,
        /// For how long.
        time: Duration,
        /// Why.
        why: Failed,
    },
    /// It takes connections again.
    Back {
        /// Which.
        member: K,
    },
}

/// Watches the members of one group.
#[derive(Debug)]
pub struct Ejector<K> {
    settings: Settings,
    members: HashMap<K, Track>,
}

#[derive(Debug, Default)]
struct Track {
    samples: VecDeque<(Instant, Counted)>,
    /// How often it was ejected of late.
    times: u32,
    /// Until when it is out.
    until: Option<Instant>,
    /// Since when it has been in after that, or is to be less often than it was.
    calm_since: Option<Instant>,
}

impl<K: Clone + Eq + Hash> Ejector<K> {
    /// One that has seen nobody.
    pub fn new(settings: Settings) -> Self {
        Self { settings, members: HashMap::new() }
    }

    /// Goes by other settings from now on. Who is out stays so for as long as was said.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Who is out.
    pub fn out(&self) -> impl Iterator<Item = &K> {
        self.members.iter().filter(|(_, track)| track.until.is_some()).map(|(member, _)| member)
    }

    /// Looks at all members there are; others are forgotten. Call it about once a second.
    pub fn look(&mut self, now: Instant, members: &[(K, Seen)]) -> Vec<Change<K>> {
        let there: HashSet<&K> = members.iter().map(|(member, _)| member).collect();
        self.members.retain(|member, _| there.contains(member));
        let (mut changes, mut failing) = (Vec::new(), Vec::new());
        let mut out = 0;
        for (member, seen) in members {
            let track = self.members.entry(member.clone()).or_default();
            if track.until.is_some_and(|until| until <= now) {
                *track = Track { times: track.times, calm_since: Some(now), ..Track::default() };
                changes.push(Change::Back { member: member.clone() });
            }
            track.decay(now, &self.settings);
            let failed = track.sample(now, seen.counted, &self.settings);
            let returned = matches!(changes.last(), Some(Change::Back { member: last }) if last == member);
            if track.until.is_some() || !(seen.serves || returned) {
                out += 1;
            } else if failed.total() >= self.settings.failures
                && failed.total() * 100 >= failed.of() * self.settings.failed_percent
            {
                failing.push((failed, member));
            }
        }
        // The worst first: there may be no room for all.
        failing.sort_by_key(|(failed, _)| std::cmp::Reverse(failed.total()));
        for (why, member) in failing {
            if (out + 1) * 100 > members.len() * self.settings.max_out_percent {
                break;
            }
            let Some(track) = self.members.get_mut(member) else { continue };
            let time = self.settings.time(track.times);
            *track = Track { times: track.times.saturating_add(1), until: Some(now + time), ..Track::default() };
            out += 1;
            changes.push(Change::Out { member: member.clone(), time, why });
        }
        changes
    }
}

impl Track {
    fn decay(&mut self, now: Instant, settings: &Settings) {
        while self.times > 0
            && let Some(since) = self.calm_since
            && now.saturating_duration_since(since) >= settings.time(self.times - 1)
        {
            self.calm_since = Some(since + settings.time(self.times - 1));
            self.times -= 1;
        }
    }

    /// Notes what is counted now, and says what failed within the window.
    fn sample(&mut self, now: Instant, counted: Counted, settings: &Settings) -> Failed {
        if self.samples.back().is_some_and(|(_, last)| counted.since(last).is_none()) {
            // Another member's row.
            self.samples.clear();
        }
        let failed = self.failed(now, &counted, settings.window);
        let kept = settings.window + PATIENCE;
        if self.samples.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= kept / SAMPLES) {
            self.samples.push_back((now, counted));
        }
        // One of before is what the window starts with.
        while self.samples.get(1).is_some_and(|(second, _)| now.saturating_duration_since(*second) >= kept) {
            self.samples.pop_front();
        }
        failed
    }

    fn failed(&self, now: Instant, counted: &Counted, window: Duration) -> Failed {
        let (Some(before), Some(early), Some(late)) =
            (self.ago(now, window), self.ago(now, window + PATIENCE), self.ago(now, PATIENCE))
        else {
            return Failed::default();
        };
        let since = |before: &Counted| counted.since(before).unwrap_or_default();
        let within = since(before);
        // What was new until then and is answered by now; later ones that are answered make it fewer than there are.
        let unanswered = late.since(early).unwrap_or_default().new.saturating_sub(since(early).established);
        Failed { resets: within.resets, unreachable: within.unreachable, unanswered, new: within.new }
    }

    /// The newest sample that is so old, else the oldest.
    fn ago(&self, now: Instant, time: Duration) -> Option<&Counted> {
        let old = self.samples.iter().rev().find(|(at, _)| now.saturating_duration_since(*at) >= time);
        old.or(self.samples.front()).map(|(_, counted)| counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        failures: 5,
        failed_percent: 50,
        window: Duration::from_secs(10),
        base: Duration::from_secs(30),
        max: Duration::from_secs(100),
        max_out_percent: 50,
    };

    /// Members by their place, and a clock of seconds.
    struct Scene {
        ejector: Ejector<usize>,
        now: Instant,
        second: u64,
        members: Vec<Seen>,
    }

    /// New, established, resets, unreachable.
    type Second = (u64, u64, u64, u64);
    const WELL: Second = (10, 10, 0, 0);
    const RESET: Second = (3, 3, 3, 0);

    impl Scene {
        fn new(members: usize) -> Self {
            let seen = Seen { counted: Counted { new: 1000, ..Counted::default() }, serves: true };
            let mut scene =
                Self { ejector: Ejector::new(SETTINGS), now: Instant::now(), second: 0, members: vec![seen; members] };
            assert_eq!(scene.look(), []);
            scene
        }

        fn look(&mut self) -> Vec<Change<usize>> {
            let seen: Vec<_> = self.members.iter().copied().enumerate().collect();
            self.ejector.look(self.now + Duration::from_secs(self.second), &seen)
        }

        /// A second in which so much happens to the first members, and nothing to the others; nobody who is out gets anything.
        fn pass(&mut self, what: &[Second]) -> Vec<Change<usize>> {
            self.second += 1;
            let out: HashSet<usize> = self.ejector.out().copied().collect();
            for (i, (new, established, resets, unreachable)) in what.iter().enumerate().filter(|(i, _)| !out.contains(i)) {
                let c = &mut self.members[i].counted;
                let was = *c;
                *c = Counted {
                    new: was.new + new,
                    established: was.established + established,
                    resets: was.resets + resets,
                    unreachable: was.unreachable + unreachable,
                };
            }
            self.look()
        }

        /// How many seconds pass until something changes, and what.
        fn until(&mut self, what: &[Second]) -> (u64, Vec<Change<usize>>) {
            let start = self.second;
            for _ in 0..1000 {
                let changes = self.pass(what);
                if !changes.is_empty() {
                    return (self.second - start, changes);
                }
            }
            (0, Vec::new())
        }
    }

    fn out(changes: &[Change<usize>]) -> Vec<(usize, u64)> {
        let out = |change: &Change<usize>| match change {
            Change::Out { member, time, .. } => (*member, time.as_secs()),
            Change::Back { member } => (*member, 0),
        };
        changes.iter().map(out).collect()
    }

    #[test]
    fn who_is_well_stays() {
        let mut scene = Scene::new(3);
        assert_eq!(scene.until(&[WELL, WELL, (0, 0, 0, 0)]), (0, vec![]));
    }

    #[test]
    fn what_counts_as_failing() {
        for (name, second, seconds) in [
            ("resets", (3, 3, 3, 0), 2),
            ("resets of old connections", (0, 0, 3, 0), 2),
            ("half of them", (10, 10, 5, 0), 1),
            ("less than half of them", (10, 10, 4, 0), 0),
            ("refused", (3, 0, 3, 0), 2),
            ("unreachable", (1, 0, 0, 1), 5),
            ("not answered", (2, 0, 0, 0), 6),
            ("half of them not answered", (20, 10, 0, 0), 0),
            ("too few within the window", (0, 0, 0, 0), 0),
        ] {
            let mut scene = Scene::new(2);
            let (took, changes) = scene.until(&[second]);
            assert_eq!(took, seconds, "{name}: {changes:?}");
            assert_eq!(out(&changes), if seconds == 0 { vec![] } else { vec![(0, 30)] }, "{name}");
        }
        // Four now and four later are not five.
        let mut scene = Scene::new(2);
        for _ in 0..10 {
            assert_eq!(scene.pass(&[(4, 4, 4, 0)]), []);
            for _ in 0..12 {
                assert_eq!(scene.pass(&[]), []);
            }
        }
    }

    #[test]
    fn a_slow_answer_is_one() {
        let mut scene = Scene::new(2);
        // Answered two seconds later each: at any time 20 are not.
        for _ in 0..2 {
            assert_eq!(scene.pass(&[(10, 0, 0, 0)]), []);
        }
        assert_eq!(scene.until(&[(10, 10, 0, 0)]), (0, vec![]));
    }

    #[test]
    fn each_time_is_twice_as_long_until_all_is_well() {
        let mut scene = Scene::new(2);
        let (_, changes) = scene.until(&[RESET]);
        let Change::Out { why, .. } = &changes[0] else { panic!("{changes:?}") };
        assert_eq!(why.to_string(), "6 of 6 connections failed (6 reset)");
        for (back_after, next) in [(30, 60), (60, 100), (100, 100)] {
            assert_eq!(scene.until(&[RESET]), (back_after, vec![Change::Back { member: 0 }]));
            let (took, changes) = scene.until(&[RESET]);
            assert_eq!((took, out(&changes)), (2, vec![(0, next)]), "a fresh window");
        }
        assert_eq!(scene.until(&[WELL]).0, 100);
        // Ejected four times: 100, 100 and 60 s later three of them are forgotten, 30 s after that all.
        for (calm, next) in [(0, 100), (100, 100), (200, 100), (265, 60), (295, 30)] {
            let mut other = Scene::new(2);
            for _ in 0..4 {
                assert_eq!(other.until(&[RESET]).1.len(), 1);
                assert_eq!(other.until(&[RESET]).1, [Change::Back { member: 0 }]);
            }
            for _ in 0..calm {
                assert_eq!(other.pass(&[WELL]), []);
            }
            let broken = (100, 100, 100, 0);
            assert_eq!(out(&other.until(&[broken]).1), [(0, next)], "after {calm} s");
        }
    }

    #[test]
    fn a_group_is_not_emptied() {
        // Of four, two; the worst.
        let mut scene = Scene::new(4);
        let (_, changes) = scene.until(&[(9, 9, 6, 0), (9, 9, 8, 0), (9, 9, 7, 0), (9, 9, 5, 0)]);
        assert_eq!(out(&changes), [(1, 30), (2, 30)]);
        let mut alone = Scene::new(1);
        assert_eq!(alone.until(&[RESET]), (0, vec![]));
        // One is down already.
        let mut scene = Scene::new(3);
        scene.members[2].serves = false;
        assert_eq!(scene.until(&[RESET]), (0, vec![]));
        scene.members[2].serves = true;
        assert_eq!(out(&scene.pass(&[RESET])), [(0, 30)]);
        // Who gets no flows is not ejected.
        let mut scene = Scene::new(4);
        scene.members[0].serves = false;
        assert_eq!(scene.until(&[RESET]), (0, vec![]));
    }

    #[test]
    fn members_come_and_go() {
        let (idle, mut scene) = ((0, 0, 0, 0), Scene::new(2));
        assert_eq!(out(&scene.until(&[idle, RESET]).1), [(1, 30)]);
        let last = scene.members.pop().unwrap();
        assert_eq!(scene.pass(&[]), []);
        assert_eq!(scene.ejector.out().count(), 0);
        // Back, with a row that another had: nothing failed as far as is known.
        scene.members.push(Seen { counted: Counted { new: 5, established: 5, resets: 5, unreachable: 0 }, ..last });
        assert_eq!(scene.pass(&[]), []);
        scene.members[1].counted = Counted::default();
        assert_eq!(scene.pass(&[idle, (4, 4, 4, 0)]), []);
    }
}

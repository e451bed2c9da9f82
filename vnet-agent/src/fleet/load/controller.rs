//! By what the members of one group have their weights multiplied.
//!
//! *Least load.* From the flows that began and ended follows how long a member keeps one; from that, and from those that are open, which
//! parts of the new flows would bring all members to the same number of open flows for their weight after [`HORIZON`]. Where flows are
//! short these parts say only how fast the members are; where they are long, they fill up who has few. Weights go there step by step. It
//! is no sum of past deviations: nothing winds up while it cannot be helped, and an answer that comes late makes nothing swing.
//!
//! *Latency target.* Who takes longer to answer gets less, the more the longer; who is well below the target gets more again, slowly.
//! Between the two nothing moves.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use crate::resource::{Feedback, FeedbackMode};

/// When all members are to have the same, in seconds from now. Weights that aim at less swing, those that aim at more are late.
const HORIZON: f64 = 10.0;
/// Groups with fewer open flows for each member keep their weights: what one flow more or less makes is noise.
const FEWEST: f64 = 2.0;
/// How much of the way back to the configured weights goes a group in each window that has so few.
const BACK: f64 = 0.1;
/// A flow is not taken to stay for longer, in seconds.
const LONGEST: f64 = 3600.0;
/// Nor for less.
const SHORTEST: f64 = 0.001;
/// A member that refuses more than one in so many flows is not taken to be free because it has none open.
const REFUSES: f64 = 10.0;
/// The mean of fewer connections says nothing of a member's latency.
const ANSWERS: f64 = 5.0;
/// Below this part of the target a member may get more again.
const WELL: f64 = 0.8;
/// How much more slowly it does than it got less.
const RECOVERY: f64 = 0.25;

/// What is aimed at, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The aim.
    pub aim: Aim,
    /// How much of the way is gone in each step: to 1.
    pub gain: f64,
    /// How much of earlier windows still counts: below 1.
    pub damping: f64,
    /// Nobody's weight is multiplied by less.
    pub min: f64,
    /// Nor by more.
    pub max: f64,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// As many open flows for every unit of weight.
    LeastLoad,
    /// Connections that are answered within so many µs, in the mean.
    Latency(f64),
}

impl Settings {
    /// Of a resource; `None` if it does not want its weights adjusted.
    #[must_use]
    pub fn of(feedback: &Feedback) -> Option<Self> {
        let part = |percent: u16| f64::from(percent) / 100.0;
        let aim = match feedback.mode {
            FeedbackMode::Off => return None,
            FeedbackMode::LeastLoad => Aim::LeastLoad,
            FeedbackMode::LatencyTarget => Aim::Latency(f64::from(feedback.target_milliseconds?) * 1000.0),
        };
        let (gain, damping) = (part(feedback.gain_percent.into()), part(feedback.damping_percent.into()));
        Some(Self { aim, gain, damping, min: part(feedback.min_percent), max: part(feedback.max_percent) })
    }
}

/// What a member had to do within a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Flows that are open.
    pub open: f64,
    /// Flows that began, each second.
    pub rate: f64,
    /// Flows that began.
    pub new: f64,
    /// Flows that ended.
    pub ended: f64,
    /// Seconds that flows were open, all of them together.
    pub flow_seconds: f64,
    /// Flows that it refused.
    pub refused: f64,
    /// Connections that it accepted.
    pub connected: f64,
    /// How long that took, all of them together, in µs.
    pub connect_us: f64,
}

impl Load {
    /// Adds another host's, or window's.
    pub fn add(&mut self, other: &Self) {
        self.open += other.open;
        self.rate += other.rate;
        self.new += other.new;
        self.ended += other.ended;
        self.flow_seconds += other.flow_seconds;
        self.refused += other.refused;
        self.connected += other.connected;
        self.connect_us += other.connect_us;
    }

    fn scaled(&self, by: f64) -> Self {
        Self {
            open: self.open * by,
            rate: self.rate * by,
            new: self.new * by,
            ended: self.ended * by,
            flow_seconds: self.flow_seconds * by,
            refused: self.refused * by,
            connected: self.connected * by,
            connect_us: self.connect_us * by,
        }
    }
}

/// What is known of a member.
#[derive(Clone, Copy, Debug)]
struct Track {
    factor: f64,
    /// The last window and, ever less, those before it.
    past: Load,
    /// How many windows that is.
    windows: f64,
}

/// Adjusts the weights of a group.
#[derive(Debug, Default)]
pub struct Controller {
    members: HashMap<SocketAddr, Track>,
}

impl Controller {
    /// One that goes on from these factors.
    pub fn new(factors: impl Iterator<Item = (SocketAddr, f64)>) -> Self {
        Self { members: factors.map(|(at, factor)| (at, Track { factor, ..Track::NEW })).collect() }
    }

    /// Takes a step. `members` are those that take new flows, with their weights, not 0, and what they had to do; others are forgotten.
    pub fn step(&mut self, settings: &Settings, members: &[(SocketAddr, u16, Load)]) {
        let there: HashSet<SocketAddr> = members.iter().map(|(at, ..)| *at).collect();
        self.members.retain(|at, _| there.contains(at));
        for (at, _, load) in members {
            let track = self.members.entry(*at).or_insert(Track::NEW);
            if !track.is_sound() {
                *track = Track::NEW;
            }
            let mut past = track.past.scaled(settings.damping);
            past.add(load);
            (track.past, track.windows) = (past, track.windows * settings.damping + 1.0);
        }
        match settings.aim {
            Aim::LeastLoad => self.level(settings, members),
            Aim::Latency(target_us) => self.quicken(settings, target_us),
        }
        // What cannot be reckoned with would stay for ever.
        self.members.values_mut().filter(|track| !track.is_sound()).for_each(|track| *track = Track::NEW);
    }

    /// By what a member's weight is multiplied.
    pub fn factor(&self, at: SocketAddr) -> f64 {
        self.members.get(&at).map_or(1.0, |track| track.factor)
    }

    fn level(&mut self, settings: &Settings, members: &[(SocketAddr, u16, Load)]) {
        let all: Vec<Member> = members
            .iter()
            .filter_map(|(at, weight, load)| {
                let track = *self.members.get(at)?;
                Some(Member { at: *at, weight: f64::from(*weight), open: load.open, track })
            })
            .collect();
        let open: f64 = all.iter().map(|m| m.open).sum();
        let Some(usual) = Usual::of(&all).filter(|_| open >= FEWEST * all.len() as f64) else {
            self.members.values_mut().for_each(|track| track.factor += (1.0 - track.factor) * BACK);
            return;
        };
        let stocks: Vec<Stock> = all.iter().map(|m| m.stock(&usual)).collect();
        let rate: f64 = all.iter().map(|m| m.track.past.rate / m.track.windows).sum();
        // Without new flows it does not matter where they go.
        let parts = level(&stocks, rate.max(open / LONGEST));
        let (all_parts, weights) = (parts.iter().sum::<f64>(), all.iter().map(|m| m.weight).sum::<f64>());
        let step = |(m, part): (&Member, &f64)| {
            let wanted = (part / all_parts * weights / m.weight).clamp(settings.min, settings.max);
            m.track.factor * (wanted / m.track.factor).powf(settings.gain)
        };
        let factors: Vec<f64> = all.iter().zip(&parts).map(step).collect();
        let mean = factors.iter().zip(&all).map(|(factor, m)| factor * m.weight).sum::<f64>() / weights;
        for (m, factor) in all.iter().zip(factors) {
            if let Some(track) = self.members.get_mut(&m.at) {
                track.factor = (factor / mean).clamp(settings.min, settings.max);
            }
        }
    }

    fn quicken(&mut self, settings: &Settings, target_us: f64) {
        for track in self.members.values_mut() {
            let past = track.past;
            let latency = if past.connected >= ANSWERS { past.connect_us / past.connected } else { 0.0 };
            if latency > target_us {
                track.factor *= (target_us / latency).powf(settings.gain);
            } else if latency < target_us * WELL {
                track.factor += (1.0 - track.factor) * settings.gain * RECOVERY;
            }
        }
        // Where all are slow, the quickest are given what they were.
        let most = self.members.values().map(|track| track.factor).fold(0.0, f64::max);
        for track in self.members.values_mut() {
            track.factor = (track.factor / most).clamp(settings.min, 1.0);
        }
    }
}

/// A member of the group that is levelled.
struct Member {
    at: SocketAddr,
    weight: f64,
    open: f64,
    track: Track,
}

impl Member {
    fn stock(&self, usual: &Usual) -> Stock {
        let (open, stay) = (self.open, self.track.stay(usual.stay));
        // Who refuses has nothing open, and ends all at once: that is no reason to give it more.
        let refuses = self.track.refuses();
        let (open, stay) = if refuses { (open.max(usual.open * self.weight), stay.max(usual.stay)) } else { (open, stay) };
        Stock { weight: self.weight, open, stay }
    }
}

/// How members are that accept what they get.
struct Usual {
    /// Open flows, for their weight.
    open: f64,
    /// How long they stay, in seconds.
    stay: f64,
}

impl Usual {
    fn of(all: &[Member]) -> Option<Self> {
        let sum = |of: &dyn Fn(&Member) -> f64| all.iter().filter(|m| !m.track.refuses()).map(of).sum::<f64>();
        let (weights, ended) = (sum(&|m| m.weight), sum(&|m| m.track.past.ended));
        let stay = if ended > 0.0 { sum(&|m| m.track.past.flow_seconds) / ended } else { LONGEST };
        (weights > 0.0).then(|| Self { open: sum(&|m| m.open) / weights, stay: stay.clamp(SHORTEST, LONGEST) })
    }
}

impl Track {
    /// Of one of which nothing is known.
    const NEW: Self = Self {
        factor: 1.0,
        past: Load {
            open: 0.0,
            rate: 0.0,
            new: 0.0,
            ended: 0.0,
            flow_seconds: 0.0,
            refused: 0.0,
            connected: 0.0,
            connect_us: 0.0,
        },
        windows: 0.0,
    };

    fn is_sound(&self) -> bool {
        self.factor.is_finite() && self.factor > 0.0
    }

    /// How long it keeps a flow, in seconds. One ended flow of the usual kind counts with its own: of who has few, little is known.
    fn stay(&self, usual: f64) -> f64 {
        ((self.past.flow_seconds + usual) / (self.past.ended + 1.0)).clamp(SHORTEST, LONGEST)
    }

    fn refuses(&self) -> bool {
        self.past.refused * REFUSES > self.past.new
    }
}

/// A member's open flows.
struct Stock {
    weight: f64,
    open: f64,
    /// How long they stay, in seconds.
    stay: f64,
}

/// How many of `rate` new flows a second each gets, so that all come to the same number for their weight after [`HORIZON`]; none for
/// those that have more than that anyway.
fn level(members: &[Stock], rate: f64) -> Vec<f64> {
    // What is left of what is open now, and what comes to be open for each new flow a second.
    let left = |m: &Stock| m.open * (-HORIZON / m.stay).exp();
    let grows = |m: &Stock| m.stay * (1.0 - (-HORIZON / m.stay).exp());
    let at = |level: f64| members.iter().map(move |m| ((m.weight * level - left(m)) / grows(m)).max(0.0));
    let most = |of: &dyn Fn(&Stock) -> f64| members.iter().map(|m| of(m) / m.weight).fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, most(&left) + rate * most(&grows));
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if at(middle).sum::<f64>() > rate { high = middle } else { low = middle }
    }
    at(high).collect()
}

#[cfg(test)]
mod tests;

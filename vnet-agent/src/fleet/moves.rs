//! Endpoints that come from other hosts, and go there: when one waits for its flows, from whom it takes them, and when its flows are told.
//!
//! An endpoint *comes* when its device appears while another host has it, or had it a moment ago. From then on it takes flows from those
//! hosts, and waits until the first come. It *goes* when another host claims it after this one: its flows are told, those that it opens
//! meanwhile too, and all of them once more when its device is gone. Nothing here reads, writes or asks for the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::claims::At;
use super::view::View;

/// How long an endpoint that came waits for its flows.
pub const PATIENCE: Duration = Duration::from_millis(1000);
/// How long it is known that an endpoint was here, or elsewhere.
pub const REMEMBERED: Duration = Duration::from_secs(60);
/// Between two looks for flows that an endpoint opened while it goes.
pub const AGAIN: Duration = Duration::from_secs(1);
/// And for how long: two hosts that have one endpoint after that do not move it.
pub const LIVE: Duration = Duration::from_secs(600);

/// All endpoints with a resource that are here, or left this host or another of late.
#[derive(Debug, Default)]
pub struct Moves(BTreeMap<String, Move>);

/// One of them.
#[derive(Debug, Default)]
struct Move {
    /// Its device, if it is or was here.
    device: Option<Device>,
    /// Living hosts that claim it, and those that did of late, since when they do not.
    others: BTreeMap<String, Option<Instant>>,
    /// It came.
    coming: Option<Coming>,
    /// Its flows were told.
    told: Option<Told>,
}

#[derive(Debug)]
struct Device {
    name: String,
    gone: Option<Instant>,
    /// The revision since which this host claims it, once that is known.
    claimed: Option<i64>,
}

#[derive(Debug)]
struct Coming {
    since: Instant,
    /// The hosts that had it.
    from: BTreeSet<String>,
    /// It lets nothing through.
    waits: bool,
}

#[derive(Debug)]
struct Told {
    to: String,
    /// Its device was here: for the first time, and for the last.
    here: Option<(Instant, Instant)>,
}

/// Flows to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// The endpoint.
    pub name: String,
    /// Its device.
    pub device: String,
    /// All of its flows; else those that were not told.
    pub all: bool,
}

impl Moves {
    /// Where endpoints are by now. `here` are those of this host with their devices; `own` is its name; the claims in `changed` did. Gives
    /// those that came from elsewhere.
    pub fn look(
        &mut self,
        here: &BTreeMap<String, String>,
        view: &View,
        own: &str,
        changed: &BTreeSet<At>,
        now: Instant,
    ) -> Vec<String> {
        self.0.retain(|_, each| each.is_remembered(now));
        // Of the many that are elsewhere, and stay there, there is nothing to know.
        for (name, host) in changed.iter().filter(|(_, host)| host != own) {
            if !claims(view, name, own).any(|(there, _)| there == host) {
                self.0.entry(name.clone()).or_default().others.entry(host.clone()).or_insert(Some(now));
            }
        }
        for (name, each) in &mut self.0 {
            each.others_are(&claims(view, name, own).map(|(host, _)| host).collect(), now);
        }
        let mut came = Vec::new();
        for (name, device) in here {
            if self.0.entry(name.clone()).or_default().is_here(name, device, view, own, now) {
                came.push(name.clone());
            }
        }
        for (_, each) in self.0.iter_mut().filter(|(name, _)| !here.contains_key(*name)) {
            if let Some(device) = &mut each.device {
                device.gone.get_or_insert(now);
            }
        }
        came
    }

    /// Flows that are to be told now, which is taken as done.
    pub fn take_telling(&mut self, view: &View, own: &str, now: Instant) -> Vec<Telling> {
        let each = self.0.iter_mut().filter_map(|(name, each)| {
            let device = each.device.as_ref()?.name.clone();
            Some(Telling { name: name.clone(), device, all: each.tell(claims(view, name, own), now)? })
        });
        each.collect()
    }

    /// Is any endpoint on its way to another host, so that [`Moves::take_telling`] has to be asked again after [`AGAIN`]?
    #[must_use]
    pub fn is_telling(&self, now: Instant) -> bool {
        self.0.values().any(|each| each.goes(now))
    }

    /// Is this one?
    #[must_use]
    pub fn goes(&self, name: &str, now: Instant) -> bool {
        self.0.get(name).is_some_and(|each| each.goes(now))
    }

    /// Does an endpoint take flows from this host?
    #[must_use]
    pub fn takes(&self, name: &str, host: &str) -> bool {
        let Some(each) = self.0.get(name) else { return false };
        let from = |coming: &Coming| coming.from.contains(host) && each.others.contains_key(host);
        each.device.as_ref().is_some_and(|device| device.gone.is_none()) && each.coming.as_ref().is_some_and(from)
    }

    /// Its flows came: it waits no more. Did it?
    pub fn end_waiting(&mut self, name: &str) -> bool {
        let coming = self.0.get_mut(name).and_then(|each| each.coming.as_mut());
        coming.is_some_and(|coming| std::mem::take(&mut coming.waits))
    }

    /// Those that have waited for long enough; they wait no more.
    pub fn over(&mut self, now: Instant) -> Vec<String> {
        let over = |(name, each): (&String, &mut Move)| {
            let coming = each.coming.as_mut().filter(|c| c.waits && c.since + PATIENCE <= now)?;
            coming.waits = false;
            Some(name.clone())
        };
        self.0.iter_mut().filter_map(over).collect()
    }

    /// When the first of those that wait have done so for long enough.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.0.values().filter_map(|each| each.coming.as_ref().filter(|c| c.waits));
        waiting.map(|coming| coming.since + PATIENCE).min()
    }
}

/// The living hosts but `own` that have an endpoint with a resource, and since when they claim it.
fn claims<'a>(view: &'a View, name: &str, own: &str) -> impl Iterator<Item = (&'a str, i64)> {
    let all = view.endpoints.of(name).into_iter().flatten();
    let has = move |host: &str| host != own && view.alive.contains_key(host);
    let there = all.filter(move |(host, (_, state))| has(host) && !state.discovered && !state.gone);
    there.map(|(host, (since, _))| (host.as_str(), *since))
}

impl Move {
    fn others_are(&mut self, hosts: &BTreeSet<&str>, now: Instant) {
        for (host, left) in &mut self.others {
            match hosts.contains(host.as_str()) {
                true => *left = None,
                false => drop(left.get_or_insert(now)),
            }
        }
        for host in hosts {
            self.others.entry((*host).to_owned()).or_default();
        }
    }

    /// Its device is here. Does it come from another host?
    fn is_here(&mut self, name: &str, device: &str, view: &View, own: &str, now: Instant) -> bool {
        let claim = view.endpoints.of(name).and_then(|claims| claims.get(own)).filter(|(_, state)| !state.gone);
        let claimed = claim.map(|(since, _)| *since);
        match &mut self.device {
            Some(known) if known.gone.is_none() => {
                device.clone_into(&mut known.name);
                known.claimed = claimed.or(known.claimed);
                return false;
            }
            known => *known = Some(Device { name: device.to_owned(), gone: None, claimed }),
        }
        self.told = None;
        self.others_are(&claims(view, name, own).map(|(host, _)| host).collect(), now);
        // Which of two that have it is the one that it comes to, a restart of the agent does not change.
        let is_older = |since: i64| claimed.is_none_or(|own| own > since);
        let there = claims(view, name, own).any(|(_, since)| is_older(since));
        let comes = there || claimed.is_none() && self.others.values().any(Option::is_some);
        self.coming = comes.then(|| Coming { since: now, from: self.others.keys().cloned().collect(), waits: true });
        comes
    }

    /// What is to be told now: all flows, or (`false`) those that were not told.
    fn tell<'a>(&mut self, claims: impl Iterator<Item = (&'a str, i64)>, now: Instant) -> Option<bool> {
        let device = self.device.as_ref()?;
        let Some((host, since)) = claims.max_by_key(|(_, since)| *since) else {
            self.told = None;
            return None;
        };
        // Of two that have it the one that claimed it first tells, once it has all that comes to it.
        let waits = self.coming.as_ref().is_some_and(|coming| coming.waits);
        if waits || device.claimed.is_none_or(|claimed| claimed > since) {
            return None;
        }
        let is_here = device.gone.is_none();
        let known = self.told.as_ref().filter(|told| told.to == host && told.here.is_some() == is_here);
        let first = match known.map(|told| told.here) {
            None => now,
            Some(Some((first, last))) if now < first + LIVE && now >= last + AGAIN => first,
            Some(_) => return None,
        };
        let all = known.is_none();
        self.told = Some(Told { to: host.to_owned(), here: is_here.then_some((first, now)) });
        Some(all)
    }

    fn goes(&self, now: Instant) -> bool {
        self.told.as_ref().and_then(|told| told.here).is_some_and(|(first, _)| now < first + LIVE)
    }

    /// Forgets what is over. Is there anything left?
    fn is_remembered(&mut self, now: Instant) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= REMEMBERED;
        self.others.retain(|_, left| left.is_none_or(|since| !is_over(since)));
        self.device.take_if(|device| device.gone.is_some_and(is_over));
        let others = &self.others;
        let is_done = |c: &Coming| !c.waits && is_over(c.since) && !c.from.iter().any(|host| others.contains_key(host));
        self.coming.take_if(|coming| is_done(coming));
        self.device.is_some() || !self.others.is_empty()
    }
}

#[cfg(test)]
mod tests;

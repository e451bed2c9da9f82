//! The endpoints' rows: what attaching, the rules and quarantine say of an endpoint, put together in one place.
//!
//! Three write here: [`Attachments`](super::attachments::Attachments) says which device an endpoint has, the policy compiler which set, and the
//! quarantine engine who is held. The last must not wait for the others: so there is a lock of its own, held for as long as a row takes to
//! write. A row is always made from all three.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use vnet_common::endpoint::{EndpointRow, flags};

use crate::datapath::Datapath;
use crate::datapath::endpoints::Placement;
use crate::observe::{Events, Observer, Saying};
use crate::policy::plan::Assignment;
use crate::quarantine::{Enforce, Pinned};

/// Flags that follow from rules and quarantine; the others come with the device.
const JUDGED: u16 = Placement::FLAGS;
/// What a policed endpoint that is not held may always do.
const ALIVE: u16 = flags::NEIGHBORS | flags::DHCP;
/// What cannot be checked without the endpoint being policed.
const GUARDS: u16 = flags::CHECK_MAC | flags::CHECK_IP;

/// Every endpoint's row.
pub struct Placements {
    observer: Arc<Observer>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None` once everything was detached.
    datapath: Option<Arc<Datapath>>,
    endpoints: HashMap<String, Endpoint>,
    quarters: HashMap<String, Quarters>,
    /// Numbers of all security groups.
    numbers: HashMap<String, u32>,
    /// What rows said when the agent started, until their endpoints are known.
    pinned: Vec<Pinned>,
    /// Rows were changed, and cached flows have not been told to be judged again.
    bump_owed: bool,
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
struct Endpoint {
    /// Its row as its device has it, without what follows from rules. No device: index 0.
    base: EndpointRow,
    /// The row that was written last.
    written: Option<EndpointRow>,
    /// Its set, and the group whose rules that has.
    assigned: Option<(Assignment, Arc<str>)>,
    /// The quarantine group that holds it.
    held: Option<String>,
    /// It was let go, but its set is still that of this quarantine group: it stays there until it has another.
    leaving: Option<String>,
    /// It came from another host, and its flows are on their way: until then nothing passes.
    waiting: bool,
    moves: u32,
}

/// What a quarantine group does with whom it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quarters {
    /// The row of its set.
    pub set: u32,
    /// What goes on working: [`flags::NEIGHBORS`], [`flags::DHCP`].
    pub keep: u16,
    /// The device that gets copies; 0: none.
    pub mirror: u32,
}

impl Placements {
    /// Of nobody yet.
    pub fn new(datapath: Arc<Datapath>, observer: Arc<Observer>) -> Self {
        let inner = Inner { datapath: Some(datapath), ..Inner::default() };
        Self { observer, inner: Mutex::new(inner) }
    }

    /// Everything is to be detached: nothing is written any more.
    pub fn close(&self) {
        self.lock().datapath = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked left whole values.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What rows of an agent before this one say, with the names that their endpoints have now.
    pub fn recall(&self, pinned: Vec<Pinned>, numbers: HashMap<String, u32>) {
        let mut inner = self.lock();
        for pin in &pinned {
            // Whoever was held stays so, and moves are counted on, whatever comes first: the engine's word, or a device's new row.
            let endpoint = inner.endpoints.entry(pin.endpoint.clone()).or_default();
            (endpoint.held, endpoint.moves) = (pin.quarantined.then(|| pin.group.clone()), pin.moves);
        }
        (inner.pinned, inner.numbers) = (pinned, numbers);
    }

    /// Writes the row of an endpoint whose device is, or becomes, `base.ifindex`. Gives the row. `former`: whose device that was.
    pub fn put(&self, name: &str, base: EndpointRow, former: &str) -> Result<EndpointRow> {
        let mut inner = self.lock();
        // A device has one endpoint: under its name of before, that has none.
        if let Some(e) = inner.endpoints.get_mut(former).filter(|e| former != name && e.base.ifindex == base.ifindex) {
            (e.base, e.written) = (EndpointRow::default(), None);
        }
        inner.endpoints.entry(name.to_owned()).or_default().base = base;
        let row = inner.kept(name, inner.row(name))?;
        let maps = inner.datapath()?.maps();
        // A device that had no row has no flows.
        let changed = maps.endpoint(row.ifindex)?.is_some_and(|there| there != row);
        maps.set_endpoint(&row)?;
        inner.endpoints.entry(name.to_owned()).or_default().written = Some(row);
        inner.bump_owed |= changed;
        inner.judge_again()?;
        Ok(row)
    }

    /// Does nothing pass to or from this endpoint, because its rules are not known?
    pub fn is_shut(&self, name: &str) -> bool {
        self.lock().endpoints.get(name).is_some_and(Endpoint::is_shut)
    }

    /// Lets nothing of an endpoint pass until its flows are here, or lets it go on.
    pub fn wait(&self, name: &str, waiting: bool) -> Result<()> {
        let mut inner = self.lock();
        inner.endpoints.entry(name.to_owned()).or_default().waiting = waiting;
        Self::rewrite(&mut inner, name)?;
        inner.judge_again()
    }

    /// Where to say what happens to endpoints.
    pub fn events(&self) -> &Events {
        &self.observer.events
    }

    /// A device went away.
    pub fn forget(&self, ifindex: u32) {
        for (name, endpoint) in self.lock().endpoints.iter_mut().filter(|(_, e)| e.base.ifindex == ifindex) {
            (endpoint.base, endpoint.written) = (EndpointRow::default(), None);
            self.events().say(Saying::Device, name, "gone", format!("its device (index {ifindex}) is gone"));
        }
    }

    /// These are all endpoints: of others only who holds them is kept in mind.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().endpoints.retain(|name, e| {
            let is_there = is_there(name);
            if !is_there && e.held.is_some() {
                // Its set may be another's when it is back: it begins with that of its quarantine group.
                e.assigned = None;
            }
            is_there || e.held.is_some() || e.base.ifindex != 0
        });
    }

    /// Leads endpoints to their sets; `group` says whose rules those are.
    pub fn assign(&self, assignments: &[&Assignment], group: impl Fn(&str) -> Option<Arc<str>>) -> Result<()> {
        let mut inner = self.lock();
        for a in assignments {
            let group = group(&a.name).unwrap_or_default();
            let endpoint = inner.endpoints.entry(a.name.to_string()).or_default();
            if endpoint.leaving.as_deref().is_some_and(|left| left != &*group) {
                endpoint.leaving = None;
            }
            endpoint.assigned = Some(((*a).clone(), group));
        }
        let names: Vec<String> = assignments.iter().map(|a| a.name.to_string()).collect();
        names.iter().try_for_each(|name| Self::rewrite(&mut inner, name))?;
        inner.judge_again()
    }

    /// What quarantine groups do, and the numbers of all groups; rows follow.
    pub fn set_groups(&self, quarters: HashMap<String, Quarters>, numbers: HashMap<String, u32>) -> Result<()> {
        let mut inner = self.lock();
        if (&inner.quarters, &inner.numbers) == (&quarters, &numbers) {
            return Ok(());
        }
        (inner.quarters, inner.numbers) = (quarters, numbers);
        let names: Vec<String> = inner.endpoints.keys().cloned().collect();
        names.iter().try_for_each(|name| Self::rewrite(&mut inner, name))?;
        inner.judge_again()
    }

    /// Writes an endpoint's row if it is not as it should be.
    fn rewrite(inner: &mut Inner, name: &str) -> Result<()> {
        let row = inner.row(name);
        let Inner { datapath: Some(datapath), endpoints, .. } = inner else { return Ok(()) };
        let Some(endpoint) = endpoints.get_mut(name).filter(|e| e.base.ifindex != 0) else { return Ok(()) };
        if endpoint.written != Some(row) {
            datapath.maps().set_endpoint(&row).with_context(|| format!("endpoint {name}"))?;
            endpoint.written = Some(row);
            inner.bump_owed = true;
        }
        Ok(())
    }

    /// Changes who holds an endpoint, and its row; says if it has a device.
    fn move_to(&self, name: &str, held: Option<&str>, moves: u32) -> Result<bool> {
        let start = Instant::now();
        let mut inner = self.lock();
        let endpoint = inner.endpoints.entry(name.to_owned()).or_default();
        let before = (endpoint.held.clone(), endpoint.leaving.clone(), endpoint.moves);
        match held {
            Some(group) => (endpoint.held, endpoint.leaving) = (Some(group.to_owned()), None),
            None => {
                let old = endpoint.held.take().or_else(|| endpoint.leaving.take());
                // As long as its set is the quarantine's, it has nothing else to be opened with.
                endpoint.leaving = old.filter(|old| endpoint.assigned.as_ref().is_none_or(|(_, group)| **group == **old));
            }
        }
        endpoint.moves = moves;
        let ifindex = endpoint.base.ifindex;
        if ifindex == 0 {
            return Ok(false);
        }
        let row = inner.row(name);
        let (group, moves) = row.membership();
        let placement =
            Placement { set: row.set, identity: row.identity, group, moves, mirror: row.mirror(), flags: row.flags & JUDGED };
        let datapath = Arc::clone(inner.datapath()?);
        let maps = datapath.maps();
        let done = maps.set_quarantine(ifindex, &placement).and_then(|there| maps.bump_generation().map(|_| there));
        let Some(endpoint) = inner.endpoints.get_mut(name) else { return Ok(false) };
        match done {
            Ok(there) => {
                endpoint.written = there.then_some(row);
                self.observer.timings.enforced(start.elapsed());
                Ok(there)
            }
            Err(e) => {
                (endpoint.held, endpoint.leaving, endpoint.moves) = before;
                endpoint.written = None;
                Err(e.context(format!("endpoint {name}: writing its row")))
            }
        }
    }
}

impl Inner {
    /// Has flows judged again if rows were changed: cached ones ask neither guards nor tunnel ports.
    fn judge_again(&mut self) -> Result<()> {
        if self.bump_owed {
            self.datapath()?.maps().bump_generation().context("having flows judged again")?;
            self.bump_owed = false;
        }
        Ok(())
    }

    fn datapath(&self) -> Result<&Arc<Datapath>> {
        self.datapath.as_ref().context("everything was detached")
    }

    /// The row, or what stands for it as long as nobody has said which rules the endpoint has.
    fn kept(&self, name: &str, row: EndpointRow) -> Result<EndpointRow> {
        if self.endpoints.get(name).is_some_and(Endpoint::is_told) {
            return Ok(row);
        }
        let old = self.datapath()?.maps().endpoint(row.ifindex)?;
        Ok(untold(row, old.filter(|old| old.id == row.id)))
    }

    /// The row of an endpoint.
    fn row(&self, name: &str) -> EndpointRow {
        let Some(e) = self.endpoints.get(name) else { return EndpointRow::default() };
        let row = self.judged(e, e.base);
        // Whoever is held has other rules, which let its flows go all the same.
        match e.waiting && row.flags & flags::QUARANTINED == 0 {
            true => EndpointRow { set: 0, flags: row.flags & !JUDGED | flags::POLICED, ..row },
            false => row,
        }
    }

    /// A device's row with what rules and quarantine say of its endpoint.
    fn judged(&self, e: &Endpoint, base: EndpointRow) -> EndpointRow {
        let identity = e.assigned.as_ref().map_or(0, |(a, _)| a.identity);
        let number = |group: &str| self.numbers.get(group).copied().unwrap_or(0);
        let base = EndpointRow { identity, flags: base.flags & !JUDGED, ..base }.with_membership(base.membership().0, e.moves);
        if let Some(group) = e.held.as_deref().or(e.leaving.as_deref()) {
            // A group that is not loaded, or none of quarantine any more, has set 0, which lets nothing through.
            let known = self.quarters.get(group);
            let quarters = known.copied().unwrap_or_default();
            // The set that the compiler gave it is newer than that of its group, if it is of that group.
            let set = match &e.assigned {
                Some((a, of)) if known.is_some() && **of == *group => a.set,
                _ => quarters.set,
            };
            let flags = base.flags | flags::POLICED | flags::QUARANTINED | quarters.keep;
            return EndpointRow { set, flags, ..base }.with_membership(number(group), e.moves).with_mirror(quarters.mirror);
        }
        let Some((a, group)) = &e.assigned else { return base };
        let policed = a.policed || base.flags & GUARDS != 0;
        let flags = base.flags | if policed { flags::POLICED | ALIVE } else { 0 };
        EndpointRow { set: a.set, flags, ..base }.with_membership(number(group), e.moves).with_mirror(0)
    }
}

impl Endpoint {
    /// Has anybody said which rules it has?
    fn is_told(&self) -> bool {
        self.assigned.is_some() || self.held.is_some() || self.leaving.is_some()
    }

    /// Does it have no rules, so that nothing passes?
    fn is_shut(&self) -> bool {
        !self.is_told() && self.written.is_some_and(|row| row.flags & JUDGED == flags::POLICED && row.set == 0)
    }
}

/// The row of an endpoint of which nobody has said which rules it has, and which nobody holds: it goes on saying what it said. Where it
/// said nothing, nothing passes: the rules may be such that nothing should.
fn untold(row: EndpointRow, old: Option<EndpointRow>) -> EndpointRow {
    let Some(old) = old else {
        return EndpointRow { set: 0, flags: row.flags & !JUDGED | flags::POLICED, ..row };
    };
    let ((group, moves), flags) = (old.membership(), row.flags & !JUDGED | old.flags & JUDGED);
    let row = EndpointRow { set: old.set, identity: old.identity, flags, ..row };
    row.with_membership(group, moves).with_mirror(old.mirror())
}

impl Enforce for Placements {
    fn hold(&self, endpoint: &str, group: &str, moves: u32) -> Result<bool> {
        self.move_to(endpoint, Some(group), moves)
    }

    fn release(&self, endpoint: &str, moves: u32) -> Result<bool> {
        self.move_to(endpoint, None, moves)
    }

    fn pinned(&self) -> Result<Vec<Pinned>> {
        Ok(self.lock().pinned.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a datapath: rows are made, and not written.
    fn placements(held: &str, group: &str) -> Placements {
        let placements = Placements { observer: Arc::default(), inner: Mutex::default() };
        let pin = Pinned { endpoint: held.to_owned(), group: group.to_owned(), quarantined: true, moves: 1 };
        placements.recall(vec![pin], HashMap::new());
        placements
    }

    #[test]
    fn who_is_held_and_comes_back_has_no_set_of_before() {
        let placements = placements("vm", "strict");
        let assignment = Assignment { name: "vm".into(), set: 5, identity: 0, policed: true };
        let quarters = HashMap::from([("strict".to_owned(), Quarters { set: 3, ..Quarters::default() })]);
        placements.set_groups(quarters.clone(), HashMap::new()).unwrap();
        placements.assign(&[&assignment], |_| Some("strict".into())).unwrap();
        placements.retain(|name| name == "vm");
        assert_eq!(placements.lock().row("vm").set, 5);
        placements.retain(|_| false);
        for (set, quarters) in [(0, HashMap::new()), (3, quarters)] {
            placements.set_groups(quarters, HashMap::new()).unwrap();
            let row = placements.lock().row("vm");
            assert_eq!((row.set, row.flags & flags::QUARANTINED), (set, flags::QUARANTINED), "its row may be another's by now");
        }
    }

    fn row() -> EndpointRow {
        EndpointRow { ifindex: 5, id: 9, flags: flags::PEER, ..EndpointRow::default() }
    }

    fn assigned(set: u32, policed: bool, group: &str) -> Option<(Assignment, Arc<str>)> {
        Some((Assignment { name: "vm".into(), set, identity: 77, policed }, group.into()))
    }

    #[test]
    fn a_held_endpoint_has_the_rules_of_its_quarantine_or_none() {
        const HELD: u16 = flags::POLICED | flags::QUARANTINED;
        let quarters = HashMap::from([("isolated".to_owned(), Quarters { set: 4, keep: flags::DHCP, mirror: 0 })]);
        let inner = Inner { quarters, numbers: HashMap::from([("isolated".to_owned(), 3)]), ..Inner::default() };
        for (held, to, set, bits, number) in [
            (None, assigned(0, false, "default"), 0, 0, 0),
            (None, assigned(2, true, "web"), 2, flags::POLICED | ALIVE, 0),
            (Some("isolated"), None, 4, HELD | flags::DHCP, 3),
            (Some("isolated"), assigned(5, true, "isolated"), 5, HELD | flags::DHCP, 3),
            (Some("isolated"), assigned(2, true, "web"), 4, HELD | flags::DHCP, 3),
            // The group is gone: others' rules are not its own, whoever's they are.
            (Some("gone"), assigned(2, true, "web"), 0, HELD, 0),
            (Some("gone"), assigned(2, false, "default"), 0, HELD, 0),
            (Some("web"), assigned(2, true, "web"), 0, HELD, 0),
        ] {
            let endpoint = Endpoint { assigned: to, held: held.map(str::to_owned), ..Endpoint::default() };
            let judged = inner.judged(&endpoint, row());
            let found = (judged.set, judged.flags, judged.membership().0);
            assert_eq!(found, (set, bits | flags::PEER, number), "{held:?} {endpoint:?}");
        }
    }

    #[test]
    fn who_waits_for_its_flows_lets_nothing_through() {
        let placements = placements("held", "strict");
        let assignment = Assignment { name: "vm".into(), set: 5, identity: 77, policed: false };
        placements.assign(&[&assignment], |_| Some("web".into())).unwrap();
        let row = |placements: &Placements| {
            let row = placements.lock().row("vm");
            (row.set, row.flags)
        };
        assert_eq!(row(&placements), (5, 0));
        placements.lock().endpoints.get_mut("vm").unwrap().waiting = true;
        assert_eq!(row(&placements), (0, flags::POLICED));
        placements.lock().endpoints.get_mut("vm").unwrap().waiting = false;
        assert_eq!(row(&placements), (5, 0));
    }

    #[test]
    fn without_rules_an_endpoint_has_those_that_it_had_or_none() {
        let open = row().with_membership(7, 2);
        let policed = EndpointRow { set: 3, identity: 66, flags: flags::POLICED | ALIVE, ..open };
        for (old, set, bits, shut) in [
            (None, 0, flags::POLICED, true),
            (Some(open), 0, 0, false),
            (Some(policed), 3, flags::POLICED | ALIVE, false),
            (Some(untold(row(), None)), 0, flags::POLICED, true),
        ] {
            let written = untold(row(), old);
            assert_eq!((written.set, written.flags), (set, bits | flags::PEER), "{old:?}");
            assert_eq!(written.membership(), old.unwrap_or_default().membership());
            let untold = Endpoint { written: Some(written), ..Endpoint::default() };
            assert_eq!(untold.is_shut(), shut, "{old:?}");
            let told = Endpoint { assigned: assigned(0, true, "web"), ..untold };
            assert!(!told.is_shut());
        }
    }
}

//! Carries plans out, and knows what is in the maps without asking them each time.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::compile::Group;
use super::known::Known;
use super::live::{Live, Write};
use super::plan::{Limits, NoRoom, Plan, plan, plan_change};
use super::tally::Tally;

/// Blocks of tables are used again after this long at the earliest. A program reads a table within microseconds.
const REUSE_AFTER: Duration = Duration::from_secs(1);

/// The load balancer's maps.
pub trait Rows {
    /// How much they hold.
    fn limits(&self) -> Result<Limits>;
    /// All that is in them.
    fn read(&self) -> Result<Live>;
    /// One write.
    fn write(&self, write: &Write) -> Result<()>;
    /// Starts a new policy generation.
    fn bump_generation(&self) -> Result<()>;
    /// Waits until every program that is running now has ended.
    fn wait_for_programs(&self);
}

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It does not fit.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The maps could not be read.
    #[error("{0:#}")]
    Maps(anyhow::Error),
}

/// Which groups there should be, and what of that changed since the last plan that was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// All groups that there should be.
    pub all: &'a [Group],
    /// Of those that there should have been, what is not to be any more.
    pub old: &'a [Group],
    /// What of `all` takes the place of `old`; the rest is as it was.
    pub new: &'a [Group],
}

/// Plans changes of the maps and carries them out.
#[derive(Debug)]
pub struct Applier {
    /// What the maps say; `None` before they were read, and after a write failed.
    known: Option<Known>,
    /// Of the groups that the maps stand for; `None` until a plan for all of them was carried out. While it is there, only
    /// what changes is planned.
    settled: Option<Tally>,
    /// Blocks that were freed, and when.
    freed: Vec<(Instant, Range<u32>)>,
    /// Something went away since the generation was bumped last.
    bump_owed: bool,
}

impl Default for Applier {
    /// The agent before this one may have died between its last write and the bump that belonged to it.
    fn default() -> Self {
        Self { known: None, settled: None, freed: Vec::new(), bump_owed: true }
    }
}

impl Applier {
    /// What the maps say, as far as that is known.
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// What the maps say; reads them if need be.
    pub fn read(&mut self, rows: &impl Rows) -> Result<&Known> {
        if self.known.is_none() {
            self.known = Some(Known::new(rows.read().context("reading the load balancer's maps")?));
        }
        Ok(self.known.get_or_insert_default())
    }

    /// How to get from what is to what should be.
    pub fn plan(&mut self, rows: &impl Rows, target: Target<'_>) -> Result<Plan, PlanError> {
        let limits = rows.limits().map_err(PlanError::Maps)?;
        self.freed.retain(|(when, _)| when.elapsed() < REUSE_AFTER);
        self.read(rows).map_err(PlanError::Maps)?;
        match self.plan_beside(target, &limits) {
            Err(_) if !self.freed.is_empty() => {
                // Perhaps what was freed a moment ago is what is missing.
                rows.wait_for_programs();
                self.freed.clear();
                Ok(self.plan_beside(target, &limits)?)
            }
            result => Ok(result?),
        }
    }

    /// The next plan looks at all groups: what changed since the last one that was carried out is not known.
    pub fn unsettle(&mut self) {
        self.settled = None;
    }

    fn plan_beside(&mut self, target: Target<'_>, limits: &Limits) -> Result<Plan, NoRoom> {
        let busy: Vec<Range<u32>> = self.freed.iter().map(|(_, r)| r.clone()).collect();
        let known = self.known.get_or_insert_default();
        let Some(tally) = &self.settled else { return plan(target.all, known, limits, &busy) };
        let planned = plan_change((target.old, target.new), known, tally, limits, &busy);
        #[cfg(test)]
        assert_same(&planned, &plan(target.all, known, limits, &busy), known);
        planned
    }

    /// Carries a plan out; it must be the last one that was made, with what it was made for. If a write fails the datapath is whole, in a state
    /// between the two, and the next plan starts from there.
    pub fn run(&mut self, rows: &impl Rows, plan: &Plan, target: Target<'_>) -> Result<()> {
        self.bump_owed |= plan.bump;
        if let Err(e) = self.write_all(rows, plan) {
            (self.known, self.settled) = (None, None);
            return Err(e);
        }
        match &mut self.settled {
            Some(tally) => tally.change(&Tally::between(target.old, target.new)),
            None => self.settled = Some(Tally::of(target.all)),
        }
        self.freed.extend(plan.freed.iter().map(|r| (Instant::now(), r.clone())));
        if self.bump_owed {
            // Who is told that the plan failed does not take its groups for what the maps stand for.
            rows.bump_generation().context("starting a new policy generation").inspect_err(|_| self.settled = None)?;
            self.bump_owed = false;
        }
        Ok(())
    }

    fn write_all(&mut self, rows: &impl Rows, plan: &Plan) -> Result<()> {
        for write in &plan.writes {
            rows.write(write).with_context(|| format!("writing {}", write.what()))?;
            if let Some(known) = &mut self.known {
                known.record(write);
            }
        }
        Ok(())
    }
}

/// Whatever is planned in any test of this crate: a plan of what changed is the plan of everything, and what is known is
/// what the rows say.
#[cfg(test)]
fn assert_same(change: &Result<Plan, NoRoom>, all: &Result<Plan, NoRoom>, known: &Known) {
    match (change, all) {
        (Ok(change), Ok(all)) => assert!(change == all, "planned {change:#?}\nnot {all:#?}"),
        // Of several that do not fit, another may be named.
        (change, all) => assert_eq!(change.is_err(), all.is_err(), "planned {change:#?}\nnot {all:#?}"),
    }
    assert_eq!(*known, Known::new(known.live().clone()));
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use anyhow::bail;
    use vnet_common::lb::state;

    use super::*;
    use crate::lb::compile::{Member, Place};
    use crate::lb::feedback::Hint;
    use crate::resource::Protocol;

    /// Maps in memory, of which a write can fail.
    #[derive(Default)]
    struct Maps {
        live: RefCell<Live>,
        writes_left: Cell<Option<u32>>,
        generation: Cell<u32>,
        waited: Cell<u32>,
        blocks: u32,
        desired: RefCell<Vec<Group>>,
    }

    impl Rows for Maps {
        fn limits(&self) -> Result<Limits> {
            Ok(Limits { vips: 100, groups: 100, members: 100, blocks: self.blocks })
        }
        fn read(&self) -> Result<Live> {
            Ok(self.live.borrow().clone())
        }
        fn write(&self, write: &Write) -> Result<()> {
            if let Some(left) = self.writes_left.get() {
                if left == 0 {
                    bail!("no more");
                }
                self.writes_left.set(Some(left - 1));
            }
            self.live.borrow_mut().record(write);
            Ok(())
        }
        fn bump_generation(&self) -> Result<()> {
            self.generation.set(self.generation.get() + 1);
            Ok(())
        }
        fn wait_for_programs(&self) {
            self.waited.set(self.waited.get() + 1);
        }
    }

    fn group(members: u8) -> Group {
        let member = |i: u8| Member {
            name: i.to_string(),
            address: [10, 9, 0, i].into(),
            port: 80,
            weight: 1,
            share: 100,
            hint: Hint::default(),
            zone: None,
            backup: false,
            state: state::ACTIVE,
            place: Place::default(),
            check: None,
        };
        let members = (0..members).map(member).collect();
        let vips = vec![[10, 0, 0, 1].into()];
        Group { lb: "x".into(), vips, port: 80, last_port: 80, protocol: Protocol::Tcp, flags: 0, members }
    }

    fn to(applier: &mut Applier, maps: &Maps, groups: &[Group]) -> Result<()> {
        let old = maps.desired.replace(groups.to_vec());
        let target = Target { all: groups, old: &old, new: groups };
        let plan = applier.plan(maps, target)?;
        applier.run(maps, &plan, target)
    }

    #[test]
    fn the_first_plan_of_an_agent_bumps_the_generation() {
        let maps = Maps { blocks: 100, ..Maps::default() };
        let mut applier = Applier::default();
        to(&mut applier, &maps, &[]).unwrap();
        assert_eq!(maps.generation.get(), 1);
        to(&mut applier, &maps, &[group(1)]).unwrap();
        assert_eq!(maps.generation.get(), 1);
    }

    #[test]
    fn a_failed_write_is_healed_by_the_next_plan_which_also_bumps() {
        let maps = Maps { blocks: 100, ..Maps::default() };
        let mut applier = Applier::default();
        to(&mut applier, &maps, &[group(3)]).unwrap();
        for writes in 0.. {
            maps.writes_left.set(Some(writes));
            let generation = maps.generation.get();
            if to(&mut applier, &maps, &[group(1)]).is_ok() {
                assert!(writes >= 4, "table, group and two members");
                break;
            }
            assert!(applier.known().is_none() && maps.generation.get() == generation);
            maps.writes_left.set(None);
            to(&mut applier, &maps, &[group(3)]).unwrap();
            assert_eq!(applier.known(), Some(&Known::new(maps.live.borrow().clone())));
            assert_eq!(maps.generation.get(), generation + 1);
        }
    }

    #[test]
    fn freed_blocks_are_left_alone_unless_they_are_needed() {
        let first = |maps: &Maps| maps.live.borrow().groups[&0].row.table >> 32;
        for (blocks, waits, third) in [(64, 0, 32), (32, 1, 0)] {
            let maps = Maps { blocks, ..Maps::default() };
            let mut applier = Applier::default();
            to(&mut applier, &maps, &[group(1)]).unwrap();
            to(&mut applier, &maps, &[group(2)]).unwrap();
            assert_eq!(first(&maps), 16);
            to(&mut applier, &maps, &[group(1)]).unwrap();
            assert_eq!((maps.waited.get(), first(&maps)), (waits, third));
        }
    }
}

//! Carries plans out, and knows what is in the maps without asking them each time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ids::RuleIds;
use super::image::Image;
use super::known::Known;
use super::live::{Limits, PolicyRows, Tables, Write};
use super::plan::{Assignment, Plan, Scope, plan};
use super::refused::Refused;

/// What nothing leads to is taken out after this long at the earliest. A program is done within microseconds.
const SWEEP_AFTER: Duration = Duration::from_secs(1);

/// Why there is no plan. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It does not fit.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The maps could not be read, or swept.
    #[error("{0:#}")]
    Maps(anyhow::Error),
}

/// Plans changes of the maps and carries them out.
#[derive(Debug)]
pub struct Applier {
    /// What the maps say; `None` before they were read, and after a write failed.
    known: Option<Known>,
    /// What endpoints were led to last.
    assigned: BTreeMap<Arc<str>, Assignment>,
    /// The sets of quarantine groups.
    quarantine: BTreeMap<Arc<str>, u32>,
    /// Whose decisions the counters have counted.
    counted: Option<RuleIds>,
    /// Something changed since the generation was bumped last.
    bump_owed: bool,
    /// Since when nothing leads to what is to be swept; `None` if there is nothing, or something may.
    garbage: Option<Instant>,
}

impl Default for Applier {
    /// The agent before this one may have died between its last write and the bump that belonged to it.
    fn default() -> Self {
        Self {
            known: None,
            assigned: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            counted: None,
            bump_owed: true,
            garbage: None,
        }
    }
}

impl Applier {
    /// How to get from what is to the image.
    pub fn plan(&mut self, rows: &impl PolicyRows, image: &Image) -> Result<Plan, PlanError> {
        let limits = rows.limits().map_err(PlanError::Maps)?;
        if self.garbage.is_some_and(|since| since.elapsed() >= SWEEP_AFTER) {
            self.sweep_now(rows, &limits).map_err(PlanError::Maps)?;
        }
        let planned = self.plan_beside(rows, image, &limits)?;
        match planned {
            Err(Refused::Room { .. }) if self.garbage.is_some() => {
                // Perhaps what is to be swept is what is missing.
                self.sweep_all(rows).map_err(PlanError::Maps)?;
                Ok(self.plan_beside(rows, image, &limits)??)
            }
            result => Ok(result?),
        }
    }

    fn plan_beside(
        &mut self,
        rows: &impl PolicyRows,
        image: &Image,
        limits: &Limits,
    ) -> Result<Result<Plan, Refused>, PlanError> {
        if self.known.is_none() {
            let tables = rows.read().context("reading the policy's maps").map_err(PlanError::Maps)?;
            self.known = Some(Known::new(tables, image, limits));
        }
        let known = self.known.get_or_insert_default();
        let planned = plan(image, known, limits, Scope::All);
        Ok(planned.map(|mut plan| {
            let new = self.counted.as_ref().map(|counted| image.ids().change_since(counted).given);
            let new = new.map_or_else(|| image.fresh.clone(), |given| given.into_iter().map(|(_, id)| id).collect());
            if !new.is_empty() {
                plan.writes.insert(0, Write::ResetCounters(new));
            }
            plan.ids = image.ids().clone();
            plan
        }))
    }

    /// Carries a plan out; it must be the last one that was made. `switch` writes the rows of the endpoints that it is given: those whose
    /// assignment changed, or all of them if it is not known how they are. If anything fails the datapath is whole, in a state between
    /// the two, and the next plan starts from there.
    pub fn run(
        &mut self,
        rows: &impl PolicyRows,
        mut plan: Plan,
        switch: &mut dyn FnMut(&[&Assignment]) -> Result<()>,
    ) -> Result<()> {
        let changed = |a: &&Assignment| self.assigned.get(&a.name) != Some(*a);
        let endpoints: Vec<&Assignment> = plan.assigned.values().filter(changed).collect();
        self.bump_owed |= plan.bump || !endpoints.is_empty();
        let write = |write: &Write| rows.write(write).with_context(|| format!("writing {}", write.what()));
        let written =
            plan.writes.iter().try_for_each(write).and_then(|()| if endpoints.is_empty() { Ok(()) } else { switch(&endpoints) });
        if let Err(e) = written {
            self.forget();
            return Err(e);
        }
        let known = self.known.get_or_insert_default();
        known.record(&mut plan);
        (self.assigned, self.quarantine, self.counted) = (plan.assigned, plan.quarantine, Some(plan.ids));
        if self.bump_owed {
            rows.bump_generation().context("starting a new policy generation")?;
            self.bump_owed = false;
        }
        // What was garbage before this plan must wait again: an endpoint may just have been led away from it.
        self.garbage = self.known.as_ref().is_some_and(Known::has_garbage).then(Instant::now);
        Ok(())
    }

    /// Nothing is known of the maps and the endpoints' rows: the next plan reads the maps and leads every endpoint to its set.
    pub fn forget(&mut self) {
        (self.known, self.garbage) = (None, None);
        self.assigned.clear();
    }

    /// Takes out what nothing leads to any more, if it is time. To be called now and then.
    pub fn sweep(&mut self, rows: &impl PolicyRows) -> Result<()> {
        match self.garbage {
            Some(since) if since.elapsed() >= SWEEP_AFTER => self.sweep_now(rows, &rows.limits()?),
            _ => Ok(()),
        }
    }

    /// The same at once, as soon as no program can be reading it.
    pub fn sweep_all(&mut self, rows: &impl PolicyRows) -> Result<()> {
        if self.garbage.is_none() {
            return Ok(());
        }
        rows.wait_for_programs();
        self.sweep_now(rows, &rows.limits()?)
    }

    fn sweep_now(&mut self, rows: &impl PolicyRows, limits: &Limits) -> Result<()> {
        self.garbage = None;
        let writes = self.known.as_mut().map(|known| known.sweep(limits)).unwrap_or_default();
        let swept = writes.iter().try_for_each(|w| rows.write(w).with_context(|| format!("writing {}", w.what())));
        swept.inspect_err(|_| self.known = None)
    }

    /// What an endpoint of this host was led to.
    pub fn assignment(&self, endpoint: &str) -> Option<&Assignment> {
        self.assigned.get(endpoint)
    }

    /// The row of a quarantine group's set: it is always loaded.
    pub fn quarantine_set(&self, group: &str) -> Option<u32> {
        self.quarantine.get(group).copied()
    }

    /// How many rows are in use.
    pub fn usage(&self) -> Usage {
        let Some(known) = &self.known else { return Usage::default() };
        Usage {
            sets: known.sets.len() as u32,
            rules: known.sets.values().flat_map(|s| s.set.as_ref()).flat_map(|s| &s.sides).map(|s| s.rules.len() as u32).sum(),
            ports: known.sets.values().flat_map(|s| s.row.sides).map(|s| s.port_rows).sum(),
            bits: known.pool.keys().map(|bits| bits.len() as u32).sum(),
            peers: known.peer_rows,
            addresses: known.addresses.len() as u32,
            cidrs: known.cidrs.len() as u32,
        }
    }
}

/// Rows in use, by map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// `SETS`.
    pub sets: u32,
    /// `RULES`.
    pub rules: u32,
    /// `PORTS`.
    pub ports: u32,
    /// `BITS`, in words.
    pub bits: u32,
    /// `PEERS`.
    pub peers: u32,
    /// `IPCACHE`.
    pub addresses: u32,
    /// `CIDRS`.
    pub cidrs: u32,
}

impl Image {
    /// The tables that the datapath would have of these endpoints of this host, and what each is led to.
    ///
    /// # Errors
    /// Not by any limit: only if rows contradict each other.
    pub fn fill(&self, endpoints: &[&str]) -> Result<(Tables, BTreeMap<Arc<str>, Assignment>), Refused> {
        let names: HashSet<&str> = endpoints.iter().copied().collect();
        let known = Known::new(Tables::default(), self, &Limits::NONE);
        let plan = plan(self, &known, &Limits::NONE, Scope::Endpoints(&names))?;
        let mut tables = Tables::default();
        plan.writes.iter().for_each(|write| tables.record(write));
        Ok((tables, plan.assigned))
    }
}

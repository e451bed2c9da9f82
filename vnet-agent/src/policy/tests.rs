//! Whatever the rules are, rows of bits decide as a walk over the rules does; and on the way from one image to another nothing is
//! decided that neither of them would. Who is held on another host is held off here.

mod elsewhere;
mod limits;
mod naive;
mod steps;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::apply::Applier;
use super::compile::{Image, Inputs, Previous};
use super::ids::RuleIds;
use super::live::{Limits, PolicyRows, Tables, Write};
use super::plan::Assignment;
use world::World;

/// Maps in memory, and the rows of endpoints. A write can fail.
#[derive(Default)]
struct Maps {
    tables: RefCell<Tables>,
    endpoints: RefCell<BTreeMap<Arc<str>, Assignment>>,
    limits: Option<Limits>,
    writes_left: Cell<Option<u32>>,
    generation: Cell<u32>,
}

impl Maps {
    fn may_write(&self) -> Result<()> {
        match self.writes_left.get() {
            Some(0) => bail!("no more"),
            left => self.writes_left.set(left.map(|left| left - 1)),
        }
        Ok(())
    }

    /// Leads endpoints to their sets.
    fn switch(&self, to: &[&Assignment]) -> Result<()> {
        for assignment in to {
            self.may_write()?;
            self.endpoints.borrow_mut().insert(Arc::clone(&assignment.name), (*assignment).clone());
        }
        Ok(())
    }
}

impl PolicyRows for Maps {
    fn limits(&self) -> Result<Limits> {
        Ok(self.limits.unwrap_or(Limits::NONE))
    }
    fn read(&self) -> Result<Tables> {
        Ok(self.tables.borrow().clone())
    }
    fn write(&self, write: &Write) -> Result<()> {
        self.may_write()?;
        self.tables.borrow_mut().record(write);
        Ok(())
    }
    fn bump_generation(&self) -> Result<()> {
        self.generation.set(self.generation.get() + 1);
        Ok(())
    }
    fn wait_for_programs(&self) {}
}

fn to(applier: &mut Applier, maps: &Maps, image: &Image) -> Result<()> {
    let plan = applier.plan(maps, image)?;
    applier.run(maps, plan, &mut |assigned| maps.switch(assigned))
}

fn start(world: &World) -> Image {
    let (ids, tables) = (RuleIds::default(), Tables::default());
    world.compile(Previous::Start { ids: &ids, tables: &tables })
}

//! One case: its traffic, what must become of each packet, what it costs.

use super::frames::Traffic;
use super::kernel::{Kernel, Target};
use crate::report::{Better, Row, median};
use anyhow::{Result, ensure};
use vnet_common::verdict::Reason;

/// What is measured.
pub struct Case {
    suite: &'static str,
    pub name: String,
    pub traffic: Traffic,
    /// What every packet must be counted as.
    expect: Reason,
    /// ns above the floor.
    goal: Option<f64>,
    /// How the group picks: see [`vnet_common::lb::flags`].
    flags: u32,
    /// One value a round; and of the null program in the same harness.
    values: Vec<f64>,
    floors: Vec<f64>,
}

impl Case {
    pub fn new(suite: &'static str, name: String, traffic: Traffic, expect: Reason, goal: Option<f64>) -> Self {
        Self { suite, name, traffic, expect, goal, flags: 0, values: Vec::new(), floors: Vec::new() }
    }

    /// The same under a name that says more.
    pub fn called(self, more: &str) -> Self {
        Self { name: format!("{}, {more}", self.name), ..self }
    }

    /// The same with a group that picks so.
    pub fn picking(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    /// One round.
    pub fn measure(&mut self, kernel: &mut Kernel, repeat: u32) -> Result<()> {
        let t = self.traffic;
        kernel.empty_caches(t)?;
        if matches!(self.expect, Reason::NewFlow | Reason::Allowed) {
            if self.flags == 0 {
                return self.measure_new(kernel);
            }
            kernel.set_algorithm(t.family, self.flags)?;
            self.measure_new(kernel)?;
            return kernel.set_algorithm(t.family, 0);
        }
        let target = Target::from(t.direction);
        if self.has_flows() {
            kernel.establish(t)?;
        }
        // The first packet of a flow puts it into the cache, where there is room; twice, since that may take a while.
        kernel.send(t, target, (2 * t.flows).max(10_000))?;
        let value = self.counted(kernel, repeat, |kernel| kernel.send(t, target, repeat))?;
        self.values.push(value);
        self.floors.push(kernel.send(t, Target::Null, repeat)?);
        if self.has_flows() {
            kernel.forget(t)?;
        }
        Ok(())
    }

    /// A round of short runs, of so many packets each; `after` each of which something is done that is not measured.
    pub fn measure_runs(
        &mut self,
        kernel: &mut Kernel,
        packets: u32,
        runs: u32,
        mut after: impl FnMut(&mut Kernel) -> Result<()>,
    ) -> Result<()> {
        let (t, mut values, mut floors) = (self.traffic, Vec::new(), Vec::new());
        for _ in 0..runs {
            values.push(self.counted(kernel, packets, |kernel| kernel.send(t, Target::from(t.direction), packets))?);
            floors.push(kernel.send(t, Target::Null, packets)?);
            after(kernel)?;
        }
        self.values.push(median(&values));
        self.floors.push(median(&floors));
        Ok(())
    }

    fn has_flows(&self) -> bool {
        matches!(self.expect, Reason::Established | Reason::Reply)
    }

    /// The median of all rounds.
    pub fn median(&self) -> f64 {
        median(&self.values)
    }

    /// Every flow once, and again after all were removed, if they are few.
    fn measure_new(&mut self, kernel: &mut Kernel) -> Result<()> {
        let t = self.traffic;
        let times = ((1 << 16) / t.flows).clamp(1, 64);
        let (mut values, mut floors) = (Vec::new(), Vec::new());
        for _ in 0..times {
            values.push(self.counted(kernel, t.flows, |kernel| kernel.send(t, Target::Egress, t.flows))?);
            floors.push(kernel.send(t, Target::Null, t.flows)?);
            kernel.forget(t)?;
        }
        self.values.push(median(&values));
        self.floors.push(median(&floors));
        Ok(())
    }

    /// Runs something, and makes sure that the packets met the fate that is measured.
    fn counted(&self, kernel: &mut Kernel, packets: u32, f: impl FnOnce(&mut Kernel) -> Result<f64>) -> Result<f64> {
        let before = kernel.count(self.traffic.direction, self.expect)?;
        let value = f(kernel)?;
        let counted = kernel.count(self.traffic.direction, self.expect)? - before;
        ensure!(counted == u64::from(packets), "{counted} of {packets} packets were {}", self.expect.name());
        Ok(value)
    }

    /// What it comes to.
    pub fn row(&self) -> Row {
        let row = Row::new(self.suite, &self.name, "ns", &self.values);
        let floor = median(&self.floors);
        match self.goal {
            Some(goal) => row.with_goal(floor, floor + goal, Better::Less),
            None => row,
        }
    }
}

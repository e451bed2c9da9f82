//! The datapath in the kernel: its programs, its maps and what they are attached to. Nothing else in the agent talks to
//! BPF.
//!
//! [`Datapath::open`] finds or makes everything, and takes over what an agent before this one left. [`Maps`] is what the
//! control logic writes policy into; [`flows`] reads the flow table and [`gc`] removes what is over.

mod attach;
mod batch;
pub(crate) mod clock;
pub mod endpoints;
pub mod events;
pub mod flows;
pub mod gc;
mod kernel;
mod layout;
mod load;
pub mod look;
mod maps;
mod migrate;
mod mmap;
pub mod moving;
mod open;
pub mod pending;
mod percpu;
mod pins;
mod policy;
pub mod rehearsal;
mod sys;

use std::borrow::Cow;
use std::sync::Mutex;

use anyhow::Result;
use vnet_common::flow::ABI;

pub use attach::{Attached, Foreign, ForeignProgram};
pub use layout::{PolicySizes, Sizes};
pub use load::Logger;
pub use maps::Maps;
pub use migrate::Moved;
pub use open::{OpenReport, Options, Origin};
pub use sys::{Hook, Order, wait_for_programs};

/// The datapath of this host, open. What it put into the kernel stays when this is dropped.
pub struct Datapath {
    maps: Maps,
    tcx: attach::Tcx,
    clock: clock::Clock,
    logger: Mutex<Option<Logger>>,
    root: pins::Root,
    /// What it was loaded from, and how large its maps are.
    object: Cow<'static, [u8]>,
    sizes: Sizes,
}

impl Datapath {
    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Puts the programs onto a device, unless they are there; its endpoint row should be written before. On an error the
    /// device is as before.
    pub fn attach(&self, ifindex: u32) -> Result<Attached> {
        self.tcx.attach(ifindex)
    }

    /// Takes the programs off a device; nothing to do is no fault.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        self.tcx.detach(ifindex)
    }

    /// The devices that have the programs.
    pub fn devices(&self) -> Result<Vec<u32>> {
        self.tcx.devices()
    }

    /// What the programs log, if [`Options::trace`] was set: to be driven by whoever takes it.
    pub fn take_logger(&self) -> Option<Logger> {
        self.logger.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Takes all programs off all devices and removes everything that is pinned. Gives the devices.
    pub fn detach_all(self) -> Result<Vec<u32>> {
        let Self { maps, tcx, clock, logger, root, .. } = self;
        let devices = open::remove_all(&root.complete(ABI))?;
        drop((maps, tcx, clock, logger));
        root.remove()?;
        Ok(devices)
    }
}

//! Reading what the programs report.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, RingBuf};
use vnet_common::event::EventRow;

use super::maps::Maps;
use super::sys::{bytes_of_mut, zeroed};

/// The reading end of the programs' ring buffer. There should be one: what one has read, another does not see.
pub struct EventReader {
    ring: RingBuf<MapData>,
}

impl EventReader {
    fn new(map: OwnedFd) -> Result<Self> {
        let map = MapData::from_fd(map).context("map EVENTS: asking the kernel about it")?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).context("map EVENTS: mapping it into memory")?;
        Ok(Self { ring })
    }

    /// Calls `f` on up to `most` events that were not read yet, the oldest first; gives how many there were. Does not wait.
    pub fn drain(&mut self, most: usize, mut f: impl FnMut(&EventRow)) -> usize {
        let mut row: EventRow = zeroed();
        let mut seen = 0;
        while seen < most
            && let Some(item) = self.ring.next()
        {
            // Of a program of another layout, which cannot be: its maps are others.
            if item.len() == size_of::<EventRow>() {
                bytes_of_mut(std::slice::from_mut(&mut row)).copy_from_slice(&item);
                f(&row);
            }
            seen += 1;
        }
        seen
    }
}

impl Maps {
    /// The reading end of the programs' events.
    pub fn event_reader(&self) -> Result<EventReader> {
        EventReader::new(self.handle("EVENTS")?)
    }
}

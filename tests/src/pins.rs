//! What an agent has pinned, read beside it.

use crate::Host;
use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use std::path::{Path, PathBuf};
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::flow::ABI;
use vnet_common::map::{Config, ENDPOINT_ROWS};

/// The datapath of a host's agent, to see what it does the moment it does it.
pub struct Pins {
    endpoints: Array<MapData, EndpointRow>,
    config: Array<MapData, Config>,
}

impl Pins {
    /// Opens it.
    ///
    /// # Errors
    /// No agent of this build has pinned anything there.
    pub fn open(host: &Host) -> Result<Self> {
        let dir = PathBuf::from(format!("/sys/fs/bpf/vnet/v{ABI}"));
        let (endpoints, config) = host.run(|| Ok::<_, anyhow::Error>((open(&dir, "ENDPOINTS")?, open(&dir, "CONFIG")?)))??;
        Ok(Self { endpoints: Array::try_from(endpoints)?, config: Array::try_from(config)? })
    }

    /// The row of a device.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn endpoint(&self, ifindex: u32) -> Result<EndpointRow> {
        self.endpoints.get(&(ifindex % ENDPOINT_ROWS), 0).context("reading an endpoint's row")
    }

    /// Is the endpoint of this device in quarantine?
    ///
    /// # Errors
    /// See [`Pins::endpoint`].
    pub fn is_held(&self, ifindex: u32) -> Result<bool> {
        Ok(self.endpoint(ifindex)?.flags & flags::QUARANTINED != 0)
    }

    /// The policy generation in force.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn generation(&self) -> Result<u32> {
        Ok(self.config.get(&0, 0).context("reading the policy generation")?.generation)
    }
}

fn open(dir: &Path, name: &str) -> Result<Map> {
    let path = dir.join(name);
    Ok(Map::Array(MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?))
}

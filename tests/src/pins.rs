//! What an agent has pinned, read beside it.

use crate::Host;
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::flow::ABI;
use vnet_common::map::{Config, ENDPOINT_ROWS};
use vnet_common::policy::AddressKey;

/// The datapath of a host's agent, to see what it does the moment it does it.
pub struct Pins {
    endpoints: Array<MapData, EndpointRow>,
    config: Array<MapData, Config>,
    identities: HashMap<MapData, AddressKey, u32>,
}

impl Pins {
    /// Opens it.
    ///
    /// # Errors
    /// No agent of this build has pinned anything there.
    pub fn open(host: &Host) -> Result<Self> {
        let dir = PathBuf::from(format!("/sys/fs/bpf/vnet/v{ABI}"));
        let all = || ["ENDPOINTS", "CONFIG", "IPCACHE"].map(|name| open(&dir, name));
        let [endpoints, config, identities] = host.run(all)?;
        Ok(Self {
            endpoints: Array::try_from(Map::Array(endpoints?))?,
            config: Array::try_from(Map::Array(config?))?,
            identities: HashMap::try_from(Map::HashMap(identities?))?,
        })
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

    /// The identity of an address, if rules know it by itself.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn identity(&self, address: IpAddr) -> Result<Option<u32>> {
        let (version, mut addr) = (if address.is_ipv4() { 4 } else { 6 }, [0; 16]);
        match address {
            IpAddr::V4(a) => addr[..4].copy_from_slice(&a.octets()),
            IpAddr::V6(a) => addr = a.octets(),
        }
        match self.identities.get(&AddressKey { network: 0, version, addr }, 0) {
            Ok(identity) => Ok(Some(identity)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading the identity of {address}")),
        }
    }

    /// The policy generation in force.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn generation(&self) -> Result<u32> {
        Ok(self.config.get(&0, 0).context("reading the policy generation")?.generation)
    }
}

fn open(dir: &Path, name: &str) -> Result<MapData> {
    let path = dir.join(name);
    MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
}

//! Following devices and neighbours.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Device, Neighbor, Snapshot, parse};

/// Room for changes that come while the agent does something else: some thousand.
const RECEIVE_BUFFER: usize = 8 << 20;
/// A burst of changes of devices is over when none came for this long…
const SETTLE: Duration = Duration::from_millis(2);
/// …or when it lasted this long. Neighbours are always waited for: they change all the time, and nothing is urgent.
const PACE: Duration = Duration::from_millis(50);

type Messages = dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Unpin;

/// Knows every device and neighbour.
pub struct Monitor {
    messages: Box<Messages>,
    query: Handle,
    tasks: [JoinHandle<()>; 2],
    devices: BTreeMap<u32, Device>,
    neighbors: HashMap<(u32, IpAddr), Neighbor>,
    gone: Vec<u32>,
    /// Everything has to be read anew.
    stale: bool,
    devices_changed: bool,
    neighbors_changed: bool,
}

impl Monitor {
    /// Starts in the network namespace of the calling thread, within a runtime.
    pub fn start() -> Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Neigh];
        let (mut subscription, _, messages) =
            new_multicast_connection(&groups).context("subscribing to devices and neighbours by netlink")?;
        // Beyond the limit for everybody (net.core.rmem_max): the agent may.
        let socket = subscription.socket_mut().socket_mut();
        setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER).context("enlarging the receive buffer of the netlink socket")?;
        // On a socket of its own: answers cannot get lost among changes.
        let (connection, query, _) = new_connection().context("opening a netlink socket")?;
        Ok(Self {
            messages: Box::new(messages.map(|(message, _)| message)),
            query,
            tasks: [tokio::spawn(subscription), tokio::spawn(connection)],
            devices: BTreeMap::new(),
            neighbors: HashMap::new(),
            gone: Vec::new(),
            stale: true,
            devices_changed: false,
            neighbors_changed: false,
        })
    }

    /// What there is, after the next change (the first time: at once).
    pub async fn next(&mut self) -> Result<Snapshot> {
        while !self.stale && !self.devices_changed && !self.neighbors_changed {
            let Some(message) = self.messages.next().await else { bail!("the kernel closed the netlink subscription") };
            self.take(message.payload);
        }
        let end = Instant::now() + PACE;
        while !self.stale && Instant::now() < end {
            let quiet = if self.devices_changed { end.min(Instant::now() + SETTLE) } else { end };
            match timeout_at(quiet, self.messages.next()).await {
                Ok(Some(message)) => self.take(message.payload),
                Ok(None) => bail!("the kernel closed the netlink subscription"),
                Err(_) => break,
            }
        }
        while self.stale {
            self.stale = false;
            self.read_all().await?;
            // The overrun may have gone on meanwhile.
            while let Ok(Some(message)) = timeout(Duration::ZERO, self.messages.next()).await {
                self.take(message.payload);
            }
        }
        (self.devices_changed, self.neighbors_changed) = (false, false);
        Ok(Snapshot {
            devices: self.devices.values().cloned().collect(),
            neighbors: self.neighbors.values().cloned().collect(),
            gone: std::mem::take(&mut self.gone),
        })
    }

    fn take(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) {
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(m)) => {
                if let Some(device) = parse::device(&m) {
                    self.put_device(device);
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(m)) => {
                if let Some(ifindex) = parse::link_index(&m) {
                    self.remove_device(ifindex);
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => {
                if let Some((key, neighbor)) = parse::neighbor(&m) {
                    self.put_neighbor(key, neighbor);
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(m)) => {
                if let Some((key, _)) = parse::neighbor(&m) {
                    self.put_neighbor(key, None);
                }
            }
            NetlinkPayload::Overrun(_) => {
                log::warn!("too many changes of devices at once: reading all of them anew");
                self.stale = true;
            }
            _ => {}
        }
    }

    fn put_device(&mut self, device: Device) {
        let old = self.devices.insert(device.ifindex, device.clone());
        self.devices_changed |= old != Some(device);
    }

    fn remove_device(&mut self, ifindex: u32) {
        if self.devices.remove(&ifindex).is_some() {
            self.gone.push(ifindex);
            self.devices_changed = true;
        }
    }

    fn put_neighbor(&mut self, key: (u32, IpAddr), neighbor: Option<Neighbor>) {
        let old = match neighbor.clone() {
            Some(n) => self.neighbors.insert(key, n),
            None => self.neighbors.remove(&key),
        };
        self.neighbors_changed |= old != neighbor;
    }

    async fn read_all(&mut self) -> Result<()> {
        let links: Vec<_> = self.query.link().get().execute().try_collect().await.context("listing network devices")?;
        let messages: Vec<_> = self.query.neighbours().get().execute().try_collect().await.context("listing neighbours")?;
        let devices: BTreeMap<u32, Device> = links.iter().filter_map(parse::device).map(|d| (d.ifindex, d)).collect();
        self.gone.extend(self.devices.keys().filter(|ifindex| !devices.contains_key(ifindex)));
        self.devices = devices;
        self.neighbors = messages.iter().filter_map(parse::neighbor).filter_map(|(key, n)| Some((key, n?))).collect();
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

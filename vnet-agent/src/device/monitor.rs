//! Following devices and neighbours.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::task::JoinHandle;

use super::{Device, Event, Mac, Neighbor, parse};

/// Room for events that come while the agent does something else: some ten thousand.
const RECEIVE_BUFFER: usize = 8 << 20;

type Messages = dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Unpin;
type Key = (u32, Option<IpAddr>, Option<Mac>);

/// Tells of every device and neighbour, and then of every change.
pub struct Monitor {
    messages: Box<Messages>,
    query: Handle,
    tasks: [JoinHandle<()>; 2],
    devices: BTreeMap<u32, Device>,
    neighbors: HashMap<Key, Neighbor>,
    events: VecDeque<Event>,
    /// Everything has to be read anew.
    stale: bool,
}

impl Monitor {
    /// Starts in the network namespace of the calling thread.
    pub async fn start() -> Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Neigh];
        let (mut subscription, _, messages) =
            new_multicast_connection(&groups).context("subscribing to devices and neighbours by netlink")?;
        let socket = subscription.socket_mut().socket_mut();
        // Beyond the limit for everybody (net.core.rmem_max): the agent may.
        nix::sys::socket::setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER)
            .context("enlarging the receive buffer of the netlink socket")?;
        // On a socket of its own: answers cannot be lost among events.
        let (connection, query, _) = new_connection().context("opening a netlink socket")?;
        let tasks = [tokio::spawn(subscription), tokio::spawn(connection)];
        let messages = Box::new(messages.map(|(message, _)| message));
        let (devices, neighbors, events) = (BTreeMap::new(), HashMap::new(), VecDeque::new());
        Ok(Self { messages, query, tasks, devices, neighbors, events, stale: true })
    }

    /// The devices that there are, as far as [`Monitor::next`] has told.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// The next thing to know. At first these are all devices and neighbours. Can be dropped and called again without loss.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if self.stale {
                self.read_all().await?;
                self.stale = false;
                continue;
            }
            let Some(message) = self.messages.next().await else { bail!("the kernel closed the netlink subscription") };
            match message.payload {
                NetlinkPayload::InnerMessage(message) => self.take(message),
                NetlinkPayload::Overrun(_) => {
                    log::warn!("too many changes of devices at once: reading all of them anew");
                    self.stale = true;
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, message: RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(m) => {
                if let Some(device) = parse::device(&m) {
                    self.device(device, false);
                }
            }
            RouteNetlinkMessage::DelLink(m) => {
                if let Some(ifindex) = parse::link_index(&m) {
                    self.device_gone(ifindex);
                }
            }
            RouteNetlinkMessage::NewNeighbour(m) => {
                if let Some((neighbor, known)) = parse::neighbor(&m) {
                    self.neighbor(neighbor, known);
                }
            }
            RouteNetlinkMessage::DelNeighbour(m) => {
                if let Some((neighbor, _)) = parse::neighbor(&m) {
                    self.neighbor(neighbor, false);
                }
            }
            _ => {}
        }
    }

    /// `again`: tell of it even if nothing changed.
    fn device(&mut self, device: Device, again: bool) {
        let old = self.devices.insert(device.ifindex, device.clone());
        if again || old.as_ref() != Some(&device) {
            self.events.push_back(Event::Device(device));
        }
    }

    fn device_gone(&mut self, ifindex: u32) {
        if self.devices.remove(&ifindex).is_some() {
            self.events.push_back(Event::DeviceGone(ifindex));
        }
    }

    fn neighbor(&mut self, neighbor: Neighbor, known: bool) {
        let key = key(&neighbor);
        if !known {
            if let Some(old) = self.neighbors.remove(&key) {
                self.events.push_back(Event::NeighborGone(old));
            }
        } else if self.neighbors.insert(key, neighbor.clone()).as_ref() != Some(&neighbor) {
            self.events.push_back(Event::Neighbor(neighbor));
        }
    }

    /// Reads everything, and tells of all devices: one that was deleted and made again meanwhile looks like the old one.
    async fn read_all(&mut self) -> Result<()> {
        let links: Vec<_> =
            self.query.link().get().execute().try_collect().await.context("reading the list of devices by netlink")?;
        let devices: Vec<Device> = links.iter().filter_map(parse::device).collect();
        let gone: Vec<u32> = self.devices.keys().copied().filter(|i| !devices.iter().any(|d| d.ifindex == *i)).collect();
        gone.into_iter().for_each(|ifindex| self.device_gone(ifindex));
        devices.into_iter().for_each(|device| self.device(device, true));

        let mut neighbors = HashMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let request = self.query.neighbours().get().set_address_family(family).execute();
            let messages: Vec<_> = request.try_collect().await.context("reading the list of neighbours by netlink")?;
            let known = messages.iter().filter_map(parse::neighbor).filter(|(_, known)| *known);
            neighbors.extend(known.map(|(n, _)| (key(&n), n)));
        }
        let gone: Vec<Neighbor> =
            self.neighbors.iter().filter(|(k, _)| !neighbors.contains_key(*k)).map(|(_, n)| n.clone()).collect();
        gone.into_iter().for_each(|n| self.neighbor(n, false));
        neighbors.into_values().for_each(|n| self.neighbor(n, true));
        Ok(())
    }
}

/// What a neighbour is known by: an address has one MAC, a port of a bridge many.
fn key(n: &Neighbor) -> Key {
    (n.ifindex, n.address, if n.address.is_none() { Some(n.mac) } else { None })
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

//! A packet on its way: through the program at the sender's device, and, where the destination is an endpoint of this host, through the one at
//! its.

use std::net::IpAddr;

use anyhow::{Context, Result};
use etherparse::{NetSlice, SlicedPacket};
use vnet_common::api::{Explanation, Hop};
use vnet_common::endpoint::EndpointRow;
use vnet_common::host::{Frame, scratch};
use vnet_common::lb::LocalKey;
use vnet_common::parse::ethertype;
use vnet_common::pipeline;
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::packet;
use super::rehearse::Stage;
use super::rows::Rows;
use super::story::{self, Run};
use super::target::{Place, Scene};
use super::view::View;
use crate::lb::live::wide;

/// Where a packet enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The device.
    pub ifindex: u32,
    /// Which of its programs.
    pub direction: Direction,
}

/// Follows the packet. `stage`: runs the kernel's programs too.
pub fn walk<R: Rows>(
    scene: &Scene,
    rows: &R,
    frame: Vec<u8>,
    entry: Entry,
    mut stage: Option<&mut Stage<'_>>,
) -> Result<Explanation> {
    let (bytes, tag) = untagged(frame);
    let (mut frame, mut at) = (Frame { bytes, ..Frame::default() }, Some(entry));
    let (mut hops, mut notes, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    // One with the number 0 is a priority.
    let vlan = tag.is_some_and(|number| number != 0);
    if let Some(number) = tag {
        notes.push(format!("the kernel keeps the tag (VLAN {number}) beside the packet: it is shown without"));
    }
    if vlan && stage.take().is_some() {
        notes.push("the kernel's own programs were not run: a test run takes no tag".to_owned());
    }
    let mut last = None;
    while let Some(entry) = at {
        let view = View::new(rows);
        let here = place(scene, entry.ifindex);
        let row = rows.endpoint(entry.ifindex);
        let (before, verdict) = (frame.clone(), run(&view, &mut frame, entry, vlan));
        if let Some(stage) = stage.as_deref_mut() {
            let found = stage.compare(&view, entry, &before.bytes, verdict, &frame.bytes)?;
            differences.extend(found.into_iter().map(|d| format!("{}: {d}", here.name)));
        }
        let after = (frame.bytes != before.bytes).then(|| packet::line(&frame.bytes));
        let (steps, direction) = (view.take_steps(), entry.direction);
        let v4 = before.bytes.get(12..14) == Some(&ethertype::IPV4[..]);
        let before = packet::line(&before.bytes);
        hops.push(story::hop(scene, rows, &Run { place: &here, row, direction, steps: &steps, verdict, v4, before, after }));
        at = onward(rows, entry, verdict, &mut frame, &mut notes, hops.len());
        last = Some((row, verdict));
    }
    let (row, verdict) = last.context("the packet passes no program")?;
    if row.is_none() {
        notes.push("a device without an endpoint's row has no programs: nothing of ours sees the packet".to_owned());
    }
    Ok(Explanation {
        outcome: outcome(&hops, verdict).to_owned(),
        reason: verdict.reason().name().to_owned(),
        hops,
        notes,
        differences: stage.is_some().then_some(differences),
    })
}

fn place(scene: &Scene, ifindex: u32) -> Place {
    let unknown = || Place { name: format!("device {ifindex}"), device: format!("index {ifindex}"), ifindex, ..Place::default() };
    scene.at(ifindex).cloned().unwrap_or_else(unknown)
}

/// The frame as programs see it: the kernel takes an outer VLAN tag out of it before. Gives the VLAN's number, too.
fn untagged(mut frame: Vec<u8>) -> (Vec<u8>, Option<u16>) {
    match frame.get(12..18) {
        Some(&[0x81, 0x00, high, low, ..] | &[0x88, 0xa8, high, low, ..]) => {
            frame.drain(12..16);
            (frame, Some(u16::from_be_bytes([high & 0x0f, low])))
        }
        _ => (frame, None),
    }
}

fn run<R: Rows>(view: &View<'_, R>, frame: &mut Frame, entry: Entry, vlan: bool) -> Verdict {
    let mut room = scratch();
    match entry.direction {
        Direction::Egress => pipeline::egress(frame, view, || Some(&mut room), entry.ifindex, vlan),
        Direction::Ingress => pipeline::ingress(frame, view, || Some(&mut room), entry.ifindex, vlan),
    }
}

/// Where the packet goes next, if it meets another program of ours.
fn onward<R: Rows>(
    rows: &R,
    from: Entry,
    verdict: Verdict,
    frame: &mut Frame,
    notes: &mut Vec<String>,
    hops: usize,
) -> Option<Entry> {
    // A packet that went in a circle would be a bug; two programs are all that there can be.
    if from.direction == Direction::Ingress || hops > 1 {
        return None;
    }
    let ifindex = match verdict {
        Verdict::Redirect { peer: true, .. } => {
            notes.push("it enters the destination's device directly: that device's own stages have run here already".to_owned());
            return None;
        }
        Verdict::Redirect { ifindex, .. } => ifindex,
        Verdict::Next(_) => destination(rows, rows.endpoint(from.ifindex)?.network, &frame.bytes)?,
        _ => return None,
    };
    let to: EndpointRow = rows.endpoint(ifindex).filter(|_| ifindex != from.ifindex)?;
    if matches!(verdict, Verdict::Next(_)) {
        readdress(frame, &to);
    }
    Some(Entry { ifindex, direction: Direction::Ingress })
}

/// The device of the endpoint of this host that the frame is for.
fn destination<R: Rows>(rows: &R, network: u32, frame: &[u8]) -> Option<u32> {
    let address: IpAddr = match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
        NetSlice::Arp(_) => return None,
    };
    let version = if address.is_ipv4() { 4 } else { 6 };
    rows.local(&LocalKey { network, version, addr: wide(address) })
}

/// The stack or the bridge addresses the frame to its destination.
fn readdress(frame: &mut Frame, to: &EndpointRow) {
    for (at, mac) in [(0, to.mac), (6, to.host_mac)] {
        if mac != [0; 6]
            && let Some(place) = frame.bytes.get_mut(at..at + 6)
        {
            place.copy_from_slice(&mac);
        }
    }
}

fn outcome(hops: &[Hop], last: Verdict) -> &'static str {
    let steered = hops.iter().any(|h| h.reason == Reason::Steered.name());
    match last {
        Verdict::Drop(_) => "dropped",
        Verdict::Reply(r) | Verdict::Bounce(r) if r.is_drop() => "refused",
        Verdict::Reply(_) | Verdict::Bounce(_) => "answered",
        Verdict::Next(_) | Verdict::Redirect { .. } if steered => "redirected",
        Verdict::Next(_) | Verdict::Redirect { .. } => "allowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_tag_is_beside_the_packet() {
        let macs = [2; 12];
        let frame = |rest: &[u8]| [&macs[..], rest].concat();
        for (tagged, plain, number) in [
            (frame(&[0x81, 0, 0xa0, 0, 8, 0, 0x45]), frame(&[8, 0, 0x45]), Some(0)),
            (frame(&[0x88, 0xa8, 0xef, 0xff, 0x81, 0, 0, 5]), frame(&[0x81, 0, 0, 5]), Some(4095)),
            (frame(&[8, 0, 0x45, 0, 0, 1]), frame(&[8, 0, 0x45, 0, 0, 1]), None),
            (frame(&[0x81, 0, 0]), frame(&[0x81, 0, 0]), None),
        ] {
            assert_eq!(untagged(tagged), (plain, number));
        }
    }
}

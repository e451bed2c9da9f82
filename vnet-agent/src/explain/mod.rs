//! What would become of a packet, and why: the datapath itself, run here on the rows that it would meet.
//!
//! [`rows`] says where rows come from (one at a time, as a packet meets them: nothing is copied whole); [`view`] runs the pipeline on them and notes
//! what it asks; `walk` follows the packet from program to program; `story` tells it. With `live` the kernel's own program runs on the
//! same packet (`rehearse`).

pub mod packet;
mod rehearse;
pub mod rows;
mod story;
pub mod target;
pub mod view;
mod walk;

use anyhow::{Context, Result};
use vnet_common::api::{ExplainRequest, Explanation};
use vnet_common::parse::protocol;
use vnet_common::verdict::Direction;

use crate::api::Refusal;
use crate::datapath::Datapath;
use packet::Wanted;
use rehearse::Stage;
use rows::{Image, Live, Rows};
use target::{Place, Scene};
use walk::Entry;

pub use rehearse::Rehearsals;

/// Explains on what is loaded.
pub fn loaded(
    datapath: &Datapath,
    rehearsals: &Rehearsals,
    scene: &Scene,
    request: &ExplainRequest,
) -> Result<Explanation, Refusal> {
    let rows = Live::new(datapath)?;
    let explanation = match request.live {
        true => rehearsals.with(datapath, |stage| Ok(explain(scene, &rows, request, Some(stage))))??,
        false => explain(scene, &rows, request, None)?,
    };
    rows.check().context("reading the datapath's maps")?;
    Ok(explanation)
}

/// Explains on what would be loaded. With `live`, the kernel's programs are loaded with that, for this one answer.
pub fn imagined(datapath: &Datapath, scene: &Scene, image: &Image<'_>, request: &ExplainRequest) -> Result<Explanation, Refusal> {
    if !request.live {
        return explain(scene, image, request, None);
    }
    let mut second = image.rehearsal(datapath)?;
    explain(scene, image, request, Some(&mut Stage::new(&mut second, datapath)))
}

/// Explains on any rows. `live` of the request does not matter here: `stage` does.
pub fn explain<R: Rows>(
    scene: &Scene,
    rows: &R,
    request: &ExplainRequest,
    stage: Option<&mut Stage<'_>>,
) -> Result<Explanation, Refusal> {
    let (frame, entry, mut notes) = match &request.frame {
        Some(frame) => captured(scene, request, frame)?,
        None => asked(scene, request)?,
    };
    let mut explanation = walk::walk(scene, rows, frame, entry, stage)?;
    notes.append(&mut explanation.notes);
    explanation.notes = notes;
    Ok(explanation)
}

type Start = (Vec<u8>, Entry, Vec<String>);

/// A frame that is given.
fn captured(scene: &Scene, request: &ExplainRequest, frame: &str) -> Result<Start, Refusal> {
    let bytes = packet::from_hex(frame).map_err(|e| Refusal::bad_request(format!("{e:#}")))?;
    let direction = match request.direction.as_deref() {
        None | Some("egress") => Direction::Egress,
        Some("ingress") => Direction::Ingress,
        Some(other) => return Err(Refusal::bad_request(format!("direction '{other}' is none: egress or ingress"))),
    };
    if request.from.is_empty() {
        return Err(Refusal::bad_request("give the endpoint at whose device the frame is ('from')"));
    }
    let place = scene.place(&request.from).ok_or_else(|| {
        Refusal::not_found(format!("there is no endpoint '{}' on this host: see `vnet-ctl get endpoints`", request.from))
    })?;
    Ok((bytes, entry(place, direction)?, Vec::new()))
}

fn entry(place: &Place, direction: Direction) -> Result<Entry, Refusal> {
    match place.ifindex {
        0 => Err(Refusal::conflict(format!("the device of endpoint {} ({}) does not exist now", place.name, place.device))),
        ifindex => Ok(Entry { ifindex, direction }),
    }
}

/// A packet to be made.
fn asked(scene: &Scene, request: &ExplainRequest) -> Result<Start, Refusal> {
    let q = target::question(scene, request)?;
    let [source, destination] = q.addresses;
    // An address of an endpoint that spoofs another's is asked about by the endpoint's name, with the frame.
    let sender = scene.place(&request.from).or_else(|| scene.owner(source));
    let receiver = scene.owner(destination);
    let (place, direction) = match (sender, receiver) {
        (Some(place), _) => (place, Direction::Egress),
        (None, Some(place)) => (place, Direction::Ingress),
        (None, None) => {
            return Err(Refusal::invalid(format!(
                "neither {source} nor {destination} is of an endpoint of this host: no program of this host sees such a packet"
            )));
        }
    };
    let macs = match direction {
        Direction::Egress => [place.mac, place.host_mac],
        Direction::Ingress => [place.host_mac, place.mac],
    };
    let wanted = Wanted { macs, addresses: q.addresses, protocol: q.protocol, ports: q.ports, flags: q.flags };
    let mut notes = q.notes;
    if !matches!(q.protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6) {
        notes.push(format!("the packet has only an IP header of protocol {}", q.protocol));
    }
    Ok((packet::build(&wanted)?, entry(place, direction)?, notes))
}

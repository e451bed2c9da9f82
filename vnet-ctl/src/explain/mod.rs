//! `explain`: what would become of a packet, and why.

mod capture;
mod show;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use vnet_common::api::{EndpointStatus, Event, ExplainRequest, Explanation, PacketRef};
use vnet_common::verdict::Reason;

use crate::failure::Misused;
use crate::output::Session;
use crate::{files, get, rule};

/// Show what would become of a packet, and why
///
/// That is: the stages in order, the deciding rule with its place, the rules it shadows, and the packet as it is rewritten. The
/// packet is described (--from, --to), comes from a capture file (--pcap), or from an event (--event). Nothing is sent.
///
/// The state is the one in force; with -f, as it would be if the files were applied. With --live the kernel's own program runs on the
/// packet too, beside the traffic, and it is said if the two ever differ.
///
/// TO is an endpoint's name or an address, with port and protocol: 10.0.0.9:443/tcp, `[fd00::9]:53/udp`, web-2:22, 10.0.0.9/icmp.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl explain --from web-1 --to 10.0.0.9:443/tcp
  vnet-ctl explain --from world --to web-1:22
  vnet-ctl explain --from web-1 --to db-1:5432 -f policies/ --live
  vnet-ctl explain --pcap trace.pcapng --packet 7 --at web-1
  vnet-ctl explain --event 4711

Exit codes:
  0  it gets through: allowed, answered or redirected
  1  it does not: dropped or refused
  2  an error; also if --live shows a difference")]
#[command(group = clap::ArgGroup::new("packet source").required(true).args(["to", "pcap", "event"]))]
pub struct Args {
    /// Who sends it: an endpoint, an address, `host` or `world`
    #[arg(long, value_name = "FROM", requires = "to")]
    from: Option<String>,
    /// Where it goes
    #[arg(long, value_name = "TO", requires = "from")]
    to: Option<String>,
    /// The source port [default: a dynamic one]
    #[arg(long, value_name = "PORT", requires = "to")]
    sport: Option<u16>,
    /// TCP flags, as S, SA, F, R, A [default: S]
    #[arg(long, value_name = "FLAGS", requires = "to", value_parser = flags)]
    flags: Option<String>,
    /// A packet of this capture file (pcap or pcapng, of Ethernet)
    #[arg(long, value_name = "FILE", requires = "at", value_hint = clap::ValueHint::FilePath)]
    pcap: Option<PathBuf>,
    /// Which of its packets, from 1
    #[arg(long, value_name = "N", requires = "pcap", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    packet: u64,
    /// The endpoint that sends it, or, with --direction ingress, receives it
    #[arg(long, value_name = "ENDPOINT", requires = "pcap")]
    at: Option<String>,
    /// The way it goes at that endpoint
    #[arg(long, value_name = "egress|ingress", requires = "pcap", default_value = "egress", value_parser = ["egress", "ingress"], hide_possible_values = true)]
    direction: String,
    /// The packet of this event, unless it has too little of it: of what is spoofed, a fragment, too big, or ICMP other than an echo
    /// request; numbers are in events -o wide
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    event: Option<u64>,
    /// As if this were applied: a file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Run the kernel's program on it too, and say whether it does the same
    #[arg(long)]
    live: bool,
}

/// TCP's flags that decide about anything.
const FLAGS: &str = "FSRPAU";

fn flags(text: &str) -> Result<String, String> {
    let upper = text.to_uppercase();
    match upper.is_empty() || upper.chars().any(|flag| !FLAGS.contains(flag)) {
        true => Err(format!("TCP flags are letters of {FLAGS}, as S for SYN or SA for SYN and ACK")),
        false => Ok(upper),
    }
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let mut request = question(session, &args).await?;
    request.files = if args.files.is_empty() { Vec::new() } else { files::read(&args.files)? };
    request.live = args.live;
    let answer = session.agent.post("/v1/explain", &request).await;
    let explanation: Explanation = match args.at.as_ref().or(args.from.as_ref()) {
        Some(name) => get::explain_endpoint(session, answer, name).await?,
        None => answer?,
    };
    session.show(&explanation, |explanation| show::text(explanation, session.wide(), session.paint))?;
    if explanation.differences.as_ref().is_some_and(|differences| !differences.is_empty()) {
        bail!(
            "the kernel's program does otherwise than is explained here: this is a bug in vnet; please report it with the output above"
        );
    }
    Ok(match explanation.outcome.as_str() {
        "allowed" | "answered" | "redirected" => 0,
        _ => 1,
    })
}

/// What is asked, without the files.
async fn question(session: &Session, args: &Args) -> Result<ExplainRequest> {
    if let Some(path) = &args.pcap {
        let frame = capture::frame(path, args.packet)?;
        let at = args.at.clone().unwrap_or_default();
        return Ok(ExplainRequest {
            from: at,
            frame: Some(hex(&frame)),
            direction: Some(args.direction.clone()),
            ..ExplainRequest::default()
        });
    }
    if let Some(number) = args.event {
        let event = event(session, number).await?;
        let Some(packet) = &event.packet else {
            return Err(Misused(format!("event {number} is of kind {}, and about no packet", event.kind)).into());
        };
        let of = if event.endpoint.is_empty() { String::new() } else { format!(" of {}, {}", event.endpoint, event.direction) };
        session.note(&format!("event {number}{of}: {}", rule::packet(packet)));
        return about(session, &event, packet).await;
    }
    Ok(ExplainRequest {
        from: args.from.clone().unwrap_or_default(),
        to: args.to.clone().unwrap_or_default(),
        sport: args.sport,
        flags: args.flags.clone(),
        ..ExplainRequest::default()
    })
}

/// The event of this number, if the agent still has it.
async fn event(session: &Session, number: u64) -> Result<Event> {
    let mut lines = session.agent.stream(&format!("/v1/events?follow=false&since={}", number - 1)).await?;
    let mut newest = 0;
    while let Some(event) = lines.next::<Event>().await? {
        if event.number == number {
            return Ok(event);
        }
        newest = event.number;
    }
    match newest > number {
        true => bail!("event {number} is not kept any more; vnet-ctl events -o wide shows those that are"),
        false => bail!("there is no event {number} yet; vnet-ctl events -o wide shows those there are"),
    }
}

/// The question about an event's packet: as it was when it was reported.
async fn about(session: &Session, event: &Event, packet: &PacketRef) -> Result<ExplainRequest> {
    if packet.src.is_empty() || packet.dst.is_empty() {
        bail!("event {} does not say where its packet came from, and where it went", event.number);
    }
    if let Some(what) = lost(event, packet) {
        let way = if event.direction == "ingress" { " --direction ingress" } else { "" };
        let at = if event.endpoint.is_empty() { "ENDPOINT" } else { &event.endpoint };
        bail!(
            "event {} has too little of its packet to explain it ({what}), and another may be judged otherwise: capture one like it, and \
             give it with --pcap FILE --at {at}{way}",
            event.number
        );
    }
    let mut from = packet.src.clone();
    if event.direction == "egress" {
        let all: Vec<EndpointStatus> = session.agent.get("/v1/endpoints").await?;
        let sender = all.into_iter().find(|ep| ep.name == event.endpoint);
        if let Some(sender) = sender.filter(|sender| !sender.addresses.contains(&packet.src)) {
            session.note(&format!("{} is no address of {}: what is explained is the same from its own", packet.src, sender.name));
            from = sender.name;
        }
    }
    let to = format!("{}/{}", rule::side(&packet.dst, packet.dport), packet.protocol.to_lowercase());
    let flags =
        Some(packet.flags.chars().filter(|flag| FLAGS.contains(*flag)).collect()).filter(|flags: &String| !flags.is_empty());
    Ok(ExplainRequest { from, to, flags, sport: packet.sport, ..ExplainRequest::default() })
}

/// What made the packet what it was, and is not in an event: the packet that is made from it would have another fate.
fn lost(event: &Event, packet: &PacketRef) -> Option<String> {
    if let Some(Reason::SpoofedMac | Reason::SpoofedAddress | Reason::SpoofedNeighbor | Reason::Fragment | Reason::PacketTooBig) =
        Reason::named(&event.reason)
    {
        return Some(event.reason.clone());
    }
    let echo_request = if packet.protocol == "ICMP" { 8 } else { 128 };
    let (kind, code) = packet.icmp.filter(|(kind, _)| *kind != echo_request)?;
    Some(format!("{} of type {kind}, code {code}", packet.protocol))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! `events`: what the datapath and the agent report, as it happens.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vnet_common::api::{EVENT_KINDS, EndpointStatus, Event};

use crate::cli::Format;
use crate::client::{Lines, segment};
use crate::output::{self, Session, print};
use crate::style::{Look, Paint};
use crate::target::Kind;
use crate::watch::Interrupts;
use crate::{get, human, rule, time};

/// Show what happened: drops with their reason and rule, moves, tags, and more
///
/// One line an event, the newest last; those that the agent still has, and with --follow those to come. Events that came too fast to
/// be reported one by one are counted in one of kind `suppressed`. -o json gives one object a line.
///
/// Kinds: drop, log (a rule with `log: true`), staged, flow, suppressed; of the agent: move, tag, health, device, policy, source.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl events --since 10m
  vnet-ctl events --follow --endpoint web-1 --kind drop
  vnet-ctl events --kind drop,staged --reason quarantined --limit 20
  vnet-ctl events -f -o json | jq -c 'select(.rule.resource == \"base\")'")]
pub struct Args {
    /// Go on showing them as they come, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only about these endpoints
    #[arg(long, value_name = "ENDPOINT,…", value_delimiter = ',')]
    endpoint: Vec<String>,
    /// Only of these kinds
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = EVENT_KINDS, hide_possible_values = true)]
    kind: Vec<String>,
    /// Only of these reasons, as an endpoint's counters name them
    #[arg(long, value_name = "REASON,…", value_delimiter = ',')]
    reason: Vec<String>,
    /// Only those after the event of this number; or not older than this, as 10m or 2h
    #[arg(long, value_name = "NUMBER|DURATION", value_parser = since)]
    since: Option<Since>,
    /// At most so many: the newest; with --follow, end after so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

/// From where on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// After the event of this number.
    Number(u64),
    /// Not longer ago than this.
    Ago(Duration),
}

fn since(text: &str) -> Result<Since, String> {
    match text.parse() {
        Ok(number) => Ok(Since::Number(number)),
        Err(_) => time::duration(text).map(Since::Ago).map_err(|why| format!("neither the number of an event nor a time: {why}")),
    }
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    if !args.endpoint.is_empty() {
        let all: Vec<EndpointStatus> = session.agent.get("/v1/endpoints").await?;
        // An endpoint that is gone may still have events.
        if let Err(error) = get::pick(all, &args.endpoint, |ep| &ep.name, Kind::Endpoint) {
            session.warn(&format!("{error:#} Only events of the past can be about it."));
        }
    }
    let mut events = Events::begin(session, &args).await?;
    let mut interrupted = Interrupts::new()?;
    if args.follow {
        tokio::select! {
            ended = follow(session, &args, &mut events) => ended,
            () = interrupted.any() => Ok(0),
        }
    } else {
        tokio::select! {
            ended = kept(session, &args, &mut events) => ended,
            () = interrupted.any() => Ok(0),
        }
    }
}

/// Events that pass the filters.
struct Events {
    lines: Lines,
    after: u64,
    not_before_ms: u64,
    /// Nothing is left out on purpose: a gap in the numbers is one.
    whole: bool,
    last: u64,
}

impl Events {
    async fn begin(session: &Session, args: &Args) -> Result<Self> {
        let (after, not_before_ms) = match args.since {
            Some(Since::Number(number)) => (number, 0),
            Some(Since::Ago(ago)) => (0, time::now_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))),
            None => (0, 0),
        };
        let mut query = vec![format!("follow={}", args.follow)];
        query.extend(args.since.map(|_| format!("since={after}")));
        let filters = [("endpoint", &args.endpoint), ("kind", &args.kind), ("reason", &args.reason)];
        for (key, values) in filters.into_iter().filter(|(_, values)| !values.is_empty()) {
            query.push(format!("{key}={}", segment(&values.join(","))));
        }
        let lines = session.agent.stream(&format!("/v1/events?{}", query.join("&"))).await?;
        let whole = filters.iter().all(|(_, values)| values.is_empty()) && not_before_ms == 0;
        Ok(Self { lines, after, not_before_ms, whole, last: 0 })
    }

    async fn next(&mut self, session: &Session) -> Result<Option<Event>> {
        while let Some(event) = self.lines.next::<Event>().await? {
            if self.whole && self.last != 0 && event.number > self.last + 1 {
                let missing = human::count(event.number - self.last - 1, "event");
                session.note(&format!("{missing} after number {} cannot be shown: more came than the agent keeps", self.last));
            }
            self.last = event.number;
            if event.number > self.after && event.at_ms >= self.not_before_ms {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// Shows those that the agent has.
async fn kept(session: &Session, args: &Args, events: &mut Events) -> Result<u8> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut newest = VecDeque::new();
    while let Some(event) = events.next(session).await? {
        if args.limit.is_none() {
            show(session, &event)?;
        } else {
            newest.push_back(event);
            newest.drain(..newest.len().saturating_sub(limit));
        }
    }
    newest.iter().try_for_each(|event| show(session, event))?;
    if events.last == 0 && session.for_people() {
        session.note("the agent has no such events");
    }
    Ok(0)
}

/// Shows those to come.
async fn follow(session: &Session, args: &Args, events: &mut Events) -> Result<u8> {
    let mut left = args.limit;
    while left != Some(0) {
        let Some(event) = events.next(session).await? else {
            let last = if events.last == 0 { String::new() } else { format!(" after event {}", events.last) };
            bail!(
                "the agent has ended the stream{last}: it ends or restarts (its events then start from number 1), or this program was too \
                 slow to take them; call it again"
            );
        };
        show(session, &event)?;
        left = left.map(|left| left - 1);
    }
    Ok(0)
}

fn show(session: &Session, event: &Event) -> Result<()> {
    match session.format {
        Format::Json => {
            let line = serde_json::to_string(event).context("writing JSON")?;
            print(&format!("{line}\n"))
        }
        Format::Yaml => print(&format!("---\n{}", output::yaml(event)?)),
        Format::Table | Format::Wide => print(&text(event, session.wide(), session.paint)),
    }
}

/// One line. What is wide: the number, and where the rule was written.
fn text(event: &Event, wide: bool, paint: Paint) -> String {
    let kind = paint.paint(look(event), &format!("{:<10}", event.kind));
    let number = if wide { format!("{:<8} ", event.number) } else { String::new() };
    let mut parts: Vec<String> = Vec::new();
    let mut add = |part: String| {
        if !part.is_empty() {
            parts.push(human::clean(&part))
        }
    };
    add(event.endpoint.clone());
    add(event.direction.clone());
    add(event.reason.clone());
    if let Some(packet) = &event.packet {
        add(rule::packet(packet));
        add(format!("{}B", packet.bytes));
        add(if packet.peer.is_empty() { String::new() } else { format!("(peer {})", packet.peer) });
    }
    if let Some(by) = &event.rule {
        add(format!("by {}: {}", if wide { rule::placed(by) } else { rule::name(by) }, rule::action(by)));
    }
    add(match event.kind.as_str() {
        "suppressed" => format!("{} not reported", human::count(event.count, "event")),
        _ if event.count > 1 => format!("x{}", event.count),
        _ => String::new(),
    });
    add(event.message.clone());
    let time = paint.paint(Look::Dim, &time::stamp(event.at_ms));
    format!("{number}{time} {kind} {}\n", parts.join("  ")).trim_end().to_owned() + "\n"
}

fn look(event: &Event) -> Look {
    match event.kind.as_str() {
        "drop" | "move" => Look::Red,
        "suppressed" | "staged" | "source" => Look::Yellow,
        "flow" | "log" => Look::Green,
        _ => Look::Cyan,
    }
}

//! `tag source`: what sets tags, and trying it.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use vnet_common::api::{IngestResponse, ScanReport, ScanRequest, SourceStatus, SourceTest};

use crate::client::segment;
use crate::output::{Session, print};
use crate::style::{Look, Paint};
use crate::target::Kind;
use crate::watch::{self, WatchArgs};
use crate::{get, human, rule};

/// See the sources of tags, try them, scan with them, and send them events
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl tag source ls --watch
  vnet-ctl tag source test suricata
  vnet-ctl tag source scan clamav web-1
  vnet-ctl tag source send falco -f alert.json"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    Ls(LsArgs),
    Test(TestArgs),
    Scan(ScanArgs),
    Send(SendArgs),
}

/// List the sources of tags, with what came from them
///
/// MALFORMED are events that could not be read, or whose mapping failed; REFUSED those that the source may not send; DROPPED changes
/// of tags that newer ones overtook. -o wide adds UNMATCHED, events about no endpoint that is known here, where each source is
/// reached, and its last fault.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl tag source ls
  vnet-ctl tag source ls -o wide
  vnet-ctl tag source ls -o json | jq '.[] | {name, state}'"
)]
pub struct LsArgs {
    /// Only these
    #[arg(value_name = "SOURCE")]
    names: Vec<String>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Measure how long an event of a source takes until its tag is set
///
/// The agent sends itself events by the source's own way, and tells what in its settings would delay them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl tag source test suricata
  vnet-ctl tag source test suricata --config /etc/suricata/suricata.yaml
  vnet-ctl tag source test suricata -o json | jq '.latencies_us | max'")]
pub struct TestArgs {
    /// The source
    #[arg(value_name = "SOURCE")]
    name: String,
    /// The source's own settings, as the agent sees the file, to be looked at too
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
}

/// Scan files for an endpoint, and tag it with what is found
///
/// Without a PATH it is the guest's directory in the source's resource. Infected: the endpoint gets a tag; clean: the clean tag. If a
/// file cannot be scanned, nothing is said to be clean. Paths are the agent's: the files of this host, not of the guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl tag source scan clamav web-1
  vnet-ctl tag source scan clamav web-1 /srv/guests/web-1/home

Exit codes:
  0  all clean      1  something infected, or not scanned")]
pub struct ScanArgs {
    /// The source, of type clamav
    #[arg(value_name = "SOURCE")]
    name: String,
    /// The endpoint that the result is about
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// Files or directories
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    paths: Vec<PathBuf>,
}

/// Send events to a source: JSON, one object, a list, or one object a line
///
/// They are taken as if they had come from the source itself: its mappings make tags of them, and its permissions hold.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl tag source send falco -f alert.json
  journalctl -u falco -o cat | grep '^{' | vnet-ctl tag source send falco

Exit codes:
  0  every event was taken      1  some had faults, which are told")]
pub struct SendArgs {
    /// The source
    #[arg(value_name = "SOURCE")]
    name: String,
    /// A file, or - for standard input
    #[arg(short = 'f', long = "filename", default_value = "-", value_name = "FILE|-", value_hint = clap::ValueHint::AnyPath)]
    file: PathBuf,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Ls(args) => ls(session, args).await,
        Verb::Test(args) => test(session, args).await,
        Verb::Scan(args) => scan(session, args).await,
        Verb::Send(args) => send(session, args).await,
    }
}

async fn ls(session: &Session, args: LsArgs) -> Result<u8> {
    let fetch = async || {
        let all: Vec<SourceStatus> = session.agent.get_quietly("/v1/sources").await?;
        get::pick(all, &args.names, |source| &source.name, Kind::TagSource)
    };
    watch::run(session, args.watch, fetch, |sources, _| {
        session.render(sources, |sources| match sources.is_empty() {
            true => "there are no tag sources yet\n".to_owned(),
            false => get::source_table(sources, "", session.wide()).render(session.paint),
        })
    })
    .await
}

async fn test(session: &Session, args: TestArgs) -> Result<u8> {
    let mut path = format!("/v1/sources/{}/test", segment(&args.name));
    if let Some(config) = &args.config {
        path += &format!("?config={}", segment(&whole(config)?));
    }
    let answer = session.patient_agent().post_empty(&path).await;
    let test: SourceTest = explain(session, answer, &args.name).await?;
    session.show(&test, |test| test_text(&args.name, test, session.paint))?;
    if test.latencies_us.is_empty() && session.for_people() {
        bail!("no event of source '{}' became a tag: see the notes above, and vnet-ctl describe ts {}", args.name, args.name);
    }
    Ok(u8::from(test.latencies_us.is_empty()))
}

/// The whole path of a file: the agent is somewhere else.
fn whole(path: &Path) -> Result<String> {
    let whole = std::path::absolute(path).with_context(|| format!("finding the path {}", path.display()))?;
    whole.into_os_string().into_string().map_err(|path| anyhow!("the path {} is not UTF-8", path.display()))
}

fn test_text(name: &str, test: &SourceTest, paint: Paint) -> String {
    let mut sorted = test.latencies_us.clone();
    sorted.sort_unstable();
    let missing = u64::from(test.trials).saturating_sub(sorted.len() as u64);
    let mut text = format!("{name}: {}", human::count(test.trials.into(), "trial"));
    if let (Some(least), Some(most)) = (sorted.first(), sorted.last()) {
        let [p50, p99] = [50, 99].map(|percent| human::microseconds(sorted[(sorted.len() - 1) * percent / 100]));
        let (least, most) = (human::microseconds(*least), human::microseconds(*most));
        text += &format!(", event to tag: min {least}, p50 {p50}, p99 {p99}, max {most}");
    }
    if missing > 0 {
        text += &paint.paint(Look::Red, &format!(", {missing} without a tag"));
    }
    text.push('\n');
    text + &test
        .notes
        .iter()
        .map(|note| format!("  {} {}\n", paint.paint(Look::Yellow, "!"), human::clean(note)))
        .collect::<String>()
}

async fn scan(session: &Session, args: ScanArgs) -> Result<u8> {
    let paths = args.paths.iter().map(|path| whole(path)).collect::<Result<_>>()?;
    let request = ScanRequest { endpoint: args.endpoint.clone(), paths };
    let answer = session.patient_agent().post(&format!("/v1/sources/{}/scan", segment(&args.name)), &request).await;
    let answer = explain(session, answer, &args.name).await;
    let report: ScanReport = get::explain_endpoint(session, answer, &args.endpoint).await?;
    session.show(&report, |report| report_text(&args.endpoint, report, session.paint))?;
    Ok(u8::from(!report.infected.is_empty() || !report.failed.is_empty()))
}

fn report_text(endpoint: &str, report: &ScanReport, paint: Paint) -> String {
    let (infected, failed) = (paint.paint(Look::Red, "infected"), paint.paint(Look::Yellow, "not scanned"));
    // Who is scanned chose the names of the files.
    let line = |file: &str, verdict: &str, what: &str| format!("{}: {verdict}: {}\n", human::clean(file), human::clean(what));
    let mut text: String = report.infected.iter().map(|(file, what)| line(file, &infected, what)).collect();
    text += &report.failed.iter().map(|(file, why)| line(file, &failed, why)).collect::<String>();
    let clean = report.infected.is_empty() && report.failed.is_empty();
    let verdict = if clean { paint.paint(Look::Green, ", clean") } else { String::new() };
    text += &format!("{} scanned ({}){verdict}\n", human::count(report.scanned, "file"), human::bytes(report.bytes));
    text += &report.tags.iter().map(|tag| format!("endpoint/{endpoint} tagged {}\n", rule::tag(tag))).collect::<String>();
    text + &report.cleared.iter().map(|tag| format!("endpoint/{endpoint} tag {} cleared\n", rule::tag(tag))).collect::<String>()
}

async fn send(session: &Session, args: SendArgs) -> Result<u8> {
    let mut events = Vec::new();
    if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut events).context("reading standard input")?;
    } else {
        events = std::fs::read(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    }
    ensure!(!events.trim_ascii().is_empty(), "there are no events in what was given");
    let answer = session.agent.post_text(&format!("/v1/sources/{}/events", segment(&args.name)), events).await;
    let done: IngestResponse = explain(session, answer, &args.name).await?;
    for fault in &done.faults {
        session.warn(fault);
    }
    print(&session.render(&done, |done| {
        let (events, tags) = (human::count(done.events, "event"), human::count(done.tags, "tag"));
        format!("{events} read, {tags} set or cleared\n")
    })?)?;
    Ok(u8::from(!done.faults.is_empty()))
}

/// [`get::explain`] for tag sources.
async fn explain<T>(session: &Session, found: Result<T>, name: &str) -> Result<T> {
    get::explain(session, found, (Kind::TagSource, "/v1/sources"), name).await
}

//! `tag add`: the operator says something about an endpoint.

use std::time::Duration;

use anyhow::Result;
use vnet_common::api::{Tag, TagRequest};

use crate::get::explain_endpoint;
use crate::output::Session;
use crate::{rule, time};

/// Put a tag on an endpoint, or change it
///
/// The tag is the operator's: a tag of the same name from another source stays beside it. What the tag brings about is up to the
/// transfers of the endpoint's security group; `vnet-ctl quarantine ls` shows it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl tag add web-1 malware
  vnet-ctl tag add web-1 malware=emotet --severity 9 --evidence 'call from the SOC, ticket 4711'
  vnet-ctl tag add web-1 maintenance --ttl 2h
  vnet-ctl tag add web-1 watched --ttl 1d --hold-on-expiry")]
pub struct Args {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// The tag's name, as `ids.malware`, and its value if it has one
    #[arg(value_name = "NAME[=VALUE]", value_parser = name_and_value)]
    tag: (String, String),
    /// How bad it is, 0 to 10
    #[arg(long, default_value_t = 0, value_name = "0-10", value_parser = clap::value_parser!(u8).range(..=10))]
    severity: u8,
    /// How sure it is, in per cent
    #[arg(long, default_value_t = 100, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(..=100))]
    confidence: u8,
    /// After this time it expires, as 90s, 15m, 1h30m, 2d [default: never]
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<u32>,
    /// An expired tag goes on holding until it is removed, instead of being gone
    #[arg(long, requires = "ttl")]
    hold_on_expiry: bool,
    /// What shows it, for people and for the audit log
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    evidence: String,
    /// Tells several tags of one name apart, as a user whose session it is
    #[arg(long, default_value = "", hide_default_value = true, value_name = "INSTANCE")]
    instance: String,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("a tag needs a name before the '='".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Whole seconds, at most a year, as the agent has it.
fn ttl(text: &str) -> Result<u32, String> {
    const YEAR: Duration = Duration::from_secs(31_536_000);
    let duration = time::duration(text)?;
    if duration < Duration::from_secs(1) || duration > YEAR {
        return Err(format!("{text} is not a time to live: at least 1s, at most 365d; without --ttl the tag never expires"));
    }
    u32::try_from(duration.as_millis().div_ceil(1000)).map_err(|error| error.to_string())
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let (name, value) = args.tag;
    let request = TagRequest {
        subject: args.endpoint.clone(),
        name,
        value,
        instance: args.instance,
        severity: args.severity,
        confidence: Some(args.confidence),
        evidence: args.evidence,
        ttl_seconds: args.ttl,
        hold_on_expiry: args.hold_on_expiry,
        source: None,
    };
    let answer = session.agent.post("/v1/tags", &request).await;
    let tags: Vec<Tag> = explain_endpoint(session, answer, &args.endpoint).await?;
    session.show(&tags, |tags| tags.iter().map(line).collect())?;
    Ok(0)
}

fn line(tag: &Tag) -> String {
    let expires = match tag.expires_at_ms {
        Some(ms) if tag.hold_on_expiry => format!("expires {}, and holds on", time::until(ms)),
        Some(ms) => format!("expires {}", time::until(ms)),
        None => "never expires".to_owned(),
    };
    format!("endpoint/{} tagged {} (severity {}, {expires})\n", tag.subject, rule::tag(tag), tag.severity)
}

//! `tag rm`: takes tags off an endpoint.

use anyhow::{Result, bail};
use vnet_common::api::{Tag, TagRequest};

use crate::client::segment;
use crate::get::explain_endpoint;
use crate::output::Session;
use crate::{near, rule};

/// Take a tag off an endpoint
///
/// Without --source it is the operator's own. Another source may set its tag again with its next event.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl tag rm web-1 malware
  vnet-ctl tag rm web-1 ids.malware --source suricata
  vnet-ctl tag rm web-1 session --instance alice")]
pub struct Args {
    /// The endpoint
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// The tag's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The source that set it [default: operator]
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Which one, of several of this name
    #[arg(long, default_value = "", hide_default_value = true, value_name = "INSTANCE")]
    instance: String,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let request = TagRequest {
        subject: args.endpoint.clone(),
        name: args.name.clone(),
        instance: args.instance,
        source: args.source.clone(),
        ..TagRequest::default()
    };
    let answer = session.agent.post("/v1/tags/remove", &request).await;
    let removed: Vec<Tag> = explain_endpoint(session, answer, &args.endpoint).await?;
    if removed.is_empty() {
        let source = args.source.as_deref().unwrap_or("operator");
        let all: Vec<Tag> = session.agent.get(&format!("/v1/tags?subject={}", segment(&args.endpoint))).await?;
        let others: Vec<String> = all.iter().map(|tag| format!("{}/{}", tag.source, rule::tag(tag))).collect();
        let hint = near::hint(&format!("{source}/{}", args.name), others.iter().map(String::as_str), "tags on it");
        bail!("endpoint '{}' has no tag '{}' of source '{source}'; {hint} (--source, --instance)", args.endpoint, args.name);
    }
    session.show(&removed, |removed| {
        removed.iter().map(|tag| format!("endpoint/{} tag {} of {} removed\n", tag.subject, rule::tag(tag), tag.source)).collect()
    })?;
    Ok(0)
}

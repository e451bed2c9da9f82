//! `version`: ours and the agent's.

use anyhow::Result;
use serde::Serialize;
use vnet_common::api::Status;

use crate::output::Session;

/// The versions.
#[derive(Serialize)]
struct Versions {
    client: &'static str,
    agent: Option<String>,
}

/// Runs it. That there is no agent is told, but it is no error: one asks for versions where something does not work.
pub async fn run(session: &Session) -> Result<u8> {
    let agent = session.agent.get::<Status>("/v1/status").await;
    let unreachable = agent.as_ref().err().map(|error| format!("{error:#}"));
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), agent: agent.ok().map(|status| status.version) };
    session.show(&versions, |versions| {
        format!("vnet-ctl    {}\nvnet-agent  {}\n", versions.client, versions.agent.as_deref().unwrap_or("not known"))
    })?;
    if let Some(why) = unreachable {
        session.note(&why);
    }
    Ok(0)
}

//! `delete`: removes resources.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use vnet_common::api::fleet::ProposeRequest;
use vnet_common::api::{ApplyResponse, DeleteRequest, File};

use crate::client::segment;
use crate::failure::{Misused, is_not_found};
use crate::fleet::{self, Made, WaitArgs, Wanted};
use crate::output::Session;
use crate::target::{Kind, Target, TargetParser};
use crate::{apply, files, near};

/// Delete resources, by name or as files name them
///
/// New connections to a deleted load balancer are not balanced any more; what its open connections get is its onMemberRemoved.
/// All of them are deleted, or none: if one is not there, nothing is deleted. In a fleet they are deleted for all its hosts, as `apply`
/// does it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl delete lb web
  vnet-ctl delete loadbalancer/web
  vnet-ctl delete -f policies/lb.yaml --ignore-not-found")]
pub struct Args {
    /// Their kind; KIND/NAME works too
    #[arg(value_name = "KIND", value_parser = TargetParser, required_unless_present = "files")]
    target: Option<Target>,
    /// Their names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Delete what a file, a directory, or - for standard input names; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", value_hint = clap::ValueHint::AnyPath, conflicts_with_all = ["target", "names"])]
    files: Vec<PathBuf>,
    /// That something is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Of a resource in a file, all that matters here.
#[derive(Deserialize)]
struct Named {
    kind: String,
    metadata: Metadata,
    /// What `get` found, and nobody applied.
    #[serde(default)]
    discovered: bool,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let request = DeleteRequest { resources: wanted(&args)?, ignore_not_found: args.ignore_not_found };
    let done = match fleet::status(&session.agent).await? {
        Some(fleet) => {
            let DeleteRequest { resources, ignore_not_found } = request.clone();
            let request = ProposeRequest::Delete { resources, ignore_not_found };
            fleet::make(session, &fleet, &Wanted { request, what: "delete".to_owned(), instead: None }, |_| Ok(())).await
        }
        None => session.agent.post("/v1/delete", &request).await.map(|response: ApplyResponse| Made { response, revision: None }),
    };
    let done = match done {
        Err(error) if is_not_found(&error) => return Err(absent(session, &request.resources, error).await?),
        result => result?,
    };
    apply::show_made(session, &done, args.wait).await
}

fn wanted(args: &Args) -> Result<Vec<(String, String)>> {
    let Some(target) = &args.target else {
        let files = files::read(&args.files)?;
        let named = files.iter().map(named).collect::<Result<Vec<_>>>()?.concat();
        ensure!(!named.is_empty(), "there are no resources in what was given");
        return Ok(named);
    };
    let names = target.names(&args.names);
    if names.is_empty() {
        return Err(Misused(format!("which {}? Give names, as in: vnet-ctl delete lb web", target.kind.plural())).into());
    }
    if target.kind == Kind::All {
        return Err(Misused(format!("deleting needs one kind, as in: vnet-ctl delete lb {}", names[0])).into());
    }
    Ok(names.into_iter().map(|name| (target.kind.api().to_owned(), name)).collect())
}

fn named(file: &File) -> Result<Vec<(String, String)>> {
    let documents: Vec<Named> = serde_saphyr::from_multiple(&file.text)
        .with_context(|| format!("{}: finding the kinds and names of resources", file.name))?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.discovered)
        .map(|document| (document.kind, document.metadata.name))
        .collect())
}

/// Which of `wanted` are not there, with what may be meant. An older agent knows no such request: then its own word.
async fn absent(session: &Session, wanted: &[(String, String)], error: anyhow::Error) -> Result<anyhow::Error> {
    let mut told = Vec::new();
    for (kind, name) in wanted {
        let all: Vec<Named> = session.agent.get(&format!("/v1/resources/{}", segment(kind))).await?;
        let names = || all.iter().map(|resource| resource.metadata.name.as_str());
        if names().all(|other| other != name) {
            let hint = near::hint(name, names(), "resources of this kind");
            told.push(format!("there is no {}/{name}; {hint}", kind.to_lowercase()));
        }
    }
    Ok(if told.is_empty() { error } else { anyhow::anyhow!(told.join("\n       ")) })
}

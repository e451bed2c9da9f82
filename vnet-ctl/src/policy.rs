//! `policy`: the rules in force.

use anyhow::Result;
use vnet_common::api::{EndpointStatus, RuleStatus};

use crate::client::segment;
use crate::output::Session;
use crate::rule;
use crate::style::{Look, Paint};
use crate::table::{Cell, Table};
use crate::target::Kind;
use crate::watch::{self, Before, WatchArgs};
use crate::{get, human, near};

/// See the rules in force, and what each has done
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  vnet-ctl policy ls
  vnet-ctl policy ls --endpoint web-1
  vnet-ctl describe policy base"
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
}

/// List the rules, in their order, with what they did
///
/// HITS are flows that a rule decided about; of denied ones every packet. WOULD HIT are flows about which a staged rule would have
/// decided. ENDPOINTS are those of this host that have the rule. PLACE is where it was written.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  vnet-ctl policy ls
  vnet-ctl policy ls base web               Rules of these policies and groups
  vnet-ctl policy ls --endpoint web-1       All that is about it, first match first
  vnet-ctl policy ls --staged --watch       What would be hit
  vnet-ctl policy ls --unused -o json | jq -r '.[].rule.place'"
)]
pub struct LsArgs {
    /// Only of these policies and security groups
    #[arg(value_name = "RESOURCE")]
    resources: Vec<String>,
    /// Only those about this endpoint
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// Only of this tier, as the table names it
    #[arg(long, value_name = "TIER")]
    tier: Option<String>,
    /// Only staged rules
    #[arg(long)]
    staged: bool,
    /// Only rules without a hit so far
    #[arg(long)]
    unused: bool,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs it.
pub async fn run(session: &Session, verb: Verb) -> Result<u8> {
    let Verb::Ls(args) = verb;
    if let Some(name) = &args.endpoint {
        let all: Vec<EndpointStatus> = session.agent.get("/v1/endpoints").await?;
        get::pick(all, std::slice::from_ref(name), |ep| &ep.name, Kind::Endpoint)?;
    }
    let path = match &args.endpoint {
        Some(name) => format!("/v1/rules?endpoint={}", segment(name)),
        None => "/v1/rules".to_owned(),
    };
    let fetch = async || pick(session.agent.get_quietly(&path).await?, &args);
    watch::run(session, args.watch, fetch, |rules, before| {
        session.render(rules, |rules| text(rules, before, session.wide(), session.paint))
    })
    .await
}

/// Those of `all` that are asked for.
fn pick(all: Vec<RuleStatus>, args: &LsArgs) -> Result<Vec<RuleStatus>> {
    for name in &args.resources {
        if all.iter().all(|status| status.rule.resource != *name) {
            let mut names: Vec<&str> =
                all.iter().map(|status| status.rule.resource.as_str()).filter(|name| !name.is_empty()).collect();
            names.dedup();
            let hint = near::hint(name, names, "policies and security groups with rules");
            anyhow::bail!("no rule is of a policy or security group '{name}'; {hint}");
        }
    }
    let wanted = |status: &RuleStatus| {
        (args.resources.is_empty() || args.resources.contains(&status.rule.resource))
            && args.tier.as_ref().is_none_or(|tier| status.tier.eq_ignore_ascii_case(tier))
            && (!args.staged || status.rule.staged)
            && (!args.unused || status.hits + status.would_hit == 0)
    };
    Ok(all.into_iter().filter(wanted).collect())
}

fn text(rules: &[RuleStatus], before: Before<'_, Vec<RuleStatus>>, wide: bool, paint: Paint) -> String {
    if rules.is_empty() {
        return "there are no such rules\n".to_owned();
    }
    let mut columns = vec!["TIER", "RESOURCE", "RULE", "DIRECTION", "ACTION", ">HITS"];
    columns.extend(before.is_some().then_some(">HITS/S"));
    columns.extend([">BYTES", ">WOULD HIT", ">ENDPOINTS", "PLACE"]);
    columns.extend(wide.then_some(">ID"));
    let mut table = Table::new(&columns);
    for status in rules {
        table.row(row(status, before, wide));
    }
    table.render(paint)
}

fn row(status: &RuleStatus, before: Before<'_, Vec<RuleStatus>>, wide: bool) -> Vec<Cell> {
    let of = &status.rule;
    let resource = rule::resource(of);
    let action = rule::action(of);
    let mut row: Vec<Cell> = vec![(&status.tier).into(), resource.into(), (&of.rule).into(), (&of.direction).into()];
    row.extend([Cell::new(&action, rule::look(&action)), status.hits.into()]);
    if let Some((rules, time)) = before {
        let was = rules.iter().find(|was| was.rule.id == of.id).map(|was| was.hits);
        row.push(human::rate(status.hits, was, time).into());
    }
    let would = Cell::new(status.would_hit, if status.would_hit == 0 { Look::Plain } else { Look::Yellow });
    row.extend([human::bytes(status.bytes).into(), would, status.endpoints.into(), (&of.place).into()]);
    row.extend(wide.then(|| Cell::from(of.id)));
    row
}

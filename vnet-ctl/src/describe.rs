//! `describe`: everything about one thing.

use anyhow::Result;
use serde_json::Value;
use vnet_common::api::{EndpointStatus, LbStatus};

use crate::client::segment;
use crate::failure::{Misused, is_not_found};
use crate::output::Session;
use crate::style::{Look, Paint, of_state};
use crate::table::Table;
use crate::target::{Kind, Target, TargetParser};
use crate::{get, human, lb};

/// Show everything about a load balancer or an endpoint
///
/// The settings and the live state, as text for people; -o json and -o yaml give the live state for programs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vnet-ctl describe lb web
  vnet-ctl describe endpoint tap0
  vnet-ctl describe ep/tap0 -o json | jq '.packets'")]
pub struct Args {
    /// Its kind; KIND/NAME works too
    #[arg(value_name = "KIND", value_parser = TargetParser)]
    target: Target,
    /// Its name
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs it.
pub async fn run(session: &Session, args: Args) -> Result<u8> {
    let names = args.target.names(args.name.as_slice());
    let [name] = names.as_slice() else {
        return Err(Misused("which one? Give one name, as in: vnet-ctl describe lb web".to_owned()).into());
    };
    match args.target.kind {
        Kind::LoadBalancer => load_balancer(session, name).await,
        Kind::Endpoint => endpoint(session, name).await,
        Kind::All => Err(Misused(format!("'{name}' of which kind? As in: vnet-ctl describe lb {name}")).into()),
    }
}

async fn load_balancer(session: &Session, name: &str) -> Result<u8> {
    let lb = lb::one(session, name).await?;
    let path = format!("/v1/resources/LoadBalancer/{}", segment(name));
    let resource: Option<Value> = match session.agent.get(&path).await {
        Ok(resource) => Some(resource),
        // Deleted since.
        Err(error) if is_not_found(&error) => None,
        Err(error) => return Err(error),
    };
    session.show(&lb, |lb| lb_text(lb, resource.as_ref(), session))?;
    Ok(0)
}

fn lb_text(lb: &LbStatus, resource: Option<&Value>, session: &Session) -> String {
    let mut text = Fields::new(session.paint);
    text.add("Name", &lb.name);
    if let Some(labels) = resource.and_then(|resource| resource.pointer("/metadata/labels")) {
        text.add("Labels", &inline(labels));
    }
    text.add("VIPs", &lb.vips.join(", "));
    text.add("Protocol", &lb.protocol);
    text.add("Ports", &human::list(&lb.ports).replace(',', ", "));
    text.add("Delivery", &lb.delivery);
    let settings = [
        ("No member", "onNoMember"),
        ("Member removed", "onMemberRemoved"),
        ("Health check", "healthCheck"),
        ("Member selector", "memberSelector"),
    ];
    for (title, key) in settings {
        if let Some(value) = resource.and_then(|resource| resource.pointer(&format!("/spec/{key}"))) {
            text.add(title, &inline(value));
        }
    }
    text.section("Members", &lb::members::table(lb, None, session.wide()).render(session.paint))
}

/// `interval: 2s, rise: 2` for an object, the text for a string.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match key.strip_suffix("Ms").zip(value.as_u64()) {
                Some((key, milliseconds)) => format!("{key} {}", human::milliseconds(milliseconds)),
                None => format!("{key} {}", inline(value)),
            };
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

async fn endpoint(session: &Session, name: &str) -> Result<u8> {
    for ep in get::find_endpoints(session, &[name.to_owned()]).await? {
        session.show(&ep, |ep| endpoint_text(ep, session.paint))?;
    }
    Ok(0)
}

fn endpoint_text(ep: &EndpointStatus, paint: Paint) -> String {
    let mut text = Fields::new(paint);
    text.add("Name", &ep.name);
    text.add("Labels", &get::labels(ep));
    text.add("Id", &ep.id.to_string());
    let index = if ep.ifindex == 0 { String::new() } else { format!(" (index {})", ep.ifindex) };
    text.add("Device", &format!("{}{index}", ep.device));
    text.add("Origin", get::origin(ep));
    text.add("State", &paint.paint(of_state(&ep.state), &ep.state));
    text.add("MAC", ep.mac.as_deref().unwrap_or("not known yet"));
    text.add("Addresses", &ep.addresses.join(", "));
    text.add("Foreign programs", &ep.foreign_programs.join(", "));
    text.add("Sent", &human::bytes(ep.bytes[0]));
    text.add("Received", &human::bytes(ep.bytes[1]));
    let mut packets = Table::new(&["DIRECTION", "REASON", ">PACKETS"]);
    for (direction, reasons) in &ep.packets {
        for (reason, count) in reasons {
            packets.row(vec![direction.into(), reason.into(), count.into()]);
        }
    }
    let packets = if ep.packets.is_empty() { "none yet\n".to_owned() } else { packets.render(paint) };
    text.section("Packets", &packets)
}

/// Lines of `Title:   value`, aligned.
struct Fields {
    text: String,
    paint: Paint,
}

impl Fields {
    /// The longest title, its colon and a gap.
    const WIDTH: usize = 19;

    fn new(paint: Paint) -> Self {
        Self { text: String::new(), paint }
    }

    fn add(&mut self, title: &str, value: &str) {
        let value = if value.is_empty() { "-" } else { value };
        let title = format!("{:<width$}", format!("{title}:"), width = Self::WIDTH);
        self.text += &format!("{}{value}\n", self.paint.paint(Look::Bold, &title));
    }

    /// Ends with a section of lines.
    fn section(mut self, title: &str, lines: &str) -> String {
        self.text += &format!("{}\n", self.paint.paint(Look::Bold, &format!("{title}:")));
        self.text + &lines.lines().map(|line| format!("  {line}\n")).collect::<String>()
    }
}

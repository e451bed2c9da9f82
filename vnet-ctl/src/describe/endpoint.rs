//! `describe ep`.

use anyhow::Result;
use vnet_common::api::{EndpointStatus, Held, Pending, QuarantineStatus, Tag};

use super::fields::Fields;
use crate::client::segment;
use crate::output::Session;
use crate::style::{Look, Paint, of_policy, of_state};
use crate::table::{Cell, Table};
use crate::{get, human, quarantine, tag};

/// Shows it.
pub async fn describe(session: &Session, name: &str) -> Result<u8> {
    let found = get::find_endpoints(session, &[name.to_owned()]).await?;
    let more = if session.for_people() { Some(More::find(session, name).await?) } else { None };
    for ep in found {
        session.show(&ep, |ep| text_of(ep, more.as_ref(), session))?;
    }
    Ok(0)
}

/// What is known of it elsewhere.
struct More {
    tags: Vec<Tag>,
    held: Option<Held>,
    pending: Vec<Pending>,
    never: bool,
}

impl More {
    async fn find(session: &Session, name: &str) -> Result<Self> {
        let tags = session.agent.get(&format!("/v1/tags?subject={}", segment(name))).await?;
        let status: QuarantineStatus = session.agent.get("/v1/quarantine").await?;
        Ok(Self {
            tags,
            held: status.held.into_iter().find(|held| held.endpoint == name),
            pending: status.pending.into_iter().filter(|pending| pending.endpoint == name).collect(),
            never: status.never.iter().any(|never| never == name),
        })
    }
}

fn text_of(ep: &EndpointStatus, more: Option<&More>, session: &Session) -> String {
    let paint = session.paint;
    let mut text = Fields::new(paint);
    text.add("Name", &ep.name);
    text.add("Labels", &get::labels(ep));
    text.add("Id", &ep.id.to_string());
    let index = if ep.ifindex == 0 { String::new() } else { format!(" (index {})", ep.ifindex) };
    text.add("Device", &format!("{}{index}", ep.device));
    text.add("Origin", get::origin(ep));
    text.add_as("State", &ep.state, of_state(&ep.state));
    text.add("Security group", &ep.group);
    text.add_as("Policy", &ep.policy, of_policy(&ep.policy));
    text.add("Identity", &if ep.identity == 0 { String::new() } else { ep.identity.to_string() });
    text.add("MAC", ep.mac.as_deref().unwrap_or("not known yet"));
    text.add("Addresses", &ep.addresses.join(", "));
    text.add("Foreign programs", &ep.foreign_programs.join(", "));
    text.add("Sent", &human::bytes(ep.bytes[0]));
    text.add("Received", &human::bytes(ep.bytes[1]));
    if let Some(more) = more {
        add_more(&mut text, more, session);
    }
    packets(&mut text, ep, paint);
    text.text()
}

fn add_more(text: &mut Fields, more: &More, session: &Session) {
    if more.never {
        text.add("Quarantine", "never: it is on the never-quarantine list");
    }
    if let Some(held) = &more.held {
        text.section("Quarantine", &quarantine::details(held, session.paint));
    }
    for pending in &more.pending {
        let line = format!("would be moved to {} by {}: {}", pending.to, pending.transfer, pending.reason);
        text.section("Waits for approval", &human::clean(&format!("{line} (waits because of: {})", pending.because)));
    }
    if more.tags.is_empty() {
        text.add("Tags", "none");
    } else {
        text.section("Tags", &tag::table(&more.tags, false, session.wide()).render(session.paint));
    }
}

/// Packets by reason: those that went no further first, as they are what people look for.
fn packets(text: &mut Fields, ep: &EndpointStatus, paint: Paint) {
    for (title, drops) in [("Dropped or refused", true), ("Packets", false)] {
        let mut table = Table::new(&["DIRECTION", "REASON", ">PACKETS"]);
        let mut empty = true;
        for (direction, reasons) in &ep.packets {
            for (reason, count) in reasons.iter().filter(|(reason, _)| ep.is_drop(reason) == drops) {
                let look = if drops { Look::Red } else { Look::Plain };
                table.row(vec![direction.into(), reason.into(), Cell::new(count, look)]);
                empty = false;
            }
        }
        if empty { text.add(title, "none yet") } else { text.section(title, &table.render(paint)) }
    }
}

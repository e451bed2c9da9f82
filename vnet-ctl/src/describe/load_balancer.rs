//! `describe lb`.

use anyhow::Result;
use serde_json::Value;
use vnet_common::api::LbStatus;

use super::fields::Fields;
use super::{inline, resource};
use crate::lb;
use crate::output::Session;
use crate::target::Kind;

/// Shows it.
pub async fn describe(session: &Session, name: &str) -> Result<u8> {
    let lb = lb::one(session, name).await?;
    let resource = resource(session, Kind::LoadBalancer, name).await?;
    session.show(&lb, |lb| text_of(lb, resource.as_ref(), session))?;
    Ok(0)
}

fn text_of(lb: &LbStatus, resource: Option<&Value>, session: &Session) -> String {
    let mut text = Fields::new(session.paint);
    text.add("Name", &lb.name);
    if let Some(labels) = resource.and_then(|resource| resource.pointer("/metadata/labels")) {
        text.add("Labels", &inline(labels));
    }
    text.add("VIPs", &lb.vips.join(", "));
    text.add("Protocol", &lb.protocol);
    text.add("Ports", &lb.all_ports().join(", "));
    text.add("Algorithm", &lb.algorithm);
    text.add("Delivery", &lb.delivery);
    let settings = [
        ("Affinity", "affinity"),
        ("Prefer", "prefer"),
        ("Healthy at least (%)", "minHealthyPercent"),
        ("Slow start (s)", "slowStartSeconds"),
        ("No member", "onNoMember"),
        ("Member removed", "onMemberRemoved"),
        ("Health check", "healthCheck"),
        ("Passive health", "passiveHealth"),
        ("Load feedback", "feedback"),
        ("Member selector", "memberSelector"),
        ("Member groups", "memberGroups"),
    ];
    for (title, key) in settings {
        if let Some(value) = resource.and_then(|resource| resource.pointer(&format!("/spec/{key}"))) {
            text.add(title, &inline(value));
        }
    }
    text.section("Members", &lb::members::table(lb, None, session.wide()).render(session.paint));
    text.text()
}

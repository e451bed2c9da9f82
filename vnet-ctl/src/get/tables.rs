//! What `get` shows of each kind.

use vnet_common::api::{EndpointStatus, GroupStatus, LbStatus, SourceStatus};

use super::{few, labels, origin};
use crate::style::{Look, of_policy, of_state};
use crate::table::{Cell, Table};
use crate::{human, lb, time};

/// Load balancers. `prefix` comes before each name.
pub fn load_balancers(lbs: &[LbStatus], prefix: &str, wide: bool) -> Table {
    let mut columns = vec!["NAME", "VIPS", "PROTOCOL", "PORTS", "READY", "DELIVERY"];
    if wide {
        columns.extend([">FLOWS", "MEMBERS"]);
    }
    let mut table = Table::new(&columns);
    for lb in lbs {
        let mut row: Vec<Cell> = vec![format!("{prefix}{}", lb.name).into(), few(&lb.vips, wide).into()];
        row.extend([(&lb.protocol).into(), human::list(&lb.all_ports()).into(), lb::ready(lb), (&lb.delivery).into()]);
        if wide {
            row.push(lb.members.iter().map(|member| member.active_flows).sum::<u64>().into());
            row.push(human::list(&lb.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>()).into());
        }
        table.row(row);
    }
    table
}

/// Endpoints.
pub fn endpoints(endpoints: &[EndpointStatus], prefix: &str, wide: bool) -> Table {
    let mut columns = vec!["NAME", "DEVICE", "ORIGIN", "STATE", "GROUP", "POLICY", "ADDRESSES", ">SENT", ">RECEIVED"];
    if wide {
        columns.extend([">ID", ">IFINDEX", "MAC", ">IDENTITY", "LABELS", "TAGS", "FOREIGN PROGRAMS"]);
    }
    let mut table = Table::new(&columns);
    for ep in endpoints {
        let [sent, received] = ep.bytes.map(human::bytes);
        let mut row: Vec<Cell> = vec![format!("{prefix}{}", ep.name).into(), (&ep.device).into(), origin(ep).into()];
        row.extend([Cell::new(&ep.state, of_state(&ep.state)), (&ep.group).into(), Cell::new(&ep.policy, of_policy(&ep.policy))]);
        row.extend([few(&ep.addresses, wide).into(), sent.into(), received.into()]);
        if wide {
            row.extend([ep.id.into(), ep.ifindex.into(), ep.mac.clone().unwrap_or_default().into(), ep.identity.into()]);
            row.extend([labels(ep).into(), human::list(&ep.tags).into(), human::list(&ep.foreign_programs).into()]);
        }
        table.row(row);
    }
    table
}

/// Security groups.
pub fn groups(groups: &[GroupStatus], prefix: &str, wide: bool) -> Table {
    let mut columns = vec!["NAME", "TYPE", ">ENDPOINTS", ">RULES", "INGRESS", "EGRESS", "TRANSFERS"];
    if wide {
        columns.extend([">ID", "MEMBERS"]);
    }
    let mut table = Table::new(&columns);
    for group in groups {
        let [ingress, egress] = &group.defaults;
        let held = if group.quarantine && !group.endpoints.is_empty() { Look::Red } else { Look::Plain };
        let mut row: Vec<Cell> = vec![format!("{prefix}{}", group.name).into(), kind_of(group).into()];
        row.extend([Cell::new(group.endpoints.len(), held), group.rules.into()]);
        row.extend([Cell::new(ingress, crate::rule::look(ingress)), Cell::new(egress, crate::rule::look(egress))]);
        row.push(few(&group.transfers, wide).into());
        if wide {
            row.extend([group.id.into(), human::list(&group.endpoints).into()]);
        }
        table.row(row);
    }
    table
}

/// What sort of group it is.
pub fn kind_of(group: &GroupStatus) -> &'static str {
    match group {
        GroupStatus { quarantine: true, .. } => "quarantine",
        GroupStatus { built_in: true, .. } => "built-in",
        _ => "group",
    }
}

/// Tag sources.
pub fn sources(sources: &[SourceStatus], prefix: &str, wide: bool) -> Table {
    let mut columns = vec!["NAME", "TYPE", "STATE", ">EVENTS", ">TAGS", ">MALFORMED", ">REFUSED", ">DROPPED", ">LAST"];
    if wide {
        columns.extend([">UNMATCHED", "INPUT", "LAST ERROR"]);
    }
    let mut table = Table::new(&columns);
    for source in sources {
        let bad = |count: u64| Cell::new(count, if count == 0 { Look::Plain } else { Look::Yellow });
        let mut row: Vec<Cell> = vec![format!("{prefix}{}", source.name).into(), (&source.kind).into()];
        row.extend([Cell::new(&source.state, of_state(&source.state)), source.events.into(), source.tags.into()]);
        row.extend([bad(source.malformed), bad(source.refused), bad(source.dropped)]);
        row.push(source.last_event_ms.map_or_else(|| "never".to_owned(), time::ago).into());
        if wide {
            row.extend([source.unmatched.into(), (&source.input).into(), source.last_error.clone().unwrap_or_default().into()]);
        }
        table.row(row);
    }
    table
}

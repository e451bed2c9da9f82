//! What a change does beside what it changes in the resources: rules, endpoints, live flows.

use vnet_common::api::{Effects, EndpointFlow, RuleRef};

use crate::style::{Look, Paint};
use crate::table::{Cell, Table};
use crate::{human, rule};

/// Everything, in sections; empty if there is nothing to tell.
pub fn text(effects: &Effects, paint: Paint) -> String {
    let [cut, moved] = totals(effects);
    let sections = [
        ("Rules".to_owned(), rules(effects, paint)),
        ("Endpoints affected".to_owned(), endpoints(effects).render(paint)),
        (
            format!("{} would be cut", human::count(cut, "live flow")),
            cut_table(effects).render(paint) + &more(effects.flows_cut.len(), cut),
        ),
        (
            format!("{} would be moved", human::count(moved, "live flow")),
            moved_table(effects).render(paint) + &more(effects.flows_moved.len(), moved),
        ),
    ];
    let section = |(title, lines): (String, String)| {
        let indented: String = lines.lines().map(|line| format!("  {line}\n")).collect();
        format!("{}\n{indented}", paint.paint(Look::Bold, &format!("{title}:")))
    };
    sections.into_iter().filter(|(_, lines)| !lines.is_empty()).map(section).collect()
}

/// Flows that are cut, and that are moved.
pub fn totals(effects: &Effects) -> [u64; 2] {
    let [cut, moved] = effects.flows_total;
    [cut.max(effects.flows_cut.len() as u64), moved.max(effects.flows_moved.len() as u64)]
}

/// What someone should know who applies it, or, with `dry_run`, might; each a sentence.
pub fn warnings(effects: &Effects, dry_run: bool) -> Vec<String> {
    let counted = |flows: u64| {
        let verb = if dry_run {
            "would be"
        } else if flows == 1 {
            "is"
        } else {
            "are"
        };
        format!("{} {verb}", human::count(flows, "live flow"))
    };
    let [cut, moved] = totals(effects);
    let mut warnings = Vec::new();
    if cut > 0 {
        let mut by: Vec<String> = effects.flows_cut.iter().filter_map(|(_, rule)| rule.as_ref().map(rule::placed)).collect();
        by.sort_unstable();
        by.dedup();
        let by = if by.is_empty() { String::new() } else { format!(", by {}", by.join(", ")) };
        warnings.push(format!("{} cut{by}", counted(cut)));
    }
    if moved > 0 {
        warnings.push(format!("{} moved to another member, or reset", counted(moved)));
    }
    warnings
}

fn rules(effects: &Effects, paint: Paint) -> String {
    let mut table = Table::new(&[" ", "RULE", "DIRECTION", "ACTION", "PLACE"]);
    let mut add = |sign: &str, look: Look, rules: &[RuleRef]| {
        for each in rules {
            let cells = [rule::name(each), each.direction.clone(), rule::action(each), each.place.clone()];
            table.row(std::iter::once(sign.to_owned()).chain(cells).map(|cell| Cell::new(cell, look)).collect());
        }
    };
    add("-", Look::Red, &effects.rules_removed);
    add("+", Look::Green, &effects.rules_added);
    table.render(paint)
}

fn endpoints(effects: &Effects) -> Table {
    let mut table = Table::new(&["ENDPOINT", "WHAT"]);
    for (name, what) in &effects.endpoints {
        table.row(vec![name.into(), what.into()]);
    }
    table
}

fn cut_table(effects: &Effects) -> Table {
    let mut table = Table::new(&["ENDPOINT", "FLOW", ">AGE", ">BYTES", "BY"]);
    for (flow, by) in &effects.flows_cut {
        let by = by.as_ref().map_or_else(String::new, rule::placed);
        table.row(row(flow, Cell::new(by, Look::Red)));
    }
    table
}

fn moved_table(effects: &Effects) -> Table {
    let mut table = Table::new(&["ENDPOINT", "FLOW", ">AGE", ">BYTES", "TO"]);
    for (flow, to) in &effects.flows_moved {
        table.row(row(flow, Cell::new(to, Look::Yellow)));
    }
    table
}

fn row(flow: &EndpointFlow, what: Cell) -> Vec<Cell> {
    let sign = if flow.opened == "in" { "<" } else { ">" };
    let text = format!("{} {} {sign} {}", flow.protocol, flow.local, flow.remote);
    let bytes = human::bytes(flow.bytes.iter().sum());
    vec![(&flow.endpoint).into(), text.into(), human::seconds(flow.age_seconds).into(), bytes.into(), what]
}

fn more(shown: usize, total: u64) -> String {
    match total.saturating_sub(shown as u64) {
        0 => String::new(),
        more => format!("… and {more} more\n"),
    }
}

//! What happened, and whether it should have.

use super::traffic::{REQUESTS, Row};
use anyhow::{Context as _, Result};
use vnet_common::api::LbStatus;
use vnet_tests::{Agent, Routed};

/// Prints what became of the requests and what the agent counted; gives all that is not as it should be.
pub fn print(net: &Routed, agent: &Agent<'_>, rows: &[Row]) -> Result<Vec<String>> {
    print_answers(net, rows);
    let mut faults: Vec<String> = rows.iter().flat_map(|row| faults_of(net, row)).collect();
    for (name, requests) in [("web", 2 * REQUESTS), ("dns", REQUESTS)] {
        println!("\n$ vnet-ctl lb members {name}\n{}", agent.ctl(&["lb", "members", name])?.trim_end());
        faults.extend(wrong_count(agent, name, requests)?);
    }
    println!("\n$ vnet-ctl get endpoints\n{}", agent.ctl(&["get", "endpoints"])?.trim_end());
    println!();
    if faults.is_empty() {
        println!("all as expected: every member served, the bystander was left alone, nothing was lost");
    }
    for fault in &faults {
        println!("NOT AS EXPECTED: {fault}");
    }
    Ok(faults)
}

fn print_answers(net: &Routed, rows: &[Row]) {
    print!("{:<28}{:>8}", "answered by", "sent");
    let names: Vec<&str> = net.members.iter().chain([&net.bystander]).map(|machine| machine.name.as_str()).collect();
    names.iter().for_each(|name| print!("{name:>11}"));
    println!("{:>8}", "lost");
    for row in rows {
        print!("{:<28}{:>8}", row.what, row.sent);
        names.iter().for_each(|name| print!("{:>11}", row.by(name)));
        println!("{:>8}", row.lost());
    }
}

fn faults_of(net: &Routed, row: &Row) -> Vec<String> {
    let mut faults = Vec::new();
    let what = &row.what;
    if row.lost() > 0 {
        faults.push(format!("{what}: {} of {} were not answered", row.lost(), row.sent));
    }
    if row.mistaken > 0 {
        faults.push(format!("{what}: {} times the server did not see the client's address and its own", row.mistaken));
    }
    for machine in &net.members {
        let answers = row.by(&machine.name);
        // Less than a third of its share comes about by chance once in a hundred thousand labs.
        let least = if row.balanced { row.sent / net.members.len() / 3 } else { 0 };
        if answers < least || (answers > 0 && !row.balanced) {
            faults.push(format!("{what}: {} answered {answers} of {}", machine.name, row.sent));
        }
    }
    let direct = row.by(&net.bystander.name);
    if row.balanced && direct > 0 {
        faults.push(format!("{what}: the bystander answered {direct}"));
    }
    faults
}

/// Each request was a flow of its own, and the agent counts flows. Of UDP queries, two may by chance have come from one port.
fn wrong_count(agent: &Agent<'_>, name: &str, requests: usize) -> Result<Option<String>> {
    let json = agent.ctl(&["lb", "members", name, "-o", "json"])?;
    let lb: LbStatus = serde_json::from_str(&json).with_context(|| format!("reading vnet-ctl's JSON about {name}: {json}"))?;
    let flows: u64 = lb.members.iter().map(|member| member.new_flows).sum();
    let flows = usize::try_from(flows)?;
    let by_chance = if name == "dns" { 3 } else { 0 };
    Ok((flows > requests || flows + by_chance < requests)
        .then(|| format!("{name}: {requests} requests were sent, {flows} flows were counted")))
}

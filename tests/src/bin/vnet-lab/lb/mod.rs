//! Scene `lb`: inline load balancing.

mod hands;
mod report;
mod traffic;

use anyhow::Result;
use vnet_tests::{Agent, Routed};

/// The load balancer's scene; gives whether all was as expected. Unless `once`, it stays for a person to play.
pub fn show(once: bool) -> Result<bool> {
    println!("making the network: a host that routes, and behind its devices a client, three members and a bystander");
    let mut net = Routed::new(3)?;
    for member in &mut net.members {
        member.serve_http(80)?;
        member.serve_dns(5353)?;
    }
    net.bystander.serve_http(80)?;
    println!("starting the agent, attached to client0");
    let agent = Agent::start(&net.host, &["client*"])?;
    let policy = crate::policy("lb.yaml")?;
    println!("applying {}", crate::shown(&policy)?);
    print!("{}", agent.ctl(&["apply", "-f", &policy.to_string_lossy()])?);

    println!("sending HTTP with curl and DNS queries with dig\n");
    let rows = traffic::send_all(&net)?;
    let faults = report::print(&net, &agent, &rows)?;
    crate::stay(once, &faults, || hands::print(&net, &agent))
}

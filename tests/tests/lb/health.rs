//! Members that die and come back.

use crate::support::{VIP, ask, web};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use vnet_tests::{Agent, Routed, wait_for};

#[test]
fn a_dead_member_gets_no_new_connections_in_time() -> Result<()> {
    let mut net = Routed::new(3)?;
    for m in &mut net.members {
        m.serve_http(8080)?;
    }
    let agent = Agent::start(&net.host, &["client0"])?;
    let check = "  healthCheck: { intervalMs: 200, timeoutMs: 100, rise: 1, fall: 2 }\n";
    agent.apply(&web(&net.members.iter().collect::<Vec<_>>(), 8080, check))?;
    wait_for("the members to be checked", Duration::from_secs(3), || {
        let members = agent.ctl(&["lb", "members", "web"]).ok()?;
        (!members.contains("unknown")).then_some(())
    })?;
    net.members[0].end_servers();
    let dead = Instant::now();
    // interval × fall + timeout + 100 ms
    let bound = Duration::from_millis(2 * 200 + 100 + 100);
    std::thread::sleep(bound.saturating_sub(dead.elapsed()));
    let answers = ask(&net.client.host, VIP, 60)?;
    ensure!(answers.contains_key("m2") && answers.contains_key("m3") && answers.values().sum::<usize>() == 60, "{answers:?}");
    net.members[0].serve_http(8080)?;
    wait_for("the member to be back", Duration::from_secs(3), || {
        ask(&net.client.host, VIP, 20).ok()?.contains_key("m1").then_some(())
    })
}

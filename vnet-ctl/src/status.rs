//! `status`: how the agent is.

use anyhow::Result;
use vnet_common::api::Status;
use vnet_common::api::fleet::FleetBrief;

use crate::human;
use crate::output::Session;
use crate::style::{Look, Paint};
use crate::table::{Cell, Table};

/// From here on, a table's fullness is worth a look.
const NEARLY_FULL: u64 = 80;

/// Runs it.
pub async fn run(session: &Session) -> Result<u8> {
    let status: Status = session.agent.get("/v1/status").await?;
    session.show(&status, |status| text(status, session.paint))?;
    Ok(0)
}

fn text(status: &Status, paint: Paint) -> String {
    let Status { version, pid, abi, uptime_seconds, .. } = status;
    let uptime = human::seconds(*uptime_seconds);
    let running = paint.paint(Look::Green, "running");
    let mut text = format!("vnet-agent {version}: {running} for {uptime}, process {pid}, map layout {abi}\n");
    let lines = [
        ("Policy generation", status.generation.to_string()),
        ("Endpoints", status.endpoints.to_string()),
        ("Load balancers", status.load_balancers.to_string()),
        ("Memory", format!("agent {}, maps {}", human::bytes(status.rss_bytes), human::bytes(status.map_memory_bytes))),
    ];
    for (title, value) in lines {
        text += &format!("  {title:<18} {value}\n");
    }
    text += &status.fleet.as_ref().map(|fleet| self::fleet(fleet, paint)).unwrap_or_default();
    text += &alarms(&status.alarms, paint);
    if !status.maps.is_empty() {
        text += "\n";
        text += &maps(status).render(paint);
    }
    text
}

fn fleet(fleet: &FleetBrief, paint: Paint) -> String {
    let look = if fleet.alive < fleet.hosts { Look::Yellow } else { Look::Green };
    let alive = paint.paint(look, &format!("{} of {} alive", fleet.alive, human::count(fleet.hosts.into(), "host")));
    let heard = match &fleet.connected {
        Some(member) => format!("connected to {member}"),
        None => paint.paint(Look::Red, &format!("not heard of for {}", human::seconds(fleet.silent_seconds))),
    };
    let host = format!("this host is {}, {alive}", fleet.host);
    format!("  {:<18} {host}\n  {:<18} {}, {heard}\n", "Fleet", "Store", fleet.store)
}

fn alarms(alarms: &[String], paint: Paint) -> String {
    if alarms.is_empty() {
        return format!("  {:<18} {}\n", "Alarms", paint.paint(Look::Green, "none"));
    }
    let alarm = |alarm: &String| format!("    {} {alarm}\n", paint.paint(Look::Red, "!"));
    let title = format!("{}:", human::count(alarms.len() as u64, "alarm"));
    format!("  {}\n{}", paint.paint(Look::Red, &title), alarms.iter().map(alarm).collect::<String>())
}

fn maps(status: &Status) -> Table {
    let mut table = Table::new(&["MAP", ">USED", ">CAPACITY", ">FULL", ">MEMORY", "HOLDS"]);
    for map in &status.maps {
        let used = map.used.map(|used| u64::from(used) * 100 / u64::from(map.capacity.max(1)));
        let look = if used.is_some_and(|used| used >= NEARLY_FULL) { Look::Red } else { Look::Plain };
        table.row(vec![
            (&map.name).into(),
            map.used.map_or_else(String::new, |used| used.to_string()).into(),
            map.capacity.into(),
            Cell::new(used.map_or_else(String::new, |used| format!("{used}%")), look),
            human::bytes(map.memory_bytes).into(),
            (&map.holds).into(),
        ]);
    }
    table
}

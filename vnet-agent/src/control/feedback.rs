//! Load feedback: what was counted of members, and what is to be done about it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use vnet_common::fleet::MemberKey;
use vnet_common::lb::state;

use super::{Agent, State};
use crate::datapath::Datapath;
use crate::fleet::load::{Counted, Group, Settings};
use crate::lb::compile::{Group as Compiled, Member, members};
use crate::lb::feedback::adjusts_weights;
use crate::lb::status::MemberRows;
use crate::resource::Preference;

/// A member's row, and the serial of the member.
type Row = (u32, u32);

impl Agent {
    /// What was counted so far of the members of all load balancers, where that is anything. Fails while it is not known what the maps say.
    pub fn member_loads(&self) -> Result<Vec<(MemberKey, Counted)>> {
        let (rows, datapath) = self.ask(|s| Ok((s.member_rows(), Arc::clone(&s.datapath))))?;
        let rows = rows.context("what members had to do cannot be counted: the load balancer's maps were not read yet")?;
        // Counters are read without the lock.
        let counted = rows.into_iter().map(|(key, row)| Ok((key, counted(&datapath, row)?)));
        let loads: Result<Vec<(MemberKey, Counted)>> = counted.collect();
        Ok(loads?.into_iter().filter(|(_, c)| c.new > 0 || c.active > 0).collect())
    }

    /// By what members' weights are to be multiplied, in percent, and their flows of other hosts' clients. Members that are not named are
    /// as configured, and have none.
    pub fn set_feedback(&self, factors: &HashMap<MemberKey, u32>, elsewhere: &HashMap<MemberKey, u32>) {
        self.event(|s| {
            s.policy.set_feedback(factors, elsewhere);
            s.refresh();
        });
    }

    /// The groups whose members' weights follow their load.
    pub fn feedback_groups(&self) -> Vec<Group> {
        // Once everything was detached there are none.
        self.ask(|s| Ok(s.feedback_groups())).unwrap_or_default()
    }
}

impl State {
    fn member_rows(&self) -> Option<Vec<(MemberKey, Row)>> {
        let groups = self.policy.desired().groups();
        let rows = MemberRows::new(self.policy.known()?, groups);
        Some(members(groups).filter_map(|(g, m)| Some((key(g, m), rows.find(g, m)?))).collect())
    }

    fn feedback_groups(&self) -> Vec<Group> {
        let mut groups = Vec::new();
        for lb in self.policy.inputs().load_balancers().filter(|lb| adjusts_weights(lb)) {
            let Some(settings) = lb.spec.feedback.as_ref().and_then(Settings::of) else { continue };
            let near = lb.spec.prefer != Preference::Any;
            for g in self.policy.desired().of(&lb.metadata.name) {
                groups.extend(split(g, near).into_iter().map(|(zone, members)| Group {
                    lb: g.lb.clone(),
                    port: g.port,
                    zone,
                    settings,
                    members,
                }));
            }
        }
        groups
    }
}

/// The members that take new flows, of some host at least, with their weights; where near ones are preferred, by their zones.
fn split(g: &Compiled, near: bool) -> BTreeMap<Option<String>, Vec<(SocketAddr, u16)>> {
    let serves = |m: &&Member| m.weight > 0 && (m.share > 0 || m.state == state::ACTIVE && !m.backup);
    let mut zones: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for m in g.members.iter().filter(serves) {
        let zone = m.zone.clone().filter(|_| near);
        zones.entry(zone).or_default().push((SocketAddr::new(m.address, m.port), m.weight));
    }
    zones
}

fn key(g: &Compiled, m: &Member) -> MemberKey {
    MemberKey { lb: g.lb.clone(), port: g.port, at: SocketAddr::new(m.address, m.port) }
}

fn counted(datapath: &Datapath, (row, serial): Row) -> Result<Counted> {
    let maps = datapath.maps();
    let (active, c) = (maps.active(row).into(), maps.member_counters(row)?);
    if c.new_flows == 0 {
        return Ok(Counted { serial, active, ..Counted::default() });
    }
    let a = maps.member_answers(row)?;
    Ok(Counted {
        serial,
        active,
        new: c.new_flows,
        packets: c.packets.iter().sum(),
        bytes: c.bytes.iter().sum(),
        resets: a.resets,
        connected: a.connects.iter().sum(),
        connect_us: a.connect_us,
    })
}

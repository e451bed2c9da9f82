//! Maps in memory take every write of every plan, and are checked after each: a crash may come there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vnet_common::map::MAGLEV_BLOCK;

use super::*;
use crate::lb::compile::Place;
use crate::lb::feedback::Hint;
use crate::lb::live::{MemberKey, length_bit};
use crate::random::Random;
use crate::resource::Protocol;

const LIMITS: Limits = Limits { vips: 64, groups: 16, members: 150, blocks: 2100 };

/// A plan for all groups.
fn plan(desired: &[Group], live: &Live, limits: &Limits, busy: &[Range<u32>]) -> Result<Plan, NoRoom> {
    super::plan(desired, &Known::new(live.clone()), limits, busy)
}

/// The members of a group, with their rows.
fn members_of(live: &Live, group: u32) -> impl Iterator<Item = (u32, &MemberRow)> {
    live.members.iter().filter(move |(_, m)| m.group == group && m.state != state::NONE).map(|(row, m)| (*row, m))
}

/// The maps.
struct Maps {
    live: Live,
    blocks: Vec<[u32; MAGLEV_BLOCK]>,
    /// The rows that occur in a table, by its word: reading whole tables after every write takes minutes.
    rows: HashMap<u64, BTreeSet<u32>>,
}

impl Maps {
    fn new() -> Self {
        Self { live: Live::default(), blocks: vec![[0; MAGLEV_BLOCK]; LIMITS.blocks as usize], rows: HashMap::new() }
    }

    fn write(&mut self, w: &Write) {
        self.live.record(w);
        match w {
            Write::Blocks { first, blocks } => {
                self.blocks[*first as usize..][..blocks.len()].copy_from_slice(blocks);
                self.rows.clear();
            }
            Write::Vip { .. } => assert!(self.live.vips.len() <= LIMITS.vips as usize),
            Write::Group { row, .. } => assert!(*row < LIMITS.groups),
            Write::Member { row, .. } => assert!(*row < LIMITS.members),
            _ => {}
        }
    }

    /// What an agent reads that has just started.
    fn read_back(&self) -> Live {
        let mut live = self.live.clone();
        for g in live.groups.values_mut() {
            let last = table_blocks(g.row.table).last();
            g.fingerprint = last.map_or(0, |b| table::fingerprint_in(&self.blocks[b as usize]));
        }
        live
    }

    fn slots(&self, table: u64) -> Vec<u32> {
        let blocks = table_blocks(table);
        let all = self.blocks[blocks.start as usize..blocks.end as usize].iter().flatten();
        all.copied().take(table as u32 as usize).collect()
    }

    /// Every VIP leads to a group that is meant, and from there to members of that group, or to nobody.
    /// `finished`: no write of the plan is left.
    fn check(&mut self, finished: bool) {
        let mut tables: Vec<(u32, Range<u32>)> = Vec::new();
        for (key, vip) in self.live.vips.iter().filter(|(k, _)| !k.is_address()) {
            let g = self.live.groups.get(&vip.group).unwrap_or_else(|| panic!("{key:?} leads to no group"));
            assert_eq!(g.row.serial, vip.serial, "{key:?} leads to another group");
            if !self.rows.contains_key(&g.row.table) {
                self.rows.insert(g.row.table, self.slots(g.row.table).into_iter().collect());
            }
            for row in &self.rows[&g.row.table] {
                let m = self.live.members.get(row).unwrap_or_else(|| panic!("{key:?} leads to member {row}, which is none"));
                assert_eq!((m.group, m.state != state::NONE), (vip.group, true), "{key:?} leads to member {row}: {m:?}");
            }
            tables.push((vip.group, table_blocks(g.row.table)));
            let itself = VipKey { version: key.version & 7, port: [0; 2], protocol: 0, ..*key };
            let lengths = self.live.vips.get(&itself).map_or(0, |row| row.group);
            assert!(!finished || !key.is_range() || lengths & length_bit(key) != 0, "{key:?} is not found: {lengths:b}");
        }
        for (i, (g, a)) in tables.iter().enumerate() {
            for (h, b) in &tables[i + 1..] {
                assert!(g == h || a.end <= b.start || b.end <= a.start, "tables of groups {g} and {h} overlap");
            }
        }
    }

    fn apply(&mut self, plan: &Plan, busy: &[Range<u32>], until: usize) {
        let mut in_use: Vec<Range<u32>> = self.live.groups.values().map(|g| table_blocks(g.row.table)).collect();
        in_use.extend_from_slice(busy);
        for (i, w) in plan.writes.iter().enumerate().take(until) {
            if let Write::Blocks { first, blocks } = w {
                let end = first + blocks.len() as u32;
                assert!(in_use.iter().all(|r| end <= r.start || r.end <= *first), "a table that is in use is overwritten");
            }
            self.write(w);
            self.check(i + 1 == plan.writes.len());
        }
    }
}

/// What clients can tell: by VIP, port and protocol, the group's flags, members, and who is in the table.
type View = BTreeMap<VipKey, (u32, BTreeMap<([u8; 16], [u8; 2]), (u8, Place)>, BTreeSet<([u8; 16], [u8; 2])>)>;

fn view_of_maps(maps: &Maps) -> View {
    let mut view = View::new();
    for (key, vip) in maps.live.vips.iter().filter(|(k, _)| !k.is_address()) {
        let g = &maps.live.groups[&vip.group];
        let place = |m: &MemberRow| Place { mac: m.mac, ifindex: m.ifindex, segment: m.segment };
        let members = members_of(&maps.live, vip.group).map(|(_, m)| ((m.addr, m.port), (m.state, place(m)))).collect();
        let slots = maps.slots(g.row.table);
        let table = slots.iter().map(|row| (maps.live.members[row].addr, maps.live.members[row].port)).collect();
        view.insert(*key, (g.row.flags, members, table));
    }
    view
}

fn view_of(groups: &[Group]) -> View {
    let mut view = View::new();
    for g in groups {
        let key = |m: &Member| (wide(m.address), m.port.to_be_bytes());
        let members: BTreeMap<_, _> = g.members.iter().map(|m| (key(m), (m.state, m.place))).collect();
        let table: BTreeSet<_> = g.members.iter().filter(|m| m.state == state::ACTIVE).map(key).collect();
        for v in &g.vips {
            for key in port_keys(*v, (g.port, g.last_port), protocol_number(g.protocol)) {
                view.insert(key, (g.flags, members.clone(), table.clone()));
            }
        }
    }
    view
}

/// Whether flows may depend on something that is in `old` and not in `new`.
fn lost(old: &View, new: &View) -> bool {
    old.iter().any(|(vip, (flags, members, _))| match new.get(vip) {
        None => true,
        Some((f, m, _)) => {
            let moved = |k| flags & flags::REDIRECT != 0 && m.get(k).is_some_and(|(_, p)| p.ifindex != members[k].1.ifindex);
            f != flags || members.keys().any(|k| !m.contains_key(k) || moved(k))
        }
    })
}

/// The member rows by what they are.
fn member_rows(live: &Live) -> HashMap<(VipKey, MemberKey), (u32, u32)> {
    let ports = live.vips.iter().filter(|(k, _)| !k.is_address());
    let members =
        ports.flat_map(|(k, v)| members_of(live, v.group).map(|(row, m)| ((*k, (m.group, m.addr, m.port)), (row, m.serial))));
    members.collect()
}

impl Random {
    fn group(&mut self, lb: usize, v4: bool, port: u16) -> Group {
        let vip = |i: u64| -> IpAddr {
            if v4 { [10, 0, lb as u8, i as u8].into() } else { [0xFD00, 0, 0, 0, 0, 0, lb as u16, i as u16].into() }
        };
        let vips: BTreeSet<IpAddr> = (0..=self.below(2)).map(|_| vip(self.below(3))).collect();
        let mut members = Vec::new();
        for i in 0..12u16 {
            if self.below(3) == 0 {
                continue;
            }
            let address: IpAddr = if v4 { [10, 9, 0, i as u8].into() } else { [0xFD00, 9, 0, 0, 0, 0, 0, i].into() };
            let weight = self.below(4) as u16;
            let state =
                if weight == 0 { state::DRAINING } else { [state::ACTIVE, state::ACTIVE, state::DOWN][self.below(3) as usize] };
            let place = Place { mac: [self.below(2) as u8; 6], ifindex: self.below(2) as u32 * 5, segment: 0 };
            let share = if state == state::ACTIVE { u32::from(weight) * 100 } else { 0 };
            members.push(Member {
                name: address.to_string(),
                address,
                port: 8080,
                weight,
                share,
                hint: Hint { percent: 100, elsewhere: self.below(2) as u32 * 7 },
                zone: None,
                backup: false,
                state,
                place,
                check: None,
            });
        }
        let algorithm = [flags::MAGLEV, flags::MAGLEV, flags::ROUND_ROBIN, flags::LEAST_CONNECTIONS][self.below(4) as usize];
        let flags = algorithm | if self.below(5) == 0 { flags::EMPTY_DROP } else { flags::REDIRECT };
        // Now and then a few ports from there on: as many rows as blocks, and bits in the row of the address.
        let last_port = port + [0, 0, 0, 1, 5][self.below(5) as usize];
        let vips = vips.into_iter().collect();
        Group { lb: format!("lb{lb}"), vips, port, last_port, protocol: Protocol::Tcp, flags, members }
    }

    fn desired(&mut self, before: &[Group]) -> Vec<Group> {
        let mut out = Vec::new();
        for lb in 0..3 {
            for (v4, port) in [(true, 80), (true, 443), (false, 80)] {
                let same = before.iter().find(|g| g.lb == format!("lb{lb}") && g.port == port && g.vips[0].is_ipv4() == v4);
                match (self.below(4), same) {
                    (0, _) => {}
                    (1 | 2, Some(same)) => out.push(same.clone()),
                    _ => out.push(self.group(lb, v4, port)),
                }
            }
        }
        out
    }
}

#[test]
fn any_sequence_of_changes_and_crashes_leaves_the_datapath_whole_and_ends_as_desired() {
    let (mut refused, mut planned, mut crashed) = (0, 0, 0);
    for seed in 1..=12 {
        let mut random = Random(seed * 0x9E37_79B9);
        let mut maps = Maps::new();
        let (mut desired, mut busy): (Vec<Group>, Vec<Range<u32>>) = (Vec::new(), Vec::new());
        for _ in 0..30 {
            let next = random.desired(&desired);
            let Ok(p) = plan(&next, &maps.live, &LIMITS, &busy) else {
                refused += 1;
                busy.clear();
                continue;
            };
            planned += 1;
            if random.below(4) == 0 {
                crashed += 1;
                maps.apply(&p, &busy, random.below(p.writes.len() as u64 + 1) as usize);
                assert_eq!(maps.live, maps.read_back(), "all that a plan needs is in the maps");
                busy.clear();
                desired = Vec::new();
                continue;
            }
            let (old, rows) = (view_of_maps(&maps), member_rows(&maps.live));
            maps.apply(&p, &busy, usize::MAX);
            let new = view_of_maps(&maps);
            assert_eq!(new, view_of(&next), "seed {seed}");
            let addresses = maps.live.vips.keys().map(|k| VipKey { port: [0, 0], protocol: 0, version: k.version & 7, ..*k });
            assert!(addresses.into_iter().all(|k| maps.live.vips.contains_key(&k)), "seed {seed}: no row for the address itself");
            assert!(p.bump || !lost(&old, &new), "seed {seed}: flows would go on with what is gone");
            for (member, row) in member_rows(&maps.live) {
                let of = |g: &Group| port_keys(g.vips[0], (g.port, g.last_port), 6);
                let vip_moved = !next.iter().any(|g| desired.contains(g) && of(g).contains(&member.0));
                assert!(vip_moved || rows.get(&member).is_none_or(|r| *r == row), "seed {seed}: {member:?} changed rows");
            }
            let again = plan(&next, &maps.live, &LIMITS, &p.freed).unwrap();
            assert_eq!(again, Plan::default(), "seed {seed}: nothing is left to do");
            (desired, busy) = (next, p.freed);
        }
    }
    assert!(planned > 200 && crashed > 50 && refused > 5, "{planned} planned, {crashed} crashed, {refused} refused");
}

fn group_of(members: &[u8]) -> Group {
    let member = |i: &u8| Member {
        name: i.to_string(),
        address: [10, 9, 0, *i].into(),
        port: 8080,
        weight: 1,
        share: 100,
        hint: Hint::default(),
        zone: None,
        backup: false,
        state: state::ACTIVE,
        place: Place::default(),
        check: None,
    };
    let members = members.iter().map(member).collect();
    let vips = vec![[10, 0, 0, 1].into()];
    Group { lb: "web".into(), vips, port: 80, last_port: 80, protocol: Protocol::Tcp, flags: 0, members }
}

/// Plans and applies from nothing to `a` to `b`; gives the second plan.
fn change(a: &[Group], b: &[Group]) -> Plan {
    let mut maps = Maps::new();
    maps.apply(&plan(a, &maps.live, &LIMITS, &[]).unwrap(), &[], usize::MAX);
    let p = plan(b, &maps.live, &LIMITS, &[]).unwrap();
    maps.apply(&p, &[], usize::MAX);
    p
}

#[test]
fn health_weights_and_new_members_never_bump_the_generation() {
    let (mut drained, mut heavier) = (group_of(&[1, 2]), group_of(&[1, 2]));
    drained.members[0].state = state::DOWN;
    heavier.members[0].weight = 9;
    for other in [drained, heavier, group_of(&[1, 2, 3])] {
        let p = change(&[group_of(&[1, 2])], &[other]);
        assert!(!p.bump && !p.writes.is_empty());
    }
}

#[test]
fn what_flows_depend_on_bumps_the_generation() {
    let old = [group_of(&[1, 2])];
    let (mut other_flags, mut other_port) = (group_of(&[1, 2]), group_of(&[1, 2]));
    other_flags.flags = flags::REMOVED_REPICK;
    other_port.port = 81;
    for other in [vec![group_of(&[1])], vec![], vec![other_flags], vec![other_port]] {
        assert!(change(&old, &other).bump, "{other:?}");
    }
    let mut two_vips = group_of(&[1, 2]);
    two_vips.vips.push([10, 0, 0, 2].into());
    assert!(change(&[two_vips], &old).bump, "the group stays, and one of its VIPs goes");
}

#[test]
fn a_member_that_moves_bumps_the_generation_if_flows_know_where_it_was() {
    for (flags, bump) in [(0, false), (flags::REDIRECT, true)] {
        let (mut here, mut there) = (group_of(&[1, 2]), group_of(&[1, 2]));
        (here.flags, there.flags) = (flags, flags);
        there.members[0].place.ifindex = 5;
        assert_eq!(change(&[here], &[there]).bump, bump);
    }
}

#[test]
fn weights_write_only_the_table_and_the_group() {
    let mut heavier = group_of(&[1, 2]);
    heavier.members[0].weight = 9;
    let p = change(&[group_of(&[1, 2])], &[heavier]);
    assert!(matches!(&p.writes[..], [Write::Blocks { .. }, Write::Group { .. }]), "{:?}", p.writes);
    assert_eq!((p.freed.len(), &p.freed[0]), (1, &(0..16)));
}

#[test]
fn a_vip_that_moves_to_another_load_balancer_is_never_without_one() {
    let (mut both, mut a, mut b) = (group_of(&[1, 2]), group_of(&[1, 2]), group_of(&[1, 2]));
    both.vips.push([10, 0, 0, 2].into());
    b.vips = vec![[10, 0, 0, 2].into()];
    b.lb = "zeb".into();
    let p = change(&[both], &[a.clone(), b]);
    assert!(p.bump);
    let vips: Vec<&Write> = p.writes.iter().filter(|w| matches!(w, Write::Vip { .. })).collect();
    assert!(matches!(vips[..], [Write::Vip { value: Some(_), .. }]), "switched in one write: {vips:?}");
    a.vips = vec![[10, 0, 0, 3].into()];
    let mut kept = group_of(&[1, 2]);
    kept.vips.push([10, 0, 0, 3].into());
    assert!(!change(&[a], &[kept]).bump, "a group is recognised by any of its VIPs");
}

#[test]
fn an_address_appears_last_and_disappears_first() {
    let p = change(&[], &[group_of(&[1])]);
    assert!(matches!(p.writes.last(), Some(Write::Filter { bits, .. }) if *bits != 0));
    let p = change(&[group_of(&[1])], &[]);
    assert!(matches!(p.writes.first(), Some(Write::Filter { bits: 0, .. })), "{:?}", p.writes);
}

#[test]
fn replies_of_members_are_looked_at_as_long_as_they_may_come() {
    let is_member_bit = |w: &Write| matches!(w, Write::Filter { word, .. } if *word as usize >= FILTER_WORDS / 2);
    let p = change(&[], &[group_of(&[1])]);
    let group = p.writes.iter().position(|w| matches!(w, Write::Group { .. }));
    assert!(p.writes.iter().position(is_member_bit) < group, "before any packet is sent to it: {:?}", p.writes);
    let p = change(&[group_of(&[1])], &[]);
    assert!(p.writes.last().is_some_and(is_member_bit), "{:?}", p.writes);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let fits = Limits { vips: 2, groups: 1, members: 2, blocks: 16 };
    let refuse = |limits: Limits| plan(&[group_of(&[1, 2])], &Live::default(), &limits, &[]).unwrap_err().to_string();
    assert!(plan(&[group_of(&[1, 2])], &Live::default(), &fits, &[]).is_ok());
    for (limits, map, knob) in [
        (Limits { vips: 1, ..fits }, "VIPS", "--max-vips"),
        (Limits { groups: 0, ..fits }, "GROUPS", "--max-groups"),
        (Limits { members: 1, ..fits }, "MEMBERS", "--max-members"),
        (Limits { blocks: 15, ..fits }, "MAGLEV", "--maglev-blocks"),
    ] {
        let message = refuse(limits);
        for part in ["load balancer web", map, knob] {
            assert!(message.contains(part), "{message}");
        }
    }
}

//! Random histories: tags, time with jumps, operators, resources, failures and kills. After each step the outcome is
//! checked against what a reader of the audit log would expect, with criteria that are evaluated here, not there.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::random::Random;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const TAGS: [&str; 4] = ["bad", "worse", "clean", "other"];
/// Moves in a window that group `db` allows.
const BRAKE: (usize, u64) = (2, 60_000);

/// What the resources say at the moment.
#[derive(Clone, Copy)]
struct Variant {
    /// From what severity on `bad` moves.
    severity: u8,
    min_hold: u64,
    max_hold: u64,
}

const VARIANTS: [Variant; 2] =
    [Variant { severity: 4, min_hold: 0, max_hold: 200 }, Variant { severity: 6, min_hold: 15, max_hold: 90 }];

fn resources(v: Variant) -> String {
    let Variant { severity, min_hold, max_hold } = v;
    let group = |name: &str, brakes: &str| {
        format!(
            r#"---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: {{ name: {name} }}
spec:
  selector: {{ matchLabels: {{ app: {name} }} }}{brakes}
  transfers:
    - {{ name: worse, priority: 1, to: strict, when: 'tags.exists(t, t.name == "worse")', releaseWhen: 'tags.exists(t, t.name == "clean")', minHoldSeconds: {min_hold} }}
    - {{ name: bad, priority: 2, to: lax, when: 'tags.exists(t, t.name == "bad" && t.severity >= {severity})', minHoldSeconds: {min_hold}, maxHoldSeconds: {max_hold} }}
    - {{ name: ask, priority: 3, to: strict, mode: require-approval, when: 'tags.exists(t, t.name == "other" && t.severity >= 5)' }}
    - {{ name: try, priority: 4, to: lax, mode: dry-run, when: 'tags.size() > 0' }}
"#
        )
    };
    let source = "apiVersion: vnet/v1alpha1\nkind: TagSource\nmetadata: { name: ids }\nspec: { type: clamav, allow: [{ tag: '*' }], lostAfterSeconds: 45 }\n";
    let brakes = format!("\n  brakes: {{ maxEndpoints: {}, windowSeconds: {} }}", BRAKE.0, BRAKE.1 / 1000);
    [source, &group("web", ""), &group("db", &brakes)].concat()
}

/// Would this transfer let go, by these tags?
fn over(transfer: &str, v: Variant, tags: &[(&str, &str, u8)]) -> bool {
    let any = |name: &str, least: u8| tags.iter().any(|t| t.1 == name && t.2 >= least);
    match transfer {
        "worse" => any("clean", 0),
        "bad" => !any("bad", v.severity),
        "ask" => !any("other", 5),
        _ => false,
    }
}

/// A tag as records show it, `source/name (severity n): evidence`: source, name and severity.
fn tag_in(line: &str) -> Option<(&str, &str, u8)> {
    let (tag, rest) = line.split_once(" (severity ")?;
    let (source, name) = tag.split_once('/')?;
    Some((source, name, rest.split_once(')')?.0.parse().ok()?))
}

/// What a reader of the log knows of an endpoint.
#[derive(Clone, Default)]
struct Known {
    /// The quarantine group.
    held: Option<String>,
    /// The transfer, its variant, and when it took over.
    by: Option<(String, usize, u64)>,
    /// Not before.
    not_before: u64,
}

struct Driver {
    w: World,
    r: Random,
    /// Milliseconds that passed.
    at: u64,
    variant: usize,
    known: BTreeMap<String, Known>,
    read: usize,
    /// When group `db` was left by transfers.
    left: VecDeque<u64>,
    never: BTreeSet<String>,
    said: String,
    kills: u32,
    releases: u32,
}

impl Driver {
    fn new(seed: u64) -> Self {
        let mut w = World::new(&resources(VARIANTS[0]));
        w.endpoints.clear();
        for (n, name) in NAMES.iter().enumerate() {
            let app = if n < 2 { "web" } else { "db" };
            w.endpoints.insert((*name).into(), BTreeMap::from([("app".into(), app.into())]));
            w.rows.devices.lock().unwrap().insert((*name).into());
        }
        w.set_inputs();
        Self {
            w,
            r: Random(seed),
            at: 0,
            variant: 0,
            known: BTreeMap::new(),
            read: 0,
            left: VecDeque::new(),
            never: BTreeSet::new(),
            said: String::new(),
            kills: 0,
            releases: 0,
        }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.r.index(NAMES.len())]
    }

    /// One step, with what it says about itself.
    fn step(&mut self) {
        let name = self.name();
        let tag = TAGS[self.r.index(TAGS.len())];
        match self.r.below(20) {
            0..=5 => {
                let ttl = [None, Some(5), Some(20), Some(70)][self.r.index(4)];
                let on_expiry = if self.r.one_in(4) { OnExpiry::Hold } else { OnExpiry::Release };
                let severity = self.r.byte(11);
                self.said = format!("set {name} {tag} {severity} {ttl:?} {on_expiry:?}");
                self.maybe_killed(|w| w.set_for(name, tag, severity, ttl, on_expiry));
            }
            6 | 7 => {
                self.said = format!("clear {name} {tag}");
                self.maybe_killed(|w| w.clear(name, tag));
            }
            8..=12 => {
                let ms = [1, 999, 4_000, 20_000][self.r.index(4)];
                self.said = format!("pass {ms}");
                self.pass(ms);
            }
            13 => {
                let hours = self.r.below(200) as i64 - 100;
                self.w.clock.jump(hours * 3_600_000);
                self.said = format!("jump {hours}h");
            }
            14 | 15 => {
                let verb = ["approve", "dismiss", "hold", "release", "never", "unnever", "unnever"][self.r.index(7)];
                let group = (verb == "hold").then_some(if self.r.one_in(2) { "strict" } else { "lax" });
                self.said = format!("{verb} {name} {group:?}");
                self.maybe_killed(|w| drop(w.operate(name, verb, group, "random")));
            }
            16 => self.change_resources(name),
            17 => {
                self.said = "heard".into();
                self.w.service().heard("ids");
            }
            18 => {
                self.said = "store fails".into();
                self.w.journal.failing.store(true, Ordering::Relaxed);
            }
            _ => {
                self.said = "restart".into();
                self.restart();
            }
        }
        self.check();
        if self.r.one_in(3) {
            self.w.journal.failing.store(false, Ordering::Relaxed);
            self.w.store();
            self.said += ", store works";
            self.check();
        }
    }

    fn change_resources(&mut self, name: &str) {
        self.catch_up();
        match self.r.below(4) {
            0 => {
                self.variant = 1 - self.variant;
                self.said = format!("variant {}", self.variant);
                let yaml = resources(VARIANTS[self.variant]);
                self.maybe_killed(|w| w.resources(&yaml));
                self.w.set_inputs();
            }
            1 => {
                let app = ["web", "db", "none"][self.r.index(3)];
                self.said = format!("{name} is {app}");
                self.w.endpoints.insert(name.into(), BTreeMap::from([("app".into(), app.into())]));
                self.w.set_inputs();
            }
            2 => {
                self.said = format!("{name} went and came");
                let labels = self.w.endpoints.remove(name);
                self.w.set_inputs();
                self.w.endpoints.extend(labels.map(|labels| (name.to_owned(), labels)));
                self.w.set_inputs();
            }
            _ => {
                self.said = "strict went and came".into();
                let all = self.w.groups.clone();
                self.w.delete_group("strict");
                self.w.groups = all;
                self.w.set_inputs();
            }
        }
    }

    /// Records are read when they are stored: neither time nor resources must be others by then.
    fn catch_up(&mut self) {
        self.w.journal.failing.store(false, Ordering::Relaxed);
        self.w.store();
        self.check();
    }

    fn pass(&mut self, ms: u64) {
        self.catch_up();
        let end = self.at + ms;
        while self.at < end {
            let next = self.w.service().next_deadline().map_or(end - self.at, |d| (d.as_millis() as u64).min(end - self.at));
            self.w.clock.pass(next);
            self.at += next;
            self.w.service().tick();
            self.w.store();
            self.check();
        }
    }

    /// Does it, and may be killed in the middle.
    fn maybe_killed(&mut self, f: impl FnOnce(&mut World)) {
        if self.r.one_in(2) {
            return f(&mut self.w);
        }
        self.w.fuse.set(Some(self.r.below(6) as u32));
        let killed = catch_unwind(AssertUnwindSafe(|| f(&mut self.w))).is_err();
        self.w.fuse.set(None);
        if killed {
            self.said += ", killed";
            self.kills += 1;
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.w.journal.failing.store(false, Ordering::Relaxed);
        let enforced: Vec<Pinned> = self.w.rows.pinned().unwrap();
        let stored = self.w.journal.saved.lock().unwrap().members.clone();
        self.w.service = None;
        if self.r.one_in(4) {
            self.w.clock.reboot(3_600_000);
            // A reboot leaves no rows.
            self.w.rows.rows.lock().unwrap().clear();
            self.said += ", rebooted";
        }
        let rows = self.w.rows.rows.lock().unwrap().clone();
        self.w.start();
        for pin in enforced.iter().filter(|pin| pin.quarantined && rows.contains_key(&pin.endpoint)) {
            let row = stored.get(&pin.endpoint).cloned().unwrap_or_default();
            let let_go = row.opening && row.moves >= pin.moves;
            // A criterion may have ended with the time that passed meanwhile: then the log says so, see `check`.
            let released = self.w.log(&pin.endpoint).last().is_some_and(|r| r.starts_with("release"));
            let held = self.w.assignment(&pin.endpoint).quarantined;
            assert!(held || let_go || released, "{}: {pin:?} {row:?}", self.said);
        }
        // Devices get their rows anew.
        for name in NAMES {
            self.w.service().attached(name);
        }
    }

    fn check(&mut self) {
        if self.w.journal.failing.load(Ordering::Relaxed) {
            return;
        }
        let records = self.w.service().audit(None, usize::MAX).unwrap();
        for record in &records[self.read..] {
            self.follow(record);
        }
        self.read = records.len();
        let assignments = self.w.service().assignments();
        for name in NAMES {
            let Some(assignment) = assignments.get(name) else { continue };
            let known = self.known.get(name).cloned().unwrap_or_default();
            let place = format!("seed step `{}`: {name} {assignment:?}", self.said);
            assert_eq!(known.held, assignment.quarantined.then(|| assignment.group.clone()), "the log explains it: {place}");
            assert_eq!(self.w.rows.held_in(name), known.held, "the datapath has it: {place}");
            assert!(assignment.quarantined || assignment.group == assignment.base, "{place}");
        }
        let never: BTreeSet<String> = self.w.service().quarantine().unwrap().never.into_iter().collect();
        assert_eq!(never, self.never, "the log explains it: `{}`", self.said);
    }

    fn follow(&mut self, record: &AuditRecord) {
        let place = format!("step `{}`: {record:?}", self.said);
        let never = self.never.contains(&record.endpoint);
        let known = self.known.entry(record.endpoint.clone()).or_default();
        match record.action.as_str() {
            "move" | "hold" => {
                // A kill may have lost that it was taken off the list, but not that it was moved since.
                assert!(!never || known.held.is_some(), "on the list of those that are never moved: {place}");
                let v = VARIANTS[self.variant];
                if record.action == "move" && record.who == "transfer" && known.held.is_none() && record.from == "db" {
                    self.left.retain(|at| at + BRAKE.1 > self.at);
                    self.left.push_back(self.at);
                    assert!(self.left.len() <= BRAKE.0, "brakes: {place}");
                }
                known.held = Some(record.to.clone());
                known.by = (record.action == "move").then(|| (record.transfer.clone(), self.variant, self.at));
                let min =
                    if record.action == "move" && matches!(record.transfer.as_str(), "worse" | "bad") { v.min_hold } else { 0 };
                known.not_before = (self.at + min * 1000).max(if record.action == "move" { known.not_before } else { 0 });
            }
            "recover" => {
                let held = matches!(record.to.as_str(), "strict" | "lax");
                known.held = held.then(|| record.to.clone());
                if !held || record.from != record.to {
                    known.by = known.by.take().filter(|_| held);
                }
            }
            "never" => drop(self.never.insert(record.endpoint.clone())),
            "unnever" => drop(self.never.remove(&record.endpoint)),
            "break-glass" => {
                assert!(record.who == USER && known.held.is_some(), "{place}");
                *known = Known::default();
            }
            "release" => {
                self.releases += 1;
                assert!(known.held.is_some() && record.who == "transfer", "{place}");
                let by = known.by.take();
                let (transfer, variant, since) = by.unwrap_or_else(|| panic!("only transfers let go: {place}"));
                assert_eq!(transfer, record.transfer, "{place}");
                let v = VARIANTS[variant];
                let longest = transfer == "bad" && self.at >= since + v.max_hold * 1000;
                if record.reason.contains("longest") {
                    assert!(longest, "{place}");
                } else {
                    assert!(self.at >= known.not_before, "its minimum hold is not over: {place}");
                    let tags: Vec<(&str, &str, u8)> = record.evidence.iter().filter_map(|line| tag_in(line)).collect();
                    assert!(over(&transfer, v, &tags), "its criterion still holds: {place}");
                    assert!(!self.w.is_lost("ids") || !tags.iter().any(|t| t.0 == "ids"), "{place}");
                }
                *known = Known::default();
            }
            _ => {}
        }
    }
}

#[test]
fn random_histories_keep_the_rules() {
    let (mut kills, mut releases) = (0, 0);
    let (seeds, steps) = if cfg!(debug_assertions) { (12, 250) } else { (300, 400) };
    for seed in 1..=seeds {
        let mut driver = Driver::new(seed * 7919);
        let run = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..steps {
                driver.step();
            }
        }));
        if let Err(panic) = run {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
        kills += driver.kills;
        releases += driver.releases;
    }
    println!("{kills} kills, {releases} releases");
    assert!(kills > 20 && releases > 20, "{kills} kills, {releases} releases: the histories are too tame");
}

//! What reports say.

use super::simulation::key;
use super::*;

fn counted(serial: u32, active: u64, new: u64) -> Counted {
    Counted { serial, active, new, ..Counted::default() }
}

#[test]
fn reports_are_what_came_since_the_last_one() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut reporter = Reporter::default();
    let first = Counted { packets: 10, bytes: 1000, resets: 1, connected: 5, connect_us: 500, ..counted(3, 4, 6) };
    let all = |one: Counted| vec![(key(0), one), (key(1), counted(4, 0, 70))];
    assert_eq!(reporter.look(start, all(first)), None);
    let next = Counted { packets: 15, bytes: 1700, resets: 1, connected: 7, connect_us: 900, ..counted(3, 3, 9) };
    let load = MemberLoad { new: 3, ended: 4, active: 3, packets: 5, bytes: 700, resets: 0, connected: 2, connect_us: 400 };
    let report = reporter.look(at(2100), all(next)).unwrap();
    assert_eq!(
        report,
        LoadReport { serial: 1, window_ms: 2100, members: vec![(key(0), load)] },
        "who has nothing to do is left out"
    );
    // Another member in the row, and one that was not there.
    let report = reporter.look(at(4000), vec![(key(0), counted(5, 1, 2)), (key(2), counted(6, 2, 2))]).unwrap();
    let began = |active, ended| MemberLoad { new: 2, ended, active, ..MemberLoad::default() };
    assert_eq!((report.serial, report.members), (2, vec![(key(0), began(1, 1)), (key(2), began(2, 0))]));
    // Counters that were lost count anew; open flows alone are something, too.
    let report = reporter.look(at(6000), vec![(key(0), counted(5, 1, 1)), (key(2), counted(6, 2, 2))]).unwrap();
    let open = |new, active| MemberLoad { new, active, ..MemberLoad::default() };
    assert_eq!(report.members, [(key(0), open(1, 1)), (key(2), open(0, 2))]);
    assert_eq!(reporter.look(at(8000), vec![]).unwrap().members, [], "it is heard all the same");
}

#[test]
fn the_busiest_are_reported_and_it_fits() {
    let member = |n: usize| MemberKey { port: n as u16, ..key(0) };
    let mut reporter = Reporter::default();
    reporter.look(Instant::now(), vec![]);
    let big =
        Counted { packets: 1 << 32, bytes: 1 << 42, resets: 1000, connected: 1 << 20, connect_us: 1 << 40, ..Counted::default() };
    let all = (0..MAX_MEMBERS + 100).map(|n| (member(n), Counted { active: 1 << 20 | n as u64, new: 1 << 21, ..big })).collect();
    let report = reporter.look(Instant::now(), all).unwrap();
    assert_eq!((report.members.len(), report.members[0].0.port), (MAX_MEMBERS, 100));
    let bytes = serde_json::to_string(&report).unwrap().len();
    println!("{bytes} bytes");
    assert!(bytes < 1 << 20, "{bytes}");
    let text = serde_json::to_string(&MemberLoad { new: 3, ..MemberLoad::default() }).unwrap();
    assert_eq!(text, "{\"new\":3}");
    assert_eq!(serde_json::from_str::<MemberLoad>("{\"active\":2}").unwrap(), MemberLoad { active: 2, ..MemberLoad::default() });
}

#[test]
fn noise_is_no_difference() {
    for (old, new, want) in
        [(100, 103, false), (100, 104, true), (100, 96, true), (40, 41, false), (40, 42, true), (0, 1, true), (0, 0, false)]
    {
        assert_eq!(differs(old, new), want, "{old} {new}");
    }
}

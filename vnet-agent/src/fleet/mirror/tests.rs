use super::*;
use crate::fleet::disk::Disk;

fn entry(value: &str, modified: i64) -> Entry {
    Entry { value: value.into(), created: 1, modified, lease: 0 }
}

fn change(key: &str, value: Option<&str>, revision: i64) -> Change {
    Change { key: key.into(), entry: value.map(|v| entry(v, revision)), revision }
}

#[test]
fn what_is_read_anew_and_what_is_watched_give_the_same() {
    let desired = |name: &str| format!("{DESIRED}resources/Policy/{name}");
    let mut watched = Mirror::default();
    let first =
        Snapshot { revision: 5, entries: [(desired("a"), entry("1", 3)), ("/vnet/v1/state/x".into(), entry("2", 4))].into() };
    assert_eq!(watched.replace(first.clone()).len(), 2);
    assert_eq!((watched.revision(), watched.moment().desired), (5, 3));
    let changed = watched.apply(
        vec![change(&desired("a"), None, 6), change(&desired("b"), Some("3"), 7), change("/vnet/v1/state/x", Some("4"), 8)],
        8,
    );
    assert_eq!(changed.len(), 3);
    assert_eq!((watched.revision(), watched.moment().desired), (8, 7));
    let mut read = Mirror::default();
    read.replace(first);
    let all = [(desired("b"), entry("3", 7)), ("/vnet/v1/state/x".into(), entry("4", 8))].into();
    let mut changed = read.replace(Snapshot { revision: 8, entries: all });
    changed.sort();
    assert_eq!(changed, [desired("a"), desired("b"), "/vnet/v1/state/x".to_owned()]);
    assert_eq!((read.entries(), read.revision()), (watched.entries(), watched.revision()));
    let mut same = read.entries().clone();
    same.values_mut().for_each(|entry| entry.lease = 7);
    assert_eq!(read.replace(Snapshot { revision: 9, entries: same }), Vec::<String>::new(), "nothing new");
    assert!(read.entries().values().all(|entry| entry.lease == 7));
}

const HELD: &str = r#"{"group":"isolated","quarantined":true,"identity":0}"#;
const FREE: &str = r#"{"group":"web","identity":0}"#;

fn endpoint(host: &str, name: &str) -> String {
    Key::Endpoint(host.into(), name.into()).to_string()
}

fn alive(host: &str) -> String {
    Key::Alive(host.into()).to_string()
}

/// Writes to the disk what is not on it as it is.
fn keep(disk: &Disk, m: &mut Mirror) {
    let (keys, revision) = m.take_unkept();
    let entry = |key: &String| m.get(key).map(|entry| (entry.clone(), m.inherits(key)));
    disk.keep(&keys.into_iter().map(|key| (key.clone(), entry(&key))).collect(), revision).unwrap();
}

fn settled(m: &mut Mirror, seconds: u32, linger: u32) -> Vec<String> {
    (0..seconds).flat_map(|_| m.settle(linger)).collect()
}

#[test]
fn what_another_store_does_not_know_stays_until_its_host_is_back() {
    let desired = format!("{DESIRED}resources/Policy/a");
    let mut m = Mirror::default();
    let before = [
        (desired, entry("1", 3)),
        (alive("b"), entry("{}", 3)),
        (endpoint("own", "vm"), entry(FREE, 4)),
        (endpoint("b", "stays"), entry(FREE, 5)),
        (endpoint("b", "goes"), entry(HELD, 6)),
        (endpoint("dead", "free"), entry(FREE, 7)),
        (endpoint("dead", "held"), entry(HELD, 8)),
    ];
    m.replace(Snapshot { revision: 9, entries: before.into() });
    assert_eq!((m.newest(), m.moment().another), (8, false));
    let dir = std::env::temp_dir().join(format!("vnet-fleet-mirror-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let disk = Disk::open(&dir.join("fleet.redb")).unwrap();
    keep(&disk, &mut m);
    let changed = m.replace_by_another(Snapshot { revision: 2, entries: BTreeMap::new() }, "own");
    assert_eq!(changed.len(), 3, "what is desired, who is alive, and what this host said itself: {changed:?}");
    assert_eq!((m.entries().len(), m.revision(), m.newest()), (4, 2, 0));
    keep(&disk, &mut m);
    assert_eq!(disk.load().unwrap().inherited.iter().collect::<Vec<_>>(), m.entries().keys().collect::<Vec<_>>());
    assert_eq!(settled(&mut m, 20, 300), Vec::<String>::new());
    m.apply(vec![change(&alive("b"), Some("{}"), 3), change(&endpoint("b", "stays"), Some(FREE), 3)], 3);
    assert_eq!(settled(&mut m, BACK, 300), Vec::<String>::new(), "it may not have said everything yet");
    // To be read again, or by an agent that was restarted, makes no difference.
    let there = [(alive("b"), entry("{}", 3)), (endpoint("b", "stays"), entry(FREE, 3))];
    m.replace(Snapshot { revision: 4, entries: there.clone().into() });
    keep(&disk, &mut m);
    let mut again = Mirror::recalled(disk.load().unwrap(), true);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(again.known(), 0, "all of it is to be read again");
    again.replace(Snapshot { revision: 900, entries: there.into() });
    assert_eq!(again.entries(), m.entries());
    for mut m in [m, again] {
        assert_eq!(settled(&mut m, BACK + 1, 300), [endpoint("b", "goes")]);
        assert_eq!(settled(&mut m, 300, 300), [endpoint("dead", "free")]);
        assert_eq!(settled(&mut m, 300, 300), Vec::<String>::new(), "who is held stays so");
        assert_eq!(m.entries().keys().collect::<Vec<_>>(), [&alive("b"), &endpoint("b", "stays"), &endpoint("dead", "held")]);
    }
}

#[test]
fn who_was_free_when_the_store_was_saved_and_is_held_stays_so() {
    let mut m = Mirror::default();
    m.replace(Snapshot { revision: 9, entries: [(endpoint("b", "vm"), entry(HELD, 8))].into() });
    let saved = Snapshot { revision: 5, entries: [(endpoint("b", "vm"), entry(FREE, 4)), (alive("b"), entry("{}", 2))].into() };
    assert!(m.is_set_back(&saved));
    assert_eq!(m.replace_by_another(saved.clone(), "own"), [alive("b")]);
    assert!(!m.is_set_back(&saved), "once is enough");
    assert_eq!(m.get(&endpoint("b", "vm")), Some(&entry(HELD, 8)));
    // Its lease came with the store.
    assert_eq!(settled(&mut m, ALIVE_SECONDS as u32, 300), Vec::<String>::new());
    m.apply(vec![change(&alive("b"), None, 6)], 6);
    assert_eq!(settled(&mut m, 600, 300), Vec::<String>::new(), "a host that is gone lets nobody go");
    m.apply(vec![change(&alive("b"), Some("{}"), 7)], 7);
    assert_eq!(settled(&mut m, BACK + 1, 300), [endpoint("b", "vm")]);
    assert_eq!(m.get(&endpoint("b", "vm")), Some(&entry(FREE, 4)), "it let it go meanwhile, and the store says so already");
}

#[test]
fn a_store_that_was_set_back_is_known_by_what_it_has() {
    let mut m = Mirror::default();
    m.replace(Snapshot { revision: 9, entries: [("k".into(), entry("1", 5)), ("l".into(), entry("2", 7))].into() });
    let snapshot = |revision, entries: &[(&str, i64)]| Snapshot {
        revision,
        entries: entries.iter().map(|(key, modified)| ((*key).to_owned(), entry("3", *modified))).collect(),
    };
    for (there, expected, what) in [
        (snapshot(9, &[("k", 5), ("l", 7)]), false, "the same"),
        (snapshot(12, &[("k", 11), ("m", 12)]), false, "further on"),
        (snapshot(8, &[("k", 5), ("l", 7)]), true, "not as far"),
        (snapshot(12, &[("k", 4), ("l", 12)]), true, "a value from before"),
        (snapshot(12, &[("k", 5), ("l", 8)]), true, "a value of a revision of which it was not"),
        (snapshot(12, &[("k", 5), ("l", 7), ("m", 6)]), true, "a key of a revision that had none"),
        (snapshot(9 + BUMP + 1, &[("k", 5)]), true, "told to count from further on"),
    ] {
        assert_eq!(m.is_set_back(&there), expected, "{what}");
    }
    let recalled = Mirror::recalled(Recalled { entries: m.entries().clone(), ..Recalled::default() }, false);
    assert!(!recalled.is_set_back(&snapshot(9, &[("k", 5), ("l", 7), ("m", 6)])), "the disk does not have everything");
    assert!(recalled.is_set_back(&snapshot(9, &[("k", 4)])));
    assert!(!Mirror::default().is_set_back(&snapshot(2 * BUMP, &[("k", 4)])), "nothing was known");
}

#[test]
fn what_is_on_the_disk_is_what_the_store_had_in_one_revision() {
    let mut m = Mirror::default();
    m.replace(Snapshot { revision: 6, entries: [(SERIAL.to_owned(), entry("", 3)), ("k".into(), entry("1", 5))].into() });
    m.apply(vec![change("l", Some("2"), 7), change("k", None, 8)], 8);
    let (unkept, revision) = m.take_unkept();
    assert_eq!((unkept, revision), (BTreeSet::from([SERIAL.to_owned(), "k".into(), "l".into()]), 8));
    assert!(m.take_unkept().0.is_empty());
    m.keep_later(["l".to_owned()]);
    assert_eq!(m.take_unkept().0.len(), 1);
    let recalled = |inherited, another| Mirror::recalled(Recalled { entries: m.entries().clone(), inherited, revision }, another);
    let mut again = recalled(BTreeSet::new(), false);
    assert_eq!((again.revision(), again.known(), again.take_untold().len()), (0, 8, 2));
    assert_eq!(recalled(BTreeSet::from(["l".into()]), false).known(), 0, "what another store had is nothing to go on from");
    assert_eq!(recalled(BTreeSet::new(), true).known(), 0);
    again.replace(Snapshot { revision: 9, entries: m.entries().clone() });
    assert_eq!((again.known(), again.take_untold().len()), (9, 0));
}

#[test]
fn what_became_ours_is_the_store_that_was_looked_at() {
    let mut m = Mirror::default();
    m.replace_by_another(Snapshot::default(), "own");
    let first = m.moment();
    m.replace_by_another(Snapshot::default(), "own");
    assert!(first.another && !m.is_ours(first.replaced) && m.moment().another);
    assert!(m.is_ours(m.moment().replaced) && !m.moment().another);
    assert!(!m.is_ours(m.moment().replaced), "no news");
}

#[test]
fn progress_without_changes_moves_the_revision() {
    let mut m = Mirror::default();
    m.replace(Snapshot { revision: 5, entries: BTreeMap::new() });
    m.apply(vec![], 9);
    assert_eq!(m.revision(), 9);
    m.apply(vec![change("k", Some("v"), 11)], 12);
    assert_eq!(m.revision(), 11, "more of the same moment may come");
}

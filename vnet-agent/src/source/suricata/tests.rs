//! The socket: records that are none, senders who may not, floods, and what stays when a source changes.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{ControlMessage, sendmsg};

use super::super::tests::{EXAMPLES, Scene};
use super::*;
use crate::random::Random;

const ALERTS: &str = EXAMPLES[0].1;
const RECORDS: &str = EXAMPLES[0].2;

fn scene() -> (Scene, UnixDatagram) {
    let scene = Scene::new();
    scene.configure(ALERTS);
    let client = client(&scene);
    (scene, client)
}

fn path(scene: &Scene) -> std::path::PathBuf {
    scene.dir.join("suricata/eve.sock")
}

fn client(scene: &Scene) -> UnixDatagram {
    let client = UnixDatagram::unbound().unwrap();
    client.connect(path(scene)).unwrap();
    client
}

/// The recorded alert about a marked file, and the endpoint that it is about.
fn alert() -> String {
    RECORDS.lines().next().unwrap().to_owned()
}

#[test]
fn alerts_become_tags_and_other_records_do_not() {
    let (scene, client) = scene();
    for record in RECORDS.lines() {
        client.send(record.as_bytes()).unwrap();
    }
    scene.wait("all records", || scene.status().events == RECORDS.lines().count() as u64);
    scene.wait("both tags", || scene.status().tags == 2);
    let status = scene.status();
    assert_eq!((status.malformed, status.refused, status.unmatched, status.state.as_str()), (0, 0, 0, "ok"), "{status:?}");
    assert_eq!(scene.taken().iter().map(|change| change.name.clone()).collect::<Vec<_>>(), ["ids.malware", "ids.alert"]);
}

#[test]
fn what_is_no_record_is_counted_and_the_next_alert_is_heard() {
    let (scene, client) = scene();
    let whole = alert();
    let records: &[&[u8]] = &[
        b"",
        b"\0",
        b"nonsense",
        b"{\"event_type\":\"alert\"",
        b"[{\"event_type\":\"alert\"}]",
        b"{\"event_type\":\"alert\"}",
        b"{\"event_type\":\"alert\",\"alert\":null}",
        &whole.as_bytes()[..whole.len() - 1],
        b"\xff\xfe{\"event_type\":\"alert\"}",
        b"{\"event_type\":\"alert\xc3\"}",
        b"{\"event_type\":\"flow\xc3\"}",
        b"{\"event_type\":\"flow\"",
    ];
    for record in records {
        client.send(record).unwrap();
    }
    let deep = format!("{{\"event_type\":\"alert\",\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    client.send(deep.as_bytes()).unwrap();
    scene.wait("the records", || scene.status().events == records.len() as u64 + 1);
    // Both that could be parsed lack what both mappings ask for; every other is one fault.
    let malformed = scene.status().malformed;
    assert!(malformed >= records.len() as u64, "{:?}", scene.status());
    assert!(scene.taken().is_empty());
    client.send(whole.as_bytes()).unwrap();
    scene.wait("the tags", || scene.status().tags == 2);
    assert_eq!(scene.status().malformed, malformed);
}

#[test]
fn a_record_of_any_length_is_taken_or_counted() {
    let (scene, client) = scene();
    setsockopt(&client, nix::sys::socket::sockopt::SndBufForce, &(4 << 20)).unwrap();
    let padded = |bytes: usize| alert().replacen('{', &format!("{{\"pad\":\"{}\",", "x".repeat(bytes)), 1);
    client.send(padded(RECORD / 2).as_bytes()).unwrap();
    scene.wait("a long alert", || scene.status().tags == 2);
    client.send(padded(RECORD).as_bytes()).unwrap();
    scene.wait("one that is too long", || scene.status().malformed == 1);
    assert!(scene.status().last_error.unwrap().contains("more than 262144 bytes"));
}

/// Real alerts with bytes changed, cut, doubled and spliced: each is used or counted, and memory does not grow.
#[test]
fn mutated_records_do_no_harm() {
    let (scene, _client) = scene();
    let running = Source::new(
        super::super::SourceName::operator(),
        super::super::manager::tests::settings(ALERTS),
        Arc::new(super::super::Current::default()),
        Arc::clone(&scene.taken) as Arc<dyn super::super::Sink>,
    );
    let shared = Shared {
        socket: bound(&scene.dir.join("unused")).unwrap(),
        source: Arc::new(running),
        turn: Mutex::default(),
        pending: Pending::default(),
        trials: Trials::default(),
        stopping: AtomicBool::new(false),
    };
    let records: Vec<&[u8]> = RECORDS.lines().map(str::as_bytes).collect();
    let (mut random, mut variables) = (Random(3), Variables::default());
    const TIMES: u64 = 100_000;
    for _ in 0..TIMES {
        let mut record = records[random.index(records.len())].to_vec();
        for _ in 0..=random.below(3) {
            mutate(&mut record, &records, &mut random);
        }
        drop(shared.take(Some(&record), Some(0), &mut variables, Instant::now()));
    }
    let counted = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &shared.source.counters;
    assert_eq!(counted(&counters.events), TIMES);
    // Most are broken; an address that was changed is nobody's.
    assert!(counted(&counters.malformed) > TIMES / 4 && counted(&counters.unmatched) > 100);
}

fn mutate(record: &mut Vec<u8>, others: &[&[u8]], random: &mut Random) {
    if record.is_empty() {
        return;
    }
    let at = random.index(record.len());
    match random.below(6) {
        0 => record[at] = random.byte(255),
        1 => record[at] ^= 1 << random.below(8),
        2 => record.truncate(at),
        3 => drop(record.splice(at..at, [b'{', b'"', b'\\', b'[', b'0', 0xff].into_iter().take(1 + random.index(5)))),
        4 => drop(record.drain(at..(at + 1 + random.index(16)).min(record.len()))),
        _ => {
            let other = others[random.index(others.len())];
            record.truncate(at);
            record.extend(&other[random.index(other.len())..]);
        }
    }
}

#[test]
fn who_may_not_send_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED who_may_not_send_is_refused: needs root, to become someone else");
        return;
    }
    let (scene, client) = scene();
    assert_eq!(std::fs::metadata(path(&scene)).unwrap().permissions().mode() & 0o777, 0o600);
    // Who has no right to the file may still have had the socket from someone who does: the kernel says whose each datagram is.
    as_user(4711, || client.send(alert().as_bytes())).unwrap();
    scene.wait("the refusal", || scene.status().refused == 1);
    assert!(scene.status().last_error.unwrap().contains("user 4711 may not send to it"));
    assert!(scene.taken().is_empty() && scene.status().events == 0);
    scene.configure(&ALERTS.replace("  allow:", "  users: ['4711', '4712']\n  allow:"));
    std::fs::set_permissions(&scene.dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let sent = as_user(4711, || {
        let own = UnixDatagram::unbound().unwrap();
        own.connect(path(&scene)).and_then(|()| own.send(alert().as_bytes()))
    });
    sent.unwrap();
    scene.wait("the tags", || scene.status().tags == 2);
    let refused = as_user(4713, || UnixDatagram::unbound().unwrap().connect(path(&scene)).map_err(|error| error.kind()));
    assert_eq!(refused, Err(std::io::ErrorKind::PermissionDenied));
}

/// Runs `work` with another user and group.
fn as_user<T: Send>(id: u32, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
            // SAFETY: the raw calls take three integers; they change this thread, which ends after `work`, and no other.
            let failed = unsafe { libc::syscall(call, id, id, id) };
            assert_eq!(failed, 0, "becoming user {id}: {}", std::io::Error::last_os_error());
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap()
}

#[test]
fn files_that_are_sent_along_do_not_stay_open() {
    let (scene, client) = scene();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // As deep as the socket's queue may be, so that nothing is under way afterwards.
    let send = |n: u64| {
        for _ in 0..100 {
            let file = std::fs::File::open("/dev/null").unwrap();
            let files = [file.as_raw_fd(); 8];
            let with = [ControlMessage::ScmRights(&files)];
            let parts = [IoSlice::new(b"{}")];
            sendmsg::<()>(client.as_raw_fd(), &parts, &with, MsgFlags::empty(), None).unwrap();
        }
        scene.wait("the refusals", || scene.status().refused == n);
    };
    send(100);
    let before = open();
    send(200);
    assert!(open() < before + 100, "{before} {}", open());
}

#[test]
fn a_socket_stays_through_changes_and_is_gone_with_its_source() {
    let (scene, client) = scene();
    scene.configure(&ALERTS.replace("tag: ids.malware", "tag: ids.other"));
    client.send(alert().as_bytes()).unwrap();
    scene.wait("the tags", || scene.status().tags == 2);
    assert_eq!(scene.taken()[0].name, "ids.other");
    // Somebody removes it: it is made again, once it is looked after.
    std::fs::remove_file(path(&scene)).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    scene.configure(ALERTS);
    // For whoever may send the file is the same all the time, whatever else changes.
    let changed = || std::os::unix::fs::MetadataExt::ctime_nsec(&std::fs::metadata(path(&scene)).unwrap());
    let before = changed();
    scene.configure(&ALERTS.replace("tag: ids.malware", "tag: ids.other"));
    scene.configure(ALERTS);
    assert_eq!(changed(), before);
    self::client(&scene).send(alert().as_bytes()).unwrap();
    scene.wait("the tags", || scene.status().tags == 4);
    let elsewhere = scene.dir.join("elsewhere/eve.sock");
    scene.configure(&ALERTS.replace("  allow:", &format!("  input: {{ socket: {} }}\n  allow:", elsewhere.display())));
    assert!(elsewhere.exists() && !path(&scene).exists());
    assert_eq!(scene.status().input, elsewhere.display().to_string());
    let begun = Instant::now();
    scene.sources.configure(&[]);
    assert!(!elsewhere.exists() && begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_socket_that_is_in_use_is_not_taken_over() {
    let (scene, client) = scene();
    let (other, yaml) = (Scene::new(), ALERTS.replace("  allow:", "  input: { socket: PATH }\n  allow:"));
    other.configure(&yaml.replace("PATH", &path(&scene).display().to_string()));
    assert!(
        other.status().state.contains("failed: ") && other.status().state.contains("another agent serves"),
        "{:?}",
        other.status()
    );
    client.send(alert().as_bytes()).unwrap();
    scene.wait("the tags", || scene.status().tags == 2);
    std::fs::write(other.dir.join("file"), "precious").unwrap();
    other.configure(&yaml.replace("PATH", &other.dir.join("file").display().to_string()));
    assert!(other.status().state.contains("is something else"), "{:?}", other.status());
    assert_eq!(std::fs::read_to_string(other.dir.join("file")).unwrap(), "precious");
}

#[test]
fn a_sink_that_is_held_up_holds_up_neither_suricata_nor_the_end() {
    let (scene, client) = scene();
    let taken = Arc::clone(&scene.taken);
    let held = taken.gate.lock().unwrap();
    for n in 0..500 {
        client.send(alert().replace("marked file", &n.to_string()).as_bytes()).unwrap();
    }
    scene.wait("all to be read", || scene.status().events == 500);
    // One change, or a few that were brought to it at once, is with the sink; of each of the two tags one waits.
    let overtaken = scene.status().dropped;
    assert!((990..=998).contains(&overtaken) && scene.taken().is_empty(), "{overtaken}");
    let begun = Instant::now();
    scene.sources.configure(&[]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(held);
    let newest = |name: &str| scene.taken.changes.lock().unwrap().iter().rev().find(|c| c.name == name).map(|c| c.value.clone());
    scene.wait("the newest state", || newest("ids.alert").is_some_and(|value| value == "vnet: 499"));
    assert_eq!(newest("ids.malware").unwrap(), "vnet: 499");
}

#[test]
fn a_measurement_goes_through_the_socket_and_has_no_effect() {
    use crate::api::Sources as _;
    let (scene, _client) = scene();
    let test = scene.sources.test("suricata", None).unwrap();
    let mut sorted = test.latencies_us.clone();
    sorted.sort_unstable();
    println!("from an alert's sending to the sink: median {} us, most {} us", sorted[50], sorted[99]);
    assert_eq!((test.trials, test.latencies_us.len()), (100, 100));
    assert!(scene.taken().is_empty());
    let status = scene.status();
    assert_eq!((status.events, status.tags, status.malformed), (0, 0, 0), "{status:?}");
}

#[test]
fn a_measurement_holds_up_nobody_who_looks_after_the_source() {
    use crate::api::Sources as _;
    let (scene, _client) = scene();
    let taken = Arc::clone(&scene.taken);
    let held = taken.gate.lock().unwrap();
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| scene.sources.test("suricata", None));
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        scene.configure(ALERTS);
        assert_eq!(scene.status().state, "silent");
        assert!(begun.elapsed() < Duration::from_secs(1) && !measuring.is_finished(), "{:?}", begun.elapsed());
        drop(held);
        measuring.join().unwrap().unwrap();
    });
}

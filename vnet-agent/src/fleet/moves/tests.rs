use super::*;
use vnet_common::fleet::{EndpointState, HostState};

/// Hosts a and b, and endpoint `vm` on them.
struct Pair {
    view: View,
    hosts: BTreeMap<&'static str, (Moves, BTreeMap<String, String>)>,
    /// The claim that changed, while that is heard of.
    changed: BTreeSet<At>,
    revision: i64,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let mut view = View::default();
        for host in ["a", "b"] {
            view.alive.insert(host.to_owned(), (1, HostState::default()));
        }
        let hosts = ["a", "b"].into_iter().map(|host| (host, Default::default())).collect();
        Self { view, hosts, changed: BTreeSet::new(), revision: 1, now: Instant::now() }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// A host looks at its devices: did the endpoint come?
    fn look(&mut self, host: &'static str) -> bool {
        let (moves, here) = self.hosts.get_mut(host).unwrap();
        !moves.look(here, &self.view, host, &self.changed, self.now).is_empty()
    }

    /// The device appears, and its host claims it.
    fn plug(&mut self, host: &'static str) -> bool {
        self.hosts.get_mut(host).unwrap().1.insert("vm".to_owned(), "tap0".to_owned());
        let came = self.look(host);
        self.claim(host, Some(EndpointState::default()));
        came
    }

    /// The device goes, and its host's claim with it.
    fn unplug(&mut self, host: &'static str) {
        self.hosts.get_mut(host).unwrap().1.clear();
        self.look(host);
        self.claim(host, None);
    }

    /// All hear of a claim, or of its end.
    fn claim(&mut self, host: &'static str, state: Option<EndpointState>) {
        self.revision += 1;
        self.view.endpoints.put("vm", host, state.map(|state| (self.revision, state)));
        self.changed.insert(("vm".to_owned(), host.to_owned()));
        for each in ["a", "b"] {
            self.look(each);
        }
        self.changed.clear();
    }

    /// What a host tells: `all`, `more` or nothing.
    fn tells(&mut self, host: &'static str) -> Option<bool> {
        let telling = self.hosts.get_mut(host).unwrap().0.take_telling(&self.view, host, self.now);
        telling.first().map(|telling| telling.all)
    }

    fn moves(&mut self, host: &'static str) -> &mut Moves {
        &mut self.hosts.get_mut(host).unwrap().0
    }

    /// The agent of a host starts anew.
    fn restart(&mut self, host: &'static str) -> bool {
        *self.moves(host) = Moves::default();
        self.look(host)
    }
}

const ALL: Option<bool> = Some(true);
const MORE: Option<bool> = Some(false);

#[test]
fn flows_are_told_when_another_claims_it_while_it_opens_more_and_when_it_is_gone() {
    let mut p = Pair::new();
    assert!(!p.plug("a"));
    assert_eq!(p.tells("a"), None);
    assert!(p.plug("b"));
    assert_eq!((p.tells("a"), p.tells("a"), p.tells("b")), (ALL, None, None));
    p.moves("b").end_waiting("vm");
    p.pass(AGAIN);
    assert_eq!((p.tells("a"), p.tells("a"), p.tells("b")), (MORE, None, None));
    p.unplug("a");
    assert_eq!((p.tells("a"), p.tells("a")), (ALL, None));
    p.pass(AGAIN);
    assert_eq!(p.tells("a"), None, "that was the last time");
    p.pass(REMEMBERED);
    p.unplug("b");
    p.look("a");
    p.pass(REMEMBERED);
    p.look("a");
    assert!(p.moves("a").0.is_empty());
}

#[test]
fn a_move_that_was_cancelled_may_be_tried_again() {
    let mut p = Pair::new();
    p.plug("a");
    p.plug("b");
    assert_eq!(p.tells("a"), ALL);
    p.unplug("b");
    assert_eq!((p.tells("b"), p.tells("a"), p.moves("a").0["vm"].told.is_none()), (None, None, true), "b never had it");
    p.pass(Duration::from_secs(5));
    assert!(p.plug("b"));
    assert_eq!(p.tells("a"), ALL);
}

#[test]
fn it_may_come_back_at_once() {
    let mut p = Pair::new();
    p.plug("a");
    p.plug("b");
    assert_eq!(p.tells("a"), ALL);
    p.unplug("a");
    assert_eq!(p.tells("a"), ALL);
    p.moves("b").end_waiting("vm");
    // Live, and then from there on a cold one.
    assert!(p.plug("a"));
    assert_eq!((p.tells("b"), p.tells("a")), (ALL, None));
    p.moves("a").end_waiting("vm");
    p.unplug("b");
    assert_eq!((p.tells("b"), p.tells("a")), (ALL, None));
    p.unplug("a");
    assert_eq!(p.tells("a"), None, "nobody has it yet");
    assert!(p.plug("b"), "it was at a a moment ago");
    assert_eq!((p.tells("a"), p.tells("b")), (ALL, None));
}

#[test]
fn who_waits_tells_nothing() {
    let mut p = Pair::new();
    p.plug("a");
    p.plug("b");
    p.unplug("a");
    // It goes on to a, before b has its flows.
    p.plug("a");
    assert_eq!(p.tells("b"), None);
    p.moves("b").end_waiting("vm");
    assert_eq!(p.tells("b"), ALL);
}

#[test]
fn who_comes_from_elsewhere_waits_and_who_was_always_here_does_not() {
    let mut p = Pair::new();
    assert!(!p.plug("b"));
    // Its host has given it up before it is seen here.
    p.unplug("b");
    assert!(p.plug("a") && !p.look("a"));
    let (now, deadline) = (p.now, p.moves("a").deadline());
    assert_eq!(deadline, Some(now + PATIENCE));
    assert!(p.moves("a").over(now).is_empty());
    assert_eq!(p.moves("a").over(now + PATIENCE), ["vm"]);
    assert_eq!((p.moves("a").over(now + PATIENCE).len(), p.moves("a").deadline()), (0, None));
    // For a while only.
    p.unplug("a");
    p.pass(REMEMBERED);
    assert!(!p.plug("a") && !p.restart("a"));
}

#[test]
fn who_waited_while_its_agent_ended_waits_again() {
    let mut p = Pair::new();
    p.plug("a");
    p.plug("b");
    assert!(p.restart("b"));
    assert!(!p.restart("a"), "it had it first");
    p.hosts.get_mut("b").unwrap().1.clear();
    p.restart("b");
    assert!(p.plug("b"));
}

#[test]
fn flows_are_taken_from_who_had_it_and_while_it_comes() {
    let mut p = Pair::new();
    p.view.alive.insert("c".to_owned(), (1, HostState::default()));
    p.plug("a");
    assert!(!p.moves("a").takes("vm", "b"));
    p.plug("b");
    assert!(p.moves("b").takes("vm", "a") && !p.moves("a").takes("vm", "b"));
    // Anybody may claim it.
    p.claim("c", Some(EndpointState::default()));
    assert!(!p.moves("b").takes("vm", "c") && !p.moves("a").takes("vm", "c"));
    p.claim("c", None);
    // As long as it is on its way, and a while longer.
    p.moves("b").end_waiting("vm");
    p.pass(REMEMBERED * 2);
    p.look("b");
    assert!(p.moves("b").takes("vm", "a"));
    p.unplug("a");
    p.pass(REMEMBERED / 2);
    p.look("b");
    assert!(p.moves("b").takes("vm", "a"));
    p.pass(REMEMBERED);
    p.look("b");
    assert!(!p.moves("b").takes("vm", "a"));
    p.claim("a", Some(EndpointState::default()));
    assert!(!p.moves("b").takes("vm", "a"));
}

#[test]
fn two_that_have_one_for_good_do_not_tell_for_ever() {
    let mut p = Pair::new();
    p.plug("a");
    p.plug("b");
    assert_eq!(p.tells("a"), ALL);
    p.pass(LIVE);
    let now = p.now;
    assert!(p.tells("a").is_none() && !p.moves("a").is_telling(now));
    // Nor is a claim that is only for who holds it a move.
    let mut p = Pair::new();
    p.plug("a");
    p.claim("b", Some(EndpointState { gone: true, ..EndpointState::default() }));
    assert_eq!(p.tells("a"), None);
}

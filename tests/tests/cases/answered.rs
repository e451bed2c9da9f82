//! How members answer: how long connections take, who resets them, and what ICMP errors say.

use vnet_common::lb::MemberAnswers;
use vnet_common::lb::MemberEvent::Reset;
use vnet_common::verdict::Reason;

use super::packet::{ACK, FIN, Packet, RST, SYN};
use super::policy::each;
use super::row::{Row, row, run};
use super::tcp::Connection;
use super::udp::udp_member;
use super::world::{CLIENT, Family, World};

const PORT: u16 = 8080;

fn start(f: Family, name: &str) -> (Connection, Row) {
    (Connection::new(f, PORT), row(format!("{f:?}: {name}"), World::balanced(PORT)))
}

/// At the end, so much is counted of this member, and nothing of others.
fn counts(r: Row, member: u32, expected: MemberAnswers) -> Row {
    r.finally(move |w| {
        let all = w.maps.member_answers.borrow();
        let others = all.iter().filter(|(row, a)| **row != member && **a != MemberAnswers::default()).count();
        let got = all.get(&member).copied().unwrap_or_default();
        if (got, others) == (expected, 0) { Ok(()) } else { Err(format!("expected {expected:?}, counted {all:?}")) }
    })
}

/// Connections that took so long, one each.
fn took(times: &[u32]) -> MemberAnswers {
    let mut answers = MemberAnswers::default();
    times.iter().for_each(|us| answers.count_connect(*us));
    answers
}

fn wait(us: u32) -> impl Fn(&mut World) {
    move |w| w.maps.micros.set(w.maps.micros.get().wrapping_add(us))
}

#[test]
fn from_syn_to_syn_ack() {
    let end = |bucket: u32| 64 << (2 * bucket);
    for us in [0, 1, 63, 64, 255, 256, end(6) - 1, end(6), 59_999_999] {
        run(each(|f| {
            let (c, r) = start(f, &format!("answered after {us} µs"));
            let r = c.gets(c.syn(r).change(wait(us)), SYN | ACK, Reason::HalfOpen);
            // What comes later, and again, is no answer.
            let r = c.gets(r.change(wait(1000)), SYN | ACK, Reason::HalfOpen);
            counts(r.holds(0, 1), c.member, took(&[us]))
        }));
    }
    run(each(|f| {
        let (c, r) = start(f, "a second SYN does not start it anew");
        let r = c.sends(c.syn(r).change(wait(1_000_000)), SYN, Reason::HalfOpen);
        let r = c.gets(r.change(wait(300)), SYN | ACK, Reason::HalfOpen);
        counts(r.holds(0, 1), c.member, took(&[1_000_300]))
    }));
    run(each(|f| {
        let (c, r) = start(f, "an answer after more than a minute is not counted");
        counts(
            c.gets(c.syn(r.host_only()).change(wait(60_000_000)), SYN | ACK, Reason::HalfOpen).holds(0, 1),
            c.member,
            took(&[]),
        )
    }));
    run(each(|f| {
        let (c, r) = start(f, "a clock that begins anew");
        let r = c.syn(r.change(|w| w.maps.micros.set(u32::MAX - 9)));
        counts(c.gets(r.change(wait(110)), SYN | ACK, Reason::HalfOpen).holds(0, 1), c.member, took(&[110]))
    }));
    run(each(|f| {
        let (c, r) = start(f, "another connection with the same place took it");
        let r = c.syn(r).change(|w| w.maps.connecting.borrow_mut().values_mut().for_each(|word| *word ^= 1 << 60)).host_only();
        counts(c.gets(r, SYN | ACK, Reason::HalfOpen).holds(0, 1), c.member, took(&[]))
    }));
}

#[test]
fn who_resets() {
    let by_member = |n| MemberAnswers { resets: n, ..took(&[]) };
    run(each(|f| {
        let (c, r) = start(f, "refused");
        counts(c.gets(c.syn(r), RST | ACK, Reason::HalfOpen).event(c.member, Reset), c.member, by_member(1))
    }));
    run(each(|f| {
        let (c, r) = start(f, "given up by the client");
        counts(c.sends(c.syn(r), RST, Reason::HalfOpen).event(c.member, Reset), c.member, by_member(0))
    }));
    run(each(|f| {
        let (c, r) = start(f, "ended by the member");
        let r = c.gets(c.open(r), RST, Reason::Reply).event(c.member, Reset);
        counts(r.holds(1, 0).quota(1, 1), c.member, MemberAnswers { resets: 1, ..took(&[0]) })
    }));
    run(each(|f| {
        let (c, r) = start(f, "given up by the client once it was answered");
        let r = c.sends(c.half_open(r), RST, Reason::HalfOpen).event(c.member, Reset);
        counts(r, c.member, MemberAnswers { given_up: 1, ..took(&[0]) })
    }));
    run(each(|f| {
        let (c, r) = start(f, "each segment under way is answered by a reset, and the connection failed once");
        let r = c.gets(c.open(r), RST, Reason::Reply).event(c.member, Reset);
        let r = c.gets(c.gets(r, RST, Reason::Reply), RST, Reason::Reply);
        counts(r.holds(1, 0).quota(1, 1), c.member, MemberAnswers { resets: 1, ..took(&[0]) })
    }));
    run(each(|f| {
        let (c, r) = start(f, "a reset after both sides have ended is none");
        let r = c.gets(c.sends(c.open(r), FIN | ACK, Reason::Established), FIN | ACK, Reason::Reply);
        let r = c.gets(r, RST, Reason::Reply);
        counts(r.holds(1, 0).quota(1, 1), c.member, took(&[0]))
    }));
    run(each(|f| {
        let (c, r) = start(f, "ended by the client");
        let r = c.sends(c.open(r), RST, Reason::Established).event(c.member, Reset);
        counts(r.holds(1, 0).quota(1, 1), c.member, took(&[0]))
    }));
}

#[test]
fn what_cannot_be_reached() {
    let kinds = |f| match f {
        Family::V4 => [((3, 3), 1), ((3, 1), 1), ((3, 13), 1), ((3, 4), 0), ((11, 0), 0), ((12, 0), 0)],
        Family::V6 => [((1, 4), 1), ((1, 0), 1), ((1, 1), 1), ((2, 0), 0), ((3, 0), 0), ((4, 0), 0)],
    };
    for i in 0..6 {
        run(each(|f| {
            let ((kind, code), unreachable) = kinds(f)[i];
            let m = udp_member(f);
            let q = Packet::udp(f.client(), 5353, f.vip(), 80);
            let there = q.clone().to(f.member(0), PORT);
            let r = row(format!("{f:?}: type {kind}, code {code}"), World::balanced(PORT));
            let r = r.egress(CLIENT, &q).becomes(Reason::NewFlow, &there).by(m).events(m);
            // Once a flow, however often it is said.
            let error =
                |r: Row| r.ingress(CLIENT, &there.error(kind, code, 1280)).becomes(Reason::Related, &q.error(kind, code, 1280));
            let r = error(error(error(r)));
            counts(r.holds(1, 0).quota(1, 1), m, MemberAnswers { unreachable, ..took(&[]) })
        }));
    }
}

/// The buckets are where the API says that they are.
#[test]
fn buckets_end_where_they_are_said_to() {
    use vnet_common::api::ConnectTimes;
    use vnet_common::lb::connect_bucket;
    for (bucket, end) in ConnectTimes::ends().into_iter().enumerate() {
        let Some(end) = end else { continue };
        assert_eq!((connect_bucket(end as u32 - 1), connect_bucket(end as u32)), (bucket, bucket + 1), "{end} µs");
    }
    assert_eq!(connect_bucket(u32::MAX), ConnectTimes::ends().len() - 1);
    let times = ConnectTimes { total_us: 1000, buckets: [98, 1, 1, 0, 0, 0, 0, 0] };
    assert_eq!((times.count(), times.mean_us()), (100, Some(10)));
    assert_eq!([500, 980, 990, 1000].map(|n| times.within_us(n)), [Some(64), Some(64), Some(256), Some(1024)]);
}

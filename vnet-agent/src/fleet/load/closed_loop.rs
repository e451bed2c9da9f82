//! What comes of load, and of its loss: the loop closed.

use super::simulation::{Pick, Sample, Setup, Trouble, run};

/// Prints what was seen; gives the samples from one time to another, in s.
fn shown<'a>(what: &str, samples: &'a [Sample]) -> impl Fn(u64, u64) -> &'a [Sample] + use<'a> {
    println!("{what}\n   s  max/mean  open flows, factors");
    for s in samples.iter().step_by(4) {
        println!("{:4.0}  {:8.2}  {:?} {:?}", s.time, s.imbalance(), s.open, s.factors);
    }
    |from, to| {
        let at = |seconds: u64| samples.partition_point(|s| s.time < seconds as f64);
        &samples[at(from)..at(to)]
    }
}

/// In the mean.
fn imbalance(samples: &[Sample]) -> f64 {
    samples.iter().map(Sample::imbalance).sum::<f64>() / samples.len() as f64
}

/// How far the factors of any member are apart, of the smallest.
fn swing(samples: &[Sample]) -> f64 {
    let of = |m: usize| samples.iter().map(move |s| f64::from(s.factors[m]));
    let apart = |m: usize| of(m).fold(0.0, f64::max) / of(m).fold(f64::MAX, f64::min) - 1.0;
    (0..samples[0].factors.len()).map(apart).fold(0.0, f64::max)
}

#[test]
fn members_of_unequal_capacity_come_to_the_same_load_and_stay_there() {
    let off = run(Setup { feedback: "{}", ..Setup::default() });
    let range = shown("static weights", &off);
    assert!(imbalance(range(8, 60)) >= 1.5, "{}", imbalance(range(8, 60)));
    for seed in [7, 8, 9] {
        let on = run(Setup { seed, ..Setup::default() });
        let range = shown("least load", &on);
        let (at_ten, later) = (imbalance(range(10, 13)), imbalance(range(13, 60)));
        println!(
            "max/mean {at_ten:.2} at 10 s, {later:.2} later; factors move by {:.0} % after 20 s\n",
            swing(range(20, 60)) * 100.0
        );
        assert!(at_ten <= 1.15 && later <= 1.15, "{at_ten} {later}");
        assert!(swing(range(20, 60)) <= 0.35, "{}", swing(range(20, 60)));
    }
}

#[test]
fn longer_and_shorter_flows_do_not_swing_either() {
    // Such as do not live for a window, and such as live for many: about as many open.
    for (stay, from) in [([0.1, 0.2, 0.4], 10), ([5.0, 10.0, 20.0], 10), ([30.0, 60.0, 120.0], 20)] {
        let rate = 3000.0 / stay.iter().sum::<f64>();
        let on = run(Setup { stay: stay.into(), rate, seconds: 120, ..Setup::default() });
        let range = shown(&format!("flows of {stay:?} s"), &on);
        let (soon, late) = (imbalance(range(from, 60)), imbalance(range(60, 120)));
        println!("max/mean {soon:.2} up to 60 s, {late:.2} after that\n");
        assert!(soon <= 1.15 && late <= 1.15, "{soon} {late}");
        let most = range(60, 120).iter().map(Sample::imbalance).fold(0.0, f64::max);
        assert!(most <= 1.25, "{most}");
    }
}

#[test]
fn load_that_stops_and_starts_again() {
    let on = run(Setup { troubles: vec![(20, Trouble::Stop), (80, Trouble::Start)], seconds: 110, ..Setup::default() });
    let range = shown("flows stop at 20 s and start at 80 s", &on);
    assert!(imbalance(range(12, 20)) <= 1.15);
    let gone = range(78, 79)[0].factors.clone();
    assert!(gone.iter().all(|f| (80..125).contains(f)), "without load, weights go back: {gone:?}");
    assert!(imbalance(range(90, 110)) <= 1.15, "{}", imbalance(range(90, 110)));
}

#[test]
fn a_member_that_goes_and_comes_back() {
    let on = run(Setup { troubles: vec![(20, Trouble::Out(2)), (40, Trouble::In(2))], seconds: 70, ..Setup::default() });
    let range = shown("the slowest member is out from 20 s to 40 s", &on);
    for (from, to) in [(12, 20), (28, 40), (52, 70)] {
        assert!(imbalance(range(from, to)) <= 1.15, "{from} to {to}: {}", imbalance(range(from, to)));
    }
}

#[test]
fn hosts_that_are_not_heard_are_missed_and_no_more() {
    let on = run(Setup { troubles: vec![(20, Trouble::NoReportsOf(0))], ..Setup::default() });
    let range = shown("the reports of a host are lost from 20 s on", &on);
    assert!(imbalance(range(20, 60)) <= 1.15, "{}", imbalance(range(20, 60)));
}

#[test]
fn what_was_handed_out_fades_when_there_is_nothing_new() {
    for trouble in [Trouble::NoReports, Trouble::NoAggregator] {
        let on = run(Setup { troubles: vec![(20, trouble)], seconds: 100, ..Setup::default() });
        let range = shown("no reports, or no aggregator, from 20 s on", &on);
        let held = &range(24, 25)[0];
        assert!(held.factors[0] > 150 && held.factors[2] < 60, "it holds for a while: {held:?}");
        let steps = range(20, 70).windows(2).map(|s| s[0].factors[0].abs_diff(s[1].factors[0]));
        assert!(steps.max() <= Some(12), "no jump");
        assert!(range(70, 100).iter().all(|s| s.factors == [100; 3]), "{:?}", range(70, 71));
    }
}

#[test]
fn another_host_takes_over_without_a_jump() {
    let troubles = vec![(20, Trouble::NoAggregator), (27, Trouble::Takeover)];
    let on = run(Setup { troubles, ..Setup::default() });
    let range = shown("no aggregator from 20 s on, another one at 27 s", &on);
    assert!(imbalance(range(20, 60)) <= 1.15, "{}", imbalance(range(20, 60)));
    assert!(swing(range(20, 60)) <= 0.35, "{}", swing(range(20, 60)));
}

#[test]
fn least_connections_make_up_for_what_other_hosts_have() {
    // One host has flows at one member that never end. It would take none of the new ones there; the others do not know.
    let setup = |feedback| Setup { pick: Pick::Fewest, stuck: vec![150, 0, 0], stay: vec![1.0; 3], feedback, ..Setup::default() };
    let alone = run(Setup { troubles: vec![(0, Trouble::NoAggregator)], ..setup("{}") });
    let range = shown("least connections, each host by itself", &alone);
    let before = imbalance(range(20, 60));
    let together = run(setup("{ mode: leastLoad }"));
    let range = shown("least connections of all hosts", &together);
    let after = imbalance(range(20, 60));
    println!("max/mean {before:.2} by itself, {after:.2} together");
    assert!(before >= 1.2 && after <= 1.1, "{before} {after}");
    let most = range(30, 60).iter().map(Sample::imbalance).fold(0.0, f64::max);
    assert!(most <= 1.15, "{most}");
}

//! What becomes of weights, a group at a time.

use super::*;

fn at(member: u8) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, member], 80))
}

fn settings(yaml: &str) -> Settings {
    Settings::of(&serde_saphyr::from_str(yaml).unwrap()).unwrap()
}

/// Open flows that each stay for so long, in a group that stays as it is.
fn steady(open: f64, stay: f64) -> Load {
    let rate = open / stay;
    Load { open, rate, new: rate * 2.0, ended: rate * 2.0, flow_seconds: open * 2.0, connected: rate * 2.0, ..Load::default() }
}

fn percents(controller: &Controller, members: u8) -> Vec<i64> {
    (0..members).map(|m| (controller.factor(at(m)) * 100.0).round() as i64).collect()
}

/// The factors after many windows in which nothing changed, of members with these weights.
fn settled(settings: &Settings, members: &[(u16, Load)]) -> Vec<i64> {
    let mut controller = Controller::default();
    let members: Vec<_> = members.iter().zip(0..).map(|((weight, load), m)| (at(m), *weight, *load)).collect();
    (0..30).for_each(|_| controller.step(settings, &members));
    percents(&controller, members.len() as u8)
}

#[test]
fn settings_are_what_the_resource_says() {
    assert_eq!(settings("{ mode: leastLoad }"), Settings { aim: Aim::LeastLoad, gain: 0.75, damping: 0.5, min: 0.1, max: 4.0 });
    let other =
        "{ mode: latencyTarget, targetMilliseconds: 5, gainPercent: 20, dampingPercent: 0, minPercent: 50, maxPercent: 1000 }";
    assert_eq!(settings(other), Settings { aim: Aim::Latency(5000.0), gain: 0.2, damping: 0.0, min: 0.5, max: 10.0 });
    assert_eq!(Settings::of(&serde_saphyr::from_str("{}").unwrap()), None);
}

#[test]
fn shares_of_short_flows_go_by_how_long_they_stay() {
    let least = settings("{ mode: leastLoad }");
    assert_eq!(settled(&least, &[(1, steady(40.0, 0.1)), (1, steady(40.0, 0.1))]), [100, 100]);
    // What is open now does not matter: it is gone by then.
    assert_eq!(settled(&least, &[(1, steady(100.0, 0.1)), (1, steady(400.0, 0.3))]), [150, 50]);
    // Four times the weight is to have four times as many.
    assert_eq!(settled(&least, &[(1, steady(50.0, 0.1)), (4, steady(200.0, 0.1))]), [100, 100]);
    assert_eq!(settled(&least, &[(1, steady(50.0, 0.1)), (4, steady(400.0, 0.2))]), [167, 83]);
}

#[test]
fn long_flows_fill_up_who_has_few() {
    let least = settings("{ mode: leastLoad }");
    let load = |open| Load { open, rate: 10.0, new: 20.0, flow_seconds: open * 2.0, ..Load::default() };
    // 20 a second for 10 s: 200 more make 250 each; and nobody gets more than all.
    assert_eq!(settled(&least, &[(1, load(100.0)), (1, load(200.0))]), [150, 50]);
    assert_eq!(settled(&least, &[(1, load(0.0)), (1, load(1000.0))]), [190, 10]);
    let few = settings("{ mode: leastLoad, minPercent: 40, maxPercent: 120 }");
    assert_eq!(settled(&few, &[(1, load(0.0)), (1, load(1000.0))]), [120, 53]);
}

#[test]
fn too_few_flows_and_none_move_nothing_and_weights_go_back() {
    let least = settings("{ mode: leastLoad }");
    assert_eq!(settled(&least, &[(1, steady(0.9, 0.1)), (1, steady(3.0, 0.3))]), [100, 100], "under two for each");
    assert_eq!(settled(&least, &[(1, Load::default()), (1, Load::default())]), [100, 100]);
    assert!(settled(&least, &[]).is_empty());
    let idle = |open| Load { open, flow_seconds: 2.0 * open, ..Load::default() };
    let idle = settled(&least, &[(1, idle(30.0)), (1, idle(10.0))]);
    assert_eq!(idle, [10, 190], "open flows without new ones");
    let mut controller = Controller::new([(at(0), 3.0), (at(1), 0.5)].into_iter());
    let quiet = [(at(0), 1, Load::default()), (at(1), 1, Load::default())];
    controller.step(&least, &quiet);
    assert_eq!(percents(&controller, 2), [280, 55]);
    (0..50).for_each(|_| controller.step(&least, &quiet));
    assert_eq!(percents(&controller, 2), [101, 100]);
}

#[test]
fn one_step_goes_as_far_as_the_gain_says() {
    let loads = [(at(0), 1, steady(100.0, 0.1)), (at(1), 1, steady(300.0, 0.3))];
    for (gain, first) in [(100, 150), (50, 125), (10, 105)] {
        let mut controller = Controller::default();
        let yaml = format!("{{ mode: leastLoad, gainPercent: {gain} }}");
        controller.step(&settings(&yaml), &loads);
        let got = percents(&controller, 2)[0];
        assert!((got - first).abs() <= 4, "gain {gain}: {got}");
    }
    // The more past windows count, the less the last one.
    for (damping, bound) in [(0, 140..=152), (90, 100..=115)] {
        let yaml = format!("{{ mode: leastLoad, gainPercent: 100, dampingPercent: {damping} }}");
        let mut controller = Controller::default();
        let even = [(at(0), 1, steady(200.0, 0.2)), (at(1), 1, steady(200.0, 0.2))];
        (0..20).for_each(|_| controller.step(&settings(&yaml), &even));
        controller.step(&settings(&yaml), &loads);
        assert!(bound.contains(&percents(&controller, 2)[0]), "damping {damping}: {:?}", percents(&controller, 2));
    }
}

#[test]
fn who_refuses_is_not_taken_to_be_free() {
    let least = settings("{ mode: leastLoad }");
    let refuses = Load { rate: 50.0, new: 100.0, ended: 100.0, refused: 100.0, ..Load::default() };
    for stay in [0.1, 1.0, 100.0] {
        let got = settled(&least, &[(1, steady(50.0, stay)), (1, steady(50.0, stay)), (1, refuses)]);
        assert!(got[2] <= 101, "{stay} s: {got:?}");
    }
    assert_eq!(settled(&least, &[(1, refuses), (1, refuses)]), [100, 100]);
    // Few refusals are no reason.
    let one = Load { refused: 5.0, ..steady(50.0, 0.1) };
    assert!(settled(&least, &[(1, one), (1, steady(100.0, 0.2))])[0] > 120);
}

#[test]
fn slow_members_get_less_until_they_are_quick() {
    let target = settings("{ mode: latencyTarget, targetMilliseconds: 10 }");
    let answers = |n: f64, ms: f64| Load { connected: n, connect_us: n * ms * 1000.0, ..Load::default() };
    let step = |controller: &mut Controller, loads: &[Load]| {
        let members: Vec<_> = loads.iter().zip(0..).map(|(load, m)| (at(m), 1, *load)).collect();
        controller.step(&target, &members);
        percents(controller, loads.len() as u8)
    };
    let mut c = Controller::default();
    assert_eq!(step(&mut c, &[answers(100.0, 2.0), answers(100.0, 20.0)]), [100, 59]);
    (0..20).for_each(|_| drop(step(&mut c, &[answers(100.0, 2.0), answers(100.0, 20.0)])));
    assert_eq!(percents(&c, 2), [100, 10], "the bound");
    // Between 80 % of the target and all of it, it stays: nothing swings. The past counts at first.
    (0..40).for_each(|_| drop(step(&mut c, &[answers(100.0, 2.0), answers(100.0, 9.0)])));
    let stays = percents(&c, 2);
    assert!(stays[1] <= 10 && stays == step(&mut c, &[answers(100.0, 2.0), answers(100.0, 9.0)]));
    let back: Vec<i64> = (0..30).map(|_| step(&mut c, &[answers(100.0, 2.0), answers(100.0, 1.0)])[1]).collect();
    assert!(back.is_sorted() && back[8] < 90 && back[29] > 97, "{back:?}");
    let mut c = Controller::default();
    assert_eq!(step(&mut c, &[answers(3.0, 50.0), answers(3.0, 1.0)]), [100, 100], "too few to say");
    let mut c = Controller::default();
    (0..9).for_each(|_| drop(step(&mut c, &[answers(100.0, 20.0), answers(100.0, 20.0)])));
    assert_eq!(percents(&c, 2), [100, 100], "what is slow everywhere is nobody's fault");
}

#[test]
fn what_cannot_be_reckoned_with_does_not_stay() {
    for mode in ["{ mode: leastLoad }", "{ mode: latencyTarget, targetMilliseconds: 5 }"] {
        let settings = settings(mode);
        for factor in [0.0, f64::INFINITY, f64::NAN] {
            let mut controller = Controller::new([(at(0), factor), (at(1), 1.0)].into_iter());
            let members = [(at(0), 1, steady(40.0, 0.1)), (at(1), 1, steady(40.0, 0.1))];
            controller.step(&settings, &members);
            assert!(percents(&controller, 2).iter().all(|percent| (1..=400).contains(percent)), "{factor}");
            (0..30).for_each(|_| controller.step(&settings, &members));
            assert_eq!(percents(&controller, 2), [100, 100], "{factor}");
        }
    }
}

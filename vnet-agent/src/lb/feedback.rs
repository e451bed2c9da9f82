//! What load feedback says of members: by what their weights are multiplied, and what they have from other hosts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use vnet_common::fleet::MemberKey;

use super::eject::Place;
use crate::fleet::load::differs;
use crate::resource::{Algorithm, FeedbackMode, LoadBalancer};

/// What is said of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// By what its weight is multiplied, in percent.
    pub percent: u32,
    /// Its open flows of other hosts' clients. Least connections count them.
    pub elsewhere: u32,
}

impl Default for Hint {
    /// Nothing.
    fn default() -> Self {
        Self { percent: 100, elsewhere: 0 }
    }
}

impl Hint {
    /// The percentage that weights go by: even ones only, so that what they have in common keeps the sequences of round robin short.
    pub fn whole_percent(&self) -> u32 {
        (self.percent & !1).max(1)
    }
}

/// What is said of the members of one load balancer.
pub type OfBalancer = HashMap<Place, Hint>;

/// What is said of members, by load balancer.
pub type Hints = HashMap<String, OfBalancer>;

/// Does the load balancer have its members' weights adjusted? With least connections, whoever picks levels their load.
pub fn adjusts_weights(lb: &LoadBalancer) -> bool {
    let levelled = lb.spec.algorithm == Algorithm::LeastConnections;
    lb.spec.active_feedback().is_some_and(|feedback| feedback.mode == FeedbackMode::LatencyTarget || !levelled)
}

/// What of factors, in percent, and of flows elsewhere is for the members of these load balancers.
pub fn hints<'a>(
    load_balancers: impl Iterator<Item = &'a LoadBalancer>,
    factors: &HashMap<MemberKey, u32>,
    elsewhere: &HashMap<MemberKey, u32>,
) -> Hints {
    let on = load_balancers.filter(|lb| lb.spec.active_feedback().is_some());
    let on: HashMap<&str, (Option<RangeInclusive<u32>>, bool)> = on
        .map(|lb| {
            let counts = lb.spec.algorithm == Algorithm::LeastConnections;
            // Whatever is said, no weight is multiplied by what its load balancer does not allow.
            let bounds = lb.spec.active_feedback().filter(|_| adjusts_weights(lb));
            let bounds = bounds.map(|f| u32::from(f.min_percent)..=u32::from(f.max_percent.max(f.min_percent)));
            (lb.metadata.name.as_str(), (bounds, counts))
        })
        .collect();
    let mut hints = Hints::new();
    let mut hint = |key: &MemberKey, change: &dyn Fn(&mut Hint)| {
        let of = hints.entry(key.lb.clone()).or_default();
        change(of.entry((key.port, key.at)).or_default());
    };
    for (key, percent) in factors {
        let Some((Some(bounds), _)) = on.get(key.lb.as_str()) else { continue };
        hint(key, &|hint| hint.percent = (*percent).clamp(*bounds.start(), *bounds.end()));
    }
    for (key, flows) in elsewhere.iter().filter(|(key, _)| on.get(key.lb.as_str()).is_some_and(|on| on.1)) {
        hint(key, &|hint| hint.elsewhere = *flows);
    }
    hints
}

/// Is what is said now worth new rows and tables?
pub fn differ(old: &OfBalancer, new: &OfBalancer) -> bool {
    if new.is_empty() {
        return !old.is_empty();
    }
    let hint = |of: &OfBalancer, place: &(u16, SocketAddr)| of.get(place).copied().unwrap_or_default();
    old.keys().chain(new.keys()).any(|place| {
        let (old, new) = (hint(old, place), hint(new, place));
        differs(old.percent, new.percent) || differs(old.elsewhere, new.elsewhere)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::compile::fixtures::lb;

    fn key(lb: &str, member: u8) -> MemberKey {
        MemberKey { lb: lb.into(), port: 80, at: SocketAddr::from(([10, 9, 0, member], 80)) }
    }

    #[test]
    fn each_load_balancer_gets_what_it_asks_for() {
        let balancer = |name: &str, algorithm, feedback: Option<&str>| {
            let mut lb = lb(name, &["10.0.0.1"], vec![]);
            lb.spec.algorithm = algorithm;
            lb.spec.feedback = feedback.map(|yaml| serde_saphyr::from_str(yaml).unwrap());
            lb
        };
        let (least, latency) = ("{ mode: leastLoad }", "{ mode: latencyTarget, targetMilliseconds: 5 }");
        let all = [
            balancer("none", Algorithm::LeastConnections, None),
            balancer("off", Algorithm::Maglev, Some("{}")),
            balancer("maglev", Algorithm::Maglev, Some(least)),
            balancer("fewest", Algorithm::LeastConnections, Some(least)),
            balancer("latency", Algorithm::LeastConnections, Some(latency)),
        ];
        let names = ["none", "off", "maglev", "fewest", "latency", "gone"];
        let factors = names.iter().map(|lb| (key(lb, 1), 150)).collect();
        let elsewhere = names.iter().map(|lb| (key(lb, 2), 3)).collect();
        let hints = hints(all.iter(), &factors, &elsewhere);
        let place = |member| (80, key("", member).at);
        let (more, flows) = (Hint { percent: 150, elsewhere: 0 }, Hint { percent: 100, elsewhere: 3 });
        let want = [
            ("maglev", OfBalancer::from([(place(1), more)])),
            ("fewest", OfBalancer::from([(place(2), flows)])),
            ("latency", OfBalancer::from([(place(1), more), (place(2), flows)])),
        ];
        assert_eq!(hints, want.into_iter().map(|(lb, of)| (lb.to_owned(), of)).collect());
        for (said, within) in [(1, 10), (9999, 400)] {
            let hints = super::hints(all.iter(), &HashMap::from([(key("maglev", 1), said)]), &HashMap::new());
            assert_eq!(hints["maglev"][&place(1)].percent, within, "as its load balancer allows");
        }
    }

    #[test]
    fn noise_changes_nothing_and_the_end_is_exact() {
        let of = |hints: &[(u8, u32, u32)]| -> OfBalancer {
            let hint = |(m, percent, elsewhere): &(u8, u32, u32)| {
                ((80, key("", *m).at), Hint { percent: *percent, elsewhere: *elsewhere })
            };
            hints.iter().map(hint).collect()
        };
        let old = of(&[(1, 150, 0), (2, 50, 400)]);
        for (new, want) in [
            (of(&[(1, 150, 0), (2, 50, 400)]), false),
            (of(&[(1, 153, 0), (2, 49, 410)]), false),
            (of(&[(1, 155, 0), (2, 50, 400)]), true),
            (of(&[(1, 150, 1), (2, 50, 400)]), true),
            (of(&[(1, 150, 0), (2, 50, 413)]), true),
            (of(&[(1, 150, 0)]), true),
            (of(&[]), true),
        ] {
            assert_eq!(differ(&old, &new), want, "{new:?}");
        }
        assert!(differ(&of(&[(1, 101, 0)]), &of(&[])), "as configured is exactly so");
        assert!(!differ(&of(&[]), &of(&[])) && !differ(&of(&[]), &of(&[(1, 102, 0)])));
    }
}

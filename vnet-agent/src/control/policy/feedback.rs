//! Weights that follow the members' load.

use std::collections::{BTreeSet, HashMap};

use vnet_common::fleet::MemberKey;

use super::Policy;
use crate::lb::apply::Rows;
use crate::lb::feedback::{Hints, OfBalancer, differ, hints};

impl<R: Rows> Policy<R> {
    /// Takes over by what members' weights are to be multiplied, in percent, and what flows they have elsewhere, and brings the maps
    /// there, if it is worth it. Where they have no room for that, weights are as configured: see [`Policy::feedback_trouble`].
    pub fn set_feedback(&mut self, factors: &HashMap<MemberKey, u32>, elsewhere: &HashMap<MemberKey, u32>) {
        self.take_hints(hints(self.inputs.load_balancers(), factors, elsewhere));
        if self.trouble.is_some() {
            return; // it is not the weights that keep the maps from following
        }
        self.refresh();
        let trouble = self.trouble.clone();
        if trouble.is_some() {
            self.take_hints(Hints::new());
            self.refresh();
        }
        if let Some(why) = trouble.as_ref().filter(|_| self.feedback_trouble != trouble) {
            log::error!("weights are as configured, not as the members' load says: {why}");
        }
        self.feedback_trouble = trouble;
    }

    fn take_hints(&mut self, mut hints: Hints) {
        let names: BTreeSet<String> = self.inputs.feedback.keys().chain(hints.keys()).cloned().collect();
        for name in names {
            let new = hints.remove(&name).unwrap_or_default();
            if !differ(self.inputs.feedback.get(&name).unwrap_or(&OfBalancer::new()), &new) {
                continue;
            }
            match new.is_empty() {
                true => self.inputs.feedback.remove(&name),
                false => self.inputs.feedback.insert(name.clone(), new),
            };
            self.stale.insert(name);
        }
    }

    /// Why weights do not follow the members' load, if the maps had no room for that the last time.
    pub fn feedback_trouble(&self) -> Option<&str> {
        self.feedback_trouble.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::tests::{Rig, rig};
    use super::*;
    use crate::lb::compile::fixtures::{lb, member};
    use crate::resource::{Algorithm, Resource};

    fn key(lb: &str, member: u8) -> MemberKey {
        MemberKey { lb: lb.into(), port: 80, at: SocketAddr::from(([10, 9, 0, member], 80)) }
    }

    /// Load balancers with three members each whose weights follow the load.
    fn with(algorithms: &[Algorithm]) -> Rig {
        let mut rig = rig();
        for (n, algorithm) in algorithms.iter().enumerate() {
            let members = (1..=3).map(|m| member(&format!("10.9.0.{m}"))).collect();
            let mut lb = lb(&format!("lb{n}"), &[&format!("10.0.0.{}", n + 1)], members);
            lb.spec.algorithm = *algorithm;
            lb.spec.feedback = Some(serde_saphyr::from_str("{ mode: leastLoad }").unwrap());
            rig.policy.change(vec![Resource::LoadBalancer(lb)], vec![], false).unwrap();
        }
        rig
    }

    impl Rig {
        /// Of the first load balancer's members with these factors and flows elsewhere: how many writes that took.
        fn feed(&mut self, factors: [u32; 3], elsewhere: [u32; 3]) -> u32 {
            let before = self.maps.written.get();
            let of = |numbers: [u32; 3]| (1..).zip(numbers).map(|(m, n)| (key("lb0", m), n)).collect();
            self.policy.set_feedback(&of(factors), &of(elsewhere));
            self.maps.written.get() - before
        }

        /// Shares, and flows elsewhere, in the rows of the first load balancer.
        fn rows(&self) -> Vec<(u32, u32)> {
            let live = self.maps.live.borrow();
            live.members.values().filter(|m| m.group == 0).map(|m| (m.share, m.elsewhere)).collect()
        }
    }

    #[test]
    fn only_what_changed_is_written_and_no_flow_is_judged_again() {
        let mut rig = with(&[Algorithm::Maglev, Algorithm::Maglev]);
        let generation = rig.maps.generation.get();
        assert_eq!(rig.feed([170, 86, 44], [9, 9, 9]), 5, "a table, its group and three members");
        assert_eq!(rig.rows(), [(170, 0), (86, 0), (44, 0)]);
        assert_eq!(rig.feed([172, 84, 45], [0; 3]), 0, "noise");
        assert_eq!(rig.feed([180, 84, 45], [0; 3]), 4, "together, and only who is another: 45 counts as 44");
        assert_eq!(rig.rows(), [(180, 0), (84, 0), (44, 0)]);
        rig.policy.set_feedback(&HashMap::new(), &HashMap::new());
        assert_eq!(rig.rows(), [(100, 0); 3]);
        assert_eq!((rig.feed([100; 3], [0; 3]), rig.maps.generation.get()), (0, generation));
    }

    #[test]
    fn flows_elsewhere_are_rows_of_members_and_no_more() {
        let mut rig = with(&[Algorithm::LeastConnections]);
        let generation = rig.maps.generation.get();
        assert_eq!(rig.feed([200; 3], [5, 0, 500]), 2);
        assert_eq!(rig.rows(), [(100, 5), (100, 0), (100, 500)]);
        assert_eq!((rig.feed([200; 3], [5, 0, 510]), rig.feed([200; 3], [5, 0, 520])), (0, 1));
        assert_eq!((rig.feed([200; 3], [0; 3]), rig.maps.generation.get()), (2, generation));
    }

    #[test]
    fn a_drained_member_stays_so_and_another_weight_counts() {
        let mut rig = with(&[Algorithm::Maglev]);
        rig.feed([200, 50, 50], [0; 3]);
        let change = |drained, weight| vnet_common::api::MemberChange { drained, weight };
        rig.policy.change_member("lb0", "10.9.0.1", &change(Some(true), None)).unwrap();
        rig.policy.change_member("lb0", "10.9.0.2", &change(None, Some(10))).unwrap();
        rig.feed([300, 60, 50], [0; 3]);
        assert_eq!(rig.rows(), [(0, 0), (600, 0), (50, 0)]);
    }

    #[test]
    fn where_there_is_no_room_weights_are_as_configured() {
        let mut rig = with(&[Algorithm::RoundRobin]);
        // The sequence of three, and another one for a while.
        rig.maps.blocks.set(2);
        rig.feed([170, 86, 44], [0; 3]);
        let why = rig.policy.feedback_trouble().unwrap();
        assert!(why.contains("no room for its pick table in map MAGLEV"), "{why}");
        assert_eq!((rig.rows(), rig.policy.trouble()), (vec![(100, 0); 3], None));
        rig.maps.blocks.set(100);
        rig.feed([170, 86, 44], [0; 3]);
        assert_eq!((rig.rows(), rig.policy.feedback_trouble()), (vec![(170, 0), (86, 0), (44, 0)], None));
    }
}

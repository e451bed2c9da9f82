//! What a change would do to connections.

use std::collections::BTreeSet;

use vnet_common::lb::flags;

use crate::lb::compile::{Group, Member};

/// What becomes of the connections of VIPs, ports and members that are in `old` and not in `new`.
pub fn of_removal(old: &[Group], new: &[Group]) -> Vec<String> {
    let mut warnings = BTreeSet::new();
    for was in old {
        for vip in &was.vips {
            let same = |g: &&Group| g.vips.contains(vip) && (g.port, g.protocol) == (was.port, was.protocol);
            match new.iter().find(same) {
                None => drop(warnings.insert(format!(
                    "load balancer {}: connections to {vip} port {} are not balanced any more",
                    was.lb, was.port
                ))),
                Some(is) => warnings.extend(was.members.iter().filter(|m| !has(is, m)).map(|m| of_member(is, m))),
            }
        }
    }
    warnings.into_iter().collect()
}

fn has(group: &Group, member: &Member) -> bool {
    group.members.iter().any(|m| (m.address, m.port) == (member.address, member.port))
}

fn of_member(group: &Group, m: &Member) -> String {
    let fate = if group.flags & flags::REMOVED_REPICK == 0 { "are reset" } else { "go to other members" };
    format!(
        "load balancer {}: connections of member {} (port {}) {fate}; drain it first to let them end",
        group.lb, m.name, m.port
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::compile::fixtures::{Input, compile, lb, member};
    use crate::resource::OnMemberRemoved;

    #[test]
    fn says_what_becomes_of_connections() {
        let groups = |members: &[&str], vips: &[&str], removed| {
            let mut lb = lb("web", vips, members.iter().map(|m| member(m)).collect());
            lb.spec.on_member_removed = removed;
            compile(&Input { load_balancers: vec![lb], ..Input::default() }).groups().to_vec()
        };
        let old = groups(&["10.9.0.1", "10.9.0.2"], &["10.0.0.1", "10.0.0.2"], OnMemberRemoved::Reset);
        assert!(of_removal(&old, &old).is_empty());
        let new = groups(&["10.9.0.2", "10.9.0.3"], &["10.0.0.1"], OnMemberRemoved::Reset);
        assert_eq!(
            of_removal(&old, &new),
            [
                "load balancer web: connections of member 10.9.0.1 (port 80) are reset; drain it first to let them end",
                "load balancer web: connections to 10.0.0.2 port 80 are not balanced any more",
            ]
        );
        let new = groups(&["10.9.0.2"], &["10.0.0.1", "10.0.0.2"], OnMemberRemoved::Repick);
        assert!(of_removal(&old, &new)[0].contains("go to other members"));
    }
}

//! What becomes of a flow: what was decided stays as long as it holds; what is new is decided by the rules and the load balancer.
//!
//! - A packet whose flow is known follows it, in both directions: so the replies of what is allowed pass. An entry of another generation
//!   is judged again first, from the side of whoever opened it, and is removed when it may not stay.
//! - A new flow of a policed endpoint is asked about at each side's own device: by the set's egress rules where it is opened, by the ingress
//!   rules where it arrives. One to a VIP is asked about twice, as the VIP and as the member: a rule that denies either decides; else
//!   one that allows either; else the default.
//! - ICMP errors about a known flow pass, and the fragments of a datagram after the first. What makes no flow (other ICMP, fragments that come before
//!   the first, resets of no connection) is asked about packet by packet.

use crate::addr::Address;
use crate::endpoint::EndpointRow;
use crate::flow::{FlowMaps, Work, track};
use crate::lb::pick::{self, Outcome};
use crate::lb::vip;
use crate::parse::{Headers, tcp};
use crate::pipeline::Maps;
use crate::policy::evaluate::evaluate;
use crate::verdict::{Direction, Reason};

pub mod admit;
pub mod revalidate;

/// The large steps, as functions of their own: the kernel's verifier looks at each once, not for every way that leads to it.
pub trait Judge<A: Address>: Sized {
    /// [`egress`].
    #[inline(always)]
    fn egress(&self, ep: &EndpointRow, w: &mut Work<A>, vip: bool) -> Decision
    where
        Self: Maps + FlowMaps<A>,
    {
        egress(self, ep, w, vip)
    }
    /// [`ingress`].
    #[inline(always)]
    fn ingress(&self, ep: &EndpointRow, w: &mut Work<A>) -> Decision
    where
        Self: Maps + FlowMaps<A>,
    {
        ingress(self, ep, w)
    }
    /// [`revalidate::known`].
    #[inline(always)]
    fn known(&self, ep: &EndpointRow, w: &mut Work<A>) -> Known
    where
        Self: Maps + FlowMaps<A>,
    {
        revalidate::known(self, ep, w)
    }
    /// [`evaluate`] for [`Work::question`], into [`Work::judged`] or, if it is about a `member`, [`Work::judged_member`].
    #[inline(always)]
    fn evaluate(&self, w: &mut Work<A>, member: bool) -> bool
    where
        Self: Maps + FlowMaps<A>,
    {
        evaluate(self, &w.question, if member { &mut w.judged_member } else { &mut w.judged })
    }
    /// [`pick::from_group`].
    #[inline(always)]
    fn pick(&self, ep: &EndpointRow, w: &mut Work<A>, bits: u32) -> Outcome
    where
        Self: Maps + FlowMaps<A>,
    {
        pick::from_group(self, ep, w, bits)
    }
    /// [`pick::candidate`].
    #[inline(always)]
    fn candidate(&self, w: &mut Work<A>, attempt: u32) -> u32
    where
        Self: Maps + FlowMaps<A>,
    {
        pick::candidate(self, w, attempt)
    }
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Decision {
    /// Not for us.
    NotOurs,
    /// Rewrite as [`Work::treatment`] says (which may be nothing), and deliver; counted as [`Work::reason`].
    Forward,
    /// Refuse it for [`Work::reason`]: TCP reset, or an ICMP error.
    Reject,
    /// Answer the echo request.
    Echo,
    /// A rule sends it to a member of [`Work::group`]: the flow is still to be made.
    Steer,
    /// Drop, for [`Work::reason`].
    Drop,
}

/// What the rules say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may be.
    Allowed,
    /// It may not, for [`Work::reason`].
    Denied,
    /// It is refused aloud, for [`Work::reason`].
    Rejected,
    /// It goes to a member of [`Work::group`].
    Steered,
}

/// What is known of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Known {
    /// It goes on.
    Valid,
    /// It may not go on, for [`Work::reason`].
    Refused,
    /// There is none.
    None,
    /// The rules say no now.
    Denied,
    /// The same, aloud.
    Rejected,
    /// The member, the group or the VIP is no more, or another treatment is due: the client is told by a reset.
    GoneReset,
    /// The same, and another member is picked instead.
    GoneRepick,
}

macro_rules! numbered {
    ($name:ident: $first:ident $(, $other:ident)* $(,)?) => {
        impl $name {
            /// What has this number; the first, for a number that none has.
            #[inline(always)]
            pub const fn of(number: u32) -> Self {
                $(if number == Self::$other as u32 {
                    return Self::$other;
                })*
                Self::$first
            }
        }
    };
}
numbered!(Decision: Drop, NotOurs, Forward, Reject, Echo, Steer);
numbered!(Known: Refused, Valid, None, Denied, Rejected, GoneReset, GoneRepick);
numbered!(Outcome: Drop, Picked, NoGroup, Reject, Steer);

/// Does the packet belong to something that has an entry, or may get one?
#[inline(always)]
pub fn is_tracked<A: Address>(h: &Headers<A>, ep: &EndpointRow) -> bool {
    if h.later {
        return false;
    }
    h.is_tcp() || h.is_udp() || (ep.is_policed() && (!h.is_icmp() || h.is_echo(false) || h.is_echo(true)))
}

/// Decides about a packet that an endpoint sends. `vip`: its destination may be one.
#[inline(always)]
pub fn egress<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>, vip: bool) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let tracked = is_tracked(&w.headers, ep);
    if tracked {
        match Judge::<A>::known(m, ep, w) {
            Known::Valid => return Decision::Forward,
            Known::Refused | Known::Denied => return Decision::Drop,
            Known::Rejected => return Decision::Reject,
            Known::None => {
                // A member may have been its own client.
                if !vip::is_no_member(m, ep, &w.headers.src) && track::turn(m, w) {
                    let decision = follow(m, ep, w);
                    if decision != Decision::NotOurs {
                        return decision;
                    }
                    w.seen.key.direction = Direction::Egress as u8;
                }
            }
            gone @ (Known::GoneReset | Known::GoneRepick) => {
                let fresh_syn = w.headers.tcp & (tcp::SYN | tcp::ACK) == tcp::SYN;
                if gone == Known::GoneReset && w.headers.is_tcp() && !fresh_syn {
                    return Decision::Reject;
                }
            }
        }
    }
    let mut decision = if vip { vip::egress(m, ep, w, tracked) } else { Decision::NotOurs };
    if decision == Decision::NotOurs && ep.is_policed() {
        decision = admit::fresh(m, ep, w);
    }
    if decision == Decision::Steer { pick::steer(m, ep, w) } else { decision }
}

/// Decides about a packet that reaches an endpoint.
#[inline(always)]
pub fn ingress<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    let decision = follow(m, ep, w);
    if decision != Decision::NotOurs || !ep.is_policed() {
        return decision;
    }
    if w.flooded {
        // One of a known flow passes, as on the short way, which does not look: whose it is does not take it.
        w.reason = Reason::Flooded;
        return Decision::Drop;
    }
    admit::fresh(m, ep, w)
}

/// The same, by what is known of its flow only: enough for endpoints that are not policed.
#[inline(always)]
pub fn follow<A, M>(m: &M, ep: &EndpointRow, w: &mut Work<A>) -> Decision
where
    A: Address,
    M: Maps + FlowMaps<A> + Judge<A>,
{
    if !is_tracked(&w.headers, ep) {
        return Decision::NotOurs;
    }
    match Judge::<A>::known(m, ep, w) {
        Known::Valid => Decision::Forward,
        Known::Refused | Known::Denied | Known::GoneReset | Known::GoneRepick => Decision::Drop,
        Known::Rejected => Decision::Reject,
        Known::None => Decision::NotOurs,
    }
}

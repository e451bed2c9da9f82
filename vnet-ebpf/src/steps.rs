//! The pipeline's large steps as global functions: the verifier looks at each of them once, for any values that its arguments may have,
//! and not once for every way that leads to it. See [`Judge`] and [`Ways`].

use aya_ebpf::bindings::__sk_buff;
use vnet_common::addr::{V4, V6};
use vnet_common::endpoint::EndpointRow;
use vnet_common::flow::Work;
use vnet_common::judge::{self, Decision, Judge, Known, revalidate};
use vnet_common::lb::pick::{self, Outcome};
use vnet_common::pipeline::{Ways, long, short};
use vnet_common::policy::evaluate::{self, Search};
use vnet_common::verdict::Verdict;

use crate::maps::Kernel;
use crate::packet::Skb;

/// A step as a global function. A pointer that is null, which none is, gives what a number that nothing has gives.
macro_rules! step {
    ($name:ident($ep:ident, $w:ident: $addr:ty $(, $n:ident)?) => $run:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name($ep: *const EndpointRow, $w: *mut Work<$addr> $(, $n: u32)?) -> u32 {
            // SAFETY: null, or a whole value, as the verifier makes sure; the caller has lent it to this call.
            let Some($ep) = (unsafe { $ep.as_ref() }) else { return u32::MAX };
            // SAFETY: as above.
            let Some($w) = (unsafe { $w.as_mut() }) else { return u32::MAX };
            $run as u32
        }
    };
}

macro_rules! judge {
    ($addr:ty, $egress:ident, $ingress:ident, $known:ident, $evaluate:ident, $pick:ident, $candidate:ident) => {
        step!($egress(ep, w: $addr, vip) => judge::egress(&Kernel, ep, w, vip != 0));
        step!($ingress(ep, w: $addr) => judge::ingress(&Kernel, ep, w));
        step!($known(ep, w: $addr) => revalidate::known(&Kernel, ep, w));
        step!($pick(ep, w: $addr, bits) => pick::from_group(&Kernel, ep, w, bits));
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $evaluate(w: *mut Work<$addr>, member: u32) -> u32 {
            // SAFETY: as in `step`.
            let Some(w) = (unsafe { w.as_mut() }) else { return u32::MAX };
            let into = if member != 0 { &mut w.judged_member } else { &mut w.judged };
            #[cfg(feature = "bench")]
            if !crate::bench::has_rules() {
                into.rule.action = vnet_common::policy::action::ALLOW;
                return 1;
            }
            u32::from(evaluate::evaluate(&Kernel, &w.question, into))
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $candidate(w: *mut Work<$addr>, attempt: u32) -> u32 {
            // SAFETY: as in `step`.
            let Some(w) = (unsafe { w.as_mut() }) else { return u32::MAX };
            pick::candidate(&Kernel, w, attempt)
        }
        impl Judge<$addr> for Kernel {
            #[inline(always)]
            fn egress(&self, ep: &EndpointRow, w: &mut Work<$addr>, vip: bool) -> Decision {
                Decision::of($egress(ep, w, u32::from(vip)))
            }
            #[inline(always)]
            fn ingress(&self, ep: &EndpointRow, w: &mut Work<$addr>) -> Decision {
                Decision::of($ingress(ep, w))
            }
            #[inline(always)]
            fn known(&self, ep: &EndpointRow, w: &mut Work<$addr>) -> Known {
                Known::of($known(ep, w))
            }
            #[inline(always)]
            fn evaluate(&self, w: &mut Work<$addr>, member: bool) -> bool {
                $evaluate(w, u32::from(member)) == 1
            }
            #[inline(always)]
            fn pick(&self, ep: &EndpointRow, w: &mut Work<$addr>, bits: u32) -> Outcome {
                Outcome::of($pick(ep, w, bits))
            }
            #[inline(always)]
            fn candidate(&self, w: &mut Work<$addr>, attempt: u32) -> u32 {
                $candidate(w, attempt)
            }
        }
    };
}

/// No verdict: the long way is to be gone.
const NONE: u64 = u64::MAX;

macro_rules! ways {
    ($addr:ty, [$known_egress:ident, $known_ingress:ident, $egress:ident, $ingress:ident, $probe:ident]) => {
        way!($known_egress, short::egress_known::<$addr, _, _>);
        way!($known_ingress, short::ingress_known::<$addr, _, _>);
        way!($egress, long::egress_ip, $addr);
        way!($ingress, long::ingress_ip, $addr);
        way!($probe, long::ingress_probe, $addr);
        impl Ways<Skb, $addr> for Kernel {
            #[inline(always)]
            fn egress_known(&self, p: &mut Skb, ep: &EndpointRow) -> Option<Verdict> {
                let word = $known_egress(p.context(), ep);
                (word != NONE).then(|| Verdict::of_word(word))
            }
            #[inline(always)]
            fn ingress_known(&self, p: &mut Skb, ep: &EndpointRow) -> Option<Verdict> {
                let word = $known_ingress(p.context(), ep);
                (word != NONE).then(|| Verdict::of_word(word))
            }
            #[inline(always)]
            fn egress(&self, p: &mut Skb, w: &mut Work<$addr>, ep: &EndpointRow) -> Verdict {
                Verdict::of_word($egress(p.context(), ep, w))
            }
            #[inline(always)]
            fn ingress(&self, p: &mut Skb, w: &mut Work<$addr>, ep: &EndpointRow) -> Verdict {
                Verdict::of_word($ingress(p.context(), ep, w))
            }
            #[inline(always)]
            fn probe(&self, p: &mut Skb, w: &mut Work<$addr>, ep: &EndpointRow) -> Verdict {
                Verdict::of_word($probe(p.context(), ep, w))
            }
        }
    };
}

macro_rules! way {
    ($name:ident, $way:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut __sk_buff, ep: *const EndpointRow) -> u64 {
            // SAFETY: as in `step`.
            let Some(ep) = (unsafe { ep.as_ref() }) else { return NONE };
            $way(&mut Skb::again(ctx), &Kernel, ep).map_or(NONE, Verdict::to_word)
        }
    };
    ($name:ident, $way:path, $addr:ty) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut __sk_buff, ep: *const EndpointRow, w: *mut Work<$addr>) -> u64 {
            // SAFETY: as in `step`.
            let Some(ep) = (unsafe { ep.as_ref() }) else { return NONE };
            // SAFETY: as in `step`.
            let Some(w) = (unsafe { w.as_mut() }) else { return NONE };
            $way(&mut Skb::again(ctx), &Kernel, w, ep).to_word()
        }
    };
}
ways!(V4, [short_egress4, short_ingress4, long_egress4, long_ingress4, probe4]);
ways!(V6, [short_egress6, short_ingress6, long_egress6, long_ingress6, probe6]);
judge!(V4, judge_egress4, judge_ingress4, judge_known4, judge_evaluate4, judge_pick4, judge_candidate4);
judge!(V6, judge_egress6, judge_ingress6, judge_known6, judge_evaluate6, judge_pick6, judge_candidate6);

/// See [`evaluate::ports`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_ports(first: u32, count: u32, key: u32) -> u32 {
    evaluate::ports(&Kernel, first, count, key)
}

/// See [`evaluate::next`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_next(by_peer: u32, by_port: u32, enforced: u32, words: u32, at: u32) -> u32 {
    evaluate::next(&Kernel, Search { by_peer, by_port, enforced, words }, at)
}

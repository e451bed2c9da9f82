//! `aya::Pod` for what lies in maps: plain `repr(C)` data without padding (asserted beside each type).

use crate::addr::Address;

macro_rules! pod {
    ($($t:ty),+ $(,)?) => {
        // SAFETY: repr(C) or repr(transparent) over integers and byte arrays, no padding, every bit pattern valid.
        $(unsafe impl aya::Pod for $t {})+
    };
}

pod!(
    crate::endpoint::EndpointRow,
    crate::endpoint::EndpointCounters,
    crate::endpoint::FlowCount,
    crate::lb::VipKey,
    crate::lb::VipRow,
    crate::lb::GroupRow,
    crate::lb::MemberRow,
    crate::lb::MemberCounters,
    crate::lb::MemberAnswers,
    crate::lb::AffinityKey,
    crate::lb::AffinityRow,
    crate::flow::fragment::FragmentKey,
    crate::flow::fragment::FragmentRow,
    crate::map::Config,
    crate::policy::AddressKey,
    crate::policy::NetworkKey,
    crate::policy::PeerKey,
    crate::policy::PortRow,
    crate::policy::RuleRow,
    crate::policy::RuleCounters,
    crate::policy::SetRow,
    crate::event::EventRow,
    crate::event::EventBudget,
);
#[cfg(feature = "bench")]
pod!(crate::bench::Plan);
// SAFETY: as above; the sizes for both families are asserted beside the type.
unsafe impl<A: Address> aya::Pod for crate::flow::FlowKey<A> {}
// SAFETY: as above.
unsafe impl<A: Address> aya::Pod for crate::flow::FlowEntry<A> {}
// SAFETY: as above.
unsafe impl<A: Address> aya::Pod for crate::flow::CacheSlot<A> {}

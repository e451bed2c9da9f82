//! What happens to a packet, and why.

/// The outcome of the pipeline for one packet.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on to the next TCX program and the stack, rewritten or not.
    Next(Reason),
    /// Hand the packet to another endpoint's device on this host, past the stack.
    Redirect {
        /// The destination's host-side device.
        ifindex: u32,
        /// Enter the device's peer directly (`bpf_redirect_peer`); its own ingress stages have run already.
        peer: bool,
        /// Why.
        reason: Reason,
    },
    /// The packet was made into an answer: send it back out of the device it came from.
    Reply(Reason),
    /// The packet was made into an answer in the endpoint's own name: let it enter at the endpoint's device.
    Bounce(Reason),
    /// Drop.
    Drop(Reason),
}

impl Verdict {
    /// Why, whatever the outcome.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Next(r) | Self::Redirect { reason: r, .. } | Self::Reply(r) | Self::Bounce(r) | Self::Drop(r) => r,
        }
    }
}

impl Verdict {
    /// As one number: what a function that the verifier looks at by itself can return.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let (kind, more) = match self {
            Self::Next(_) => (0, 0),
            Self::Redirect { ifindex, peer, .. } => (if peer { 2 } else { 1 }, (ifindex as u64) << 32),
            Self::Reply(_) => (3, 0),
            Self::Bounce(_) => (4, 0),
            Self::Drop(_) => (5, 0),
        };
        more | (self.reason() as u64) << 8 | kind
    }

    /// The other way round.
    #[inline(always)]
    pub fn of_word(word: u64) -> Self {
        let reason = Reason::of(word as u32 >> 8 & 0xff);
        let ifindex = (word >> 32) as u32;
        match word as u32 & 0xff {
            0 => Self::Next(reason),
            1 => Self::Redirect { ifindex, peer: false, reason },
            2 => Self::Redirect { ifindex, peer: true, reason },
            3 => Self::Reply(reason),
            4 => Self::Bounce(reason),
            _ => Self::Drop(reason),
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a packet got its verdict. The numbers are an interface: append only, never reuse one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
            /// The reason with this number; `BadRow` for a number that none has.
            #[inline(always)]
            pub const fn of(number: u32) -> Self {
                match number {
                    $($number => Self::$name,)+
                    _ => Self::BadRow,
                }
            }
            /// The name used by the CLI, the metrics and the documentation.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// The packet's device has no endpoint row.
    NoEndpoint = 0, "no-endpoint";
    /// Neither IPv4, IPv6 nor something answered for a VIP.
    NotIp = 1, "not-ip";
    /// A header is cut off or contradicts itself, or there are more than are followed. Dropped if the endpoint is policed, or could hide a tunnel's
    /// packet so; else left to the stack.
    Malformed = 2, "malformed";
    /// The packet carries the tag of a VLAN, beside it. One with the number 0 is none (IEEE 802.1Q: a priority).
    Vlan = 3, "vlan";
    /// Nothing of ours: addressed to no VIP, and no flow is known.
    NotOurs = 4, "not-ours";
    /// An established flow, rewritten.
    Established = 5, "established";
    /// The first packet of a flow: a member was picked.
    NewFlow = 6, "new-flow";
    /// A connection that is still being opened, rewritten.
    HalfOpen = 7, "half-open";
    /// A reply, rewritten back to the VIP.
    Reply = 8, "reply";
    /// Answered for the VIP: ARP or neighbour solicitation.
    VipNeighbor = 9, "vip-neighbor";
    /// Answered for the VIP: echo request.
    VipEcho = 10, "vip-echo";
    /// A port of the VIP that no group has.
    VipPortClosed = 11, "vip-port-closed";
    /// The group has no member that may take a new flow.
    NoMember = 12, "no-member";
    /// The flow's member was removed.
    MemberRemoved = 13, "member-removed";
    /// A fragment addressed to a VIP (no ports, no flow).
    Fragment = 14, "fragment";
    /// No reverse tuple was free: other members and other source ports were tried. Or another CPU is just making the same flow.
    FlowCollision = 15, "flow-collision";
    /// The flow table is full.
    FlowTableFull = 16, "flow-table-full";
    /// The endpoint has as many flows as it may have.
    FlowQuota = 17, "flow-quota";
    /// Too big for the member's device; the sender was told the size that fits.
    PacketTooBig = 18, "packet-too-big";
    /// The kernel could not make the packet writable, or gave no memory.
    NoMemory = 19, "no-memory";
    /// Rows of the policy contradict each other: a bug, or a table torn by memory corruption.
    BadRow = 20, "bad-row";
    /// A rejection that must not be answered (a reset, an error, a broadcast), or that cannot be (options in the way).
    RejectSilent = 21, "reject-silent";
    /// The first packet of a flow that a rule allows, or one of those that make no flow.
    Allowed = 22, "allowed";
    /// A rule denies it.
    Denied = 23, "denied";
    /// A rule refuses it aloud.
    Rejected = 24, "rejected";
    /// The endpoint is in quarantine, which does not allow it.
    Quarantined = 25, "quarantined";
    /// The first packet of a flow that goes to the quarantine's remediation service instead.
    Steered = 26, "steered";
    /// An ICMP error about a flow that may be.
    Related = 27, "related";
    /// What keeps a network going: ARP, neighbour discovery, DHCP.
    System = 28, "system";
    /// The source MAC is not the endpoint's.
    SpoofedMac = 29, "spoofed-mac";
    /// The source address is not the endpoint's.
    SpoofedAddress = 30, "spoofed-address";
    /// ARP or neighbour discovery in the name of another.
    SpoofedNeighbor = 31, "spoofed-neighbor";
    /// The endpoint may not originate tunnel packets.
    TunnelForbidden = 32, "tunnel-forbidden";
    /// One of the agent's own probes.
    Probe = 33, "probe";
    /// Made by our own programs: an answer in somebody's name, or a copy for a service node.
    Ours = 34, "ours";
    /// Of no known flow, and addressed to another MAC: a bridge that does not know where that is sent it to all ports.
    Flooded = 35, "flooded";
}

impl Reason {
    /// Whether the packet went no further: it was dropped, or refused with an answer. (What is answered in somebody's place is not. What
    /// cannot be judged — not IP, malformed, tagged — is dropped where the endpoint is policed, and else left to the stack.)
    pub const fn is_drop(self) -> bool {
        match self {
            Self::NoEndpoint | Self::NotIp | Self::Malformed | Self::Vlan | Self::NotOurs => false,
            Self::Established | Self::NewFlow | Self::HalfOpen | Self::Reply => false,
            Self::VipNeighbor | Self::VipEcho => false,
            Self::VipPortClosed | Self::NoMember | Self::MemberRemoved | Self::Fragment => true,
            Self::FlowCollision | Self::FlowTableFull | Self::FlowQuota => true,
            Self::PacketTooBig | Self::NoMemory | Self::BadRow | Self::RejectSilent => true,
            Self::Allowed | Self::Steered | Self::Related | Self::System | Self::Probe | Self::Ours => false,
            Self::Denied | Self::Rejected | Self::Quarantined => true,
            Self::SpoofedMac | Self::SpoofedAddress | Self::SpoofedNeighbor | Self::TunnelForbidden => true,
            Self::Flooded => true,
        }
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

/// Room for reasons in counters; more need a new map ABI.
pub const MAX_REASONS: usize = 62;
const _: () = assert!(Reason::ALL.len() <= MAX_REASONS);

/// Which way a packet goes, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the endpoint.
    Egress = 0,
    /// To the endpoint.
    Ingress = 1,
}

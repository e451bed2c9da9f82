//! ICMP errors about flows that may be.

use super::Maps;
use crate::endpoint::EndpointRow;
use crate::family::Family;
use crate::flow::{FlowKey, FlowMaps, Table, Work};
use crate::judge::Judge;
use crate::packet::Packet;
use crate::parse::protocol;

/// Is it an ICMP error about a packet of a flow that may be? The packet that it quotes went the other way, so the flow's entry for this
/// way has its tuple turned round.
#[inline(never)]
pub fn is_related<A: Family, P: Packet, M: Maps + FlowMaps<A> + Judge<A>>(
    p: &P,
    m: &M,
    w: &mut Work<A>,
    ep: &EndpointRow,
) -> bool {
    let h = &w.headers;
    if !h.is_icmp() || h.fragment || !A::is_error(h.dport[0]) {
        return false;
    }
    // So many bits: the verifier must see that it is not negative.
    let Some(quoted) = A::quoted(p, (h.l4 & 0x7ff) + 8) else { return false };
    let Some([a, b, c, d]) = p.read::<4>(quoted.l4) else { return false };
    let (sport, dport) = if matches!(quoted.protocol, protocol::TCP | protocol::UDP) {
        ([c, d], [a, b])
    } else if quoted.protocol == h.protocol {
        let id = p.read::<2>(quoted.l4 + 4).unwrap_or_default();
        match (A::VERSION, a) {
            (4, 8) | (6, 128) => ([0; 2], id),
            (4, 0) | (6, 129) => (id, [0; 2]),
            _ => return false,
        }
    } else {
        ([0; 2], [0; 2])
    };
    if quoted.src != h.dst {
        return false;
    }
    w.spare = FlowKey {
        endpoint: ep.id,
        network: ep.network,
        src: quoted.dst,
        dst: quoted.src,
        sport,
        dport,
        protocol: quoted.protocol,
        direction: w.seen.key.direction,
        pad: [0; 2],
    };
    // Of another generation, the flow may be none any more; but the packet that is quoted may have been judged since.
    let generation = w.seen.generation;
    let found = |key: &FlowKey<A>, into: &mut _| m.flow(Table::Main, key, into) || m.flow(Table::HalfOpen, key, into);
    if !found(&w.spare, &mut w.other) {
        return false;
    }
    if w.other.generation == generation {
        return true;
    }
    w.partner = w.spare.partner(&w.other.rewrite);
    found(&w.partner, &mut w.other) && w.other.generation == generation
}

/// The start of a packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// IP protocol number.
    pub protocol: u8,
    /// Where its L4 header starts in the frame.
    pub l4: usize,
}

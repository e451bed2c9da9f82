//! Who sends to whom: what was asked, in terms of this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vnet_common::api::ExplainRequest;
use vnet_common::parse::{protocol, tcp};

use super::packet::tcp_flags;
use crate::api::Refusal;
use crate::lb::compile::Mac;
use crate::observe::Names;

/// An address that stands for the world (RFC 5737, RFC 3849).
const WORLD: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// A dynamic port (RFC 6335), where none was asked for.
const SOME_PORT: u16 = 50_000;

/// An endpoint of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// The host-side device.
    pub device: String,
    /// The device's index; 0: there is none.
    pub ifindex: u32,
    /// Its own MAC.
    pub mac: Mac,
    /// The MAC that its packets are addressed to.
    pub host_mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Who is where.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The endpoints of this host.
    pub places: Vec<Place>,
    /// The addresses of this host itself.
    pub host: Vec<IpAddr>,
    /// What everything is called; endpoints elsewhere are known from it.
    pub names: Names,
}

impl Scene {
    /// The endpoint of this host with this name.
    pub fn place(&self, name: &str) -> Option<&Place> {
        self.places.iter().find(|p| p.name == name)
    }

    /// The endpoint of this host with this device.
    pub fn at(&self, ifindex: u32) -> Option<&Place> {
        self.places.iter().find(|p| p.ifindex == ifindex)
    }

    /// The endpoint of this host with this address.
    pub fn owner(&self, address: IpAddr) -> Option<&Place> {
        self.places.iter().find(|p| p.addresses.contains(&address))
    }

    /// The addresses of somebody, by name or as they are.
    fn addresses(&self, who: &str) -> Result<Vec<IpAddr>, Refusal> {
        if let Ok(address) = who.parse() {
            return Ok(vec![address]);
        }
        if let Some(place) = self.place(who) {
            return match place.addresses.is_empty() {
                true => Err(Refusal::invalid(format!("no address of endpoint {who} is known: give the address itself"))),
                false => Ok(place.addresses.clone()),
            };
        }
        let known = self.names.addresses.iter();
        let known = known.chain(self.names.elsewhere.all().iter().map(|(a, (name, _))| (a, name)));
        let mut found: Vec<IpAddr> = known.filter(|(_, name)| name.as_ref() == who).map(|(a, _)| *a).collect();
        found.sort_unstable();
        match (found.is_empty(), who) {
            (false, _) => Ok(found),
            (true, "host") => Ok(self.host.clone()),
            (true, "world") => Ok(WORLD.to_vec()),
            _ => Err(Refusal::not_found(format!(
                "there is no endpoint '{who}', and it is no address: see `vnet-ctl get endpoints`"
            ))),
        }
    }
}

/// The destination, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct To {
    who: String,
    port: Option<u16>,
    protocol: Option<u8>,
}

impl To {
    /// `10.0.0.9:443/tcp`, `[fd00::9]:53/udp`, `web-2:22`, `10.0.0.9/icmp`.
    fn parse(text: &str) -> Result<Self, Refusal> {
        let wrong = |what: &str| {
            Refusal::bad_request(format!(
                "'{text}' is no destination: {what}; write it as 10.0.0.9:443/tcp, [fd00::9]:53/udp, NAME:22 or 10.0.0.9/icmp"
            ))
        };
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, None),
            Some((rest, name)) => (rest, Some(protocol_number(name).ok_or_else(|| wrong("no such protocol"))?)),
        };
        let (who, port) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (who, after) = inner.split_once(']').ok_or_else(|| wrong("a ] is missing"))?;
                (who, after.strip_prefix(':').or(if after.is_empty() { None } else { Some("") }))
            }
            None if rest.parse::<Ipv6Addr>().is_ok() => (rest, None),
            None => rest.rsplit_once(':').map_or((rest, None), |(who, port)| (who, Some(port))),
        };
        let port = port.map(|p| p.parse().map_err(|_| wrong("the port is no number from 0 to 65535"))).transpose()?;
        if who.is_empty() {
            return Err(wrong("it names nobody"));
        }
        let protocol = protocol.or(port.map(|_| protocol::TCP));
        if matches!(protocol, Some(protocol::TCP | protocol::UDP)) && port.is_none() {
            return Err(wrong("the port is missing"));
        }
        Ok(Self { who: who.to_owned(), port, protocol })
    }
}

fn protocol_number(name: &str) -> Option<u8> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Some(protocol::TCP),
        "udp" => Some(protocol::UDP),
        "icmp" => Some(protocol::ICMP),
        "icmpv6" => Some(protocol::ICMPV6),
        other => other.parse().ok(),
    }
}

/// A packet to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Source and destination.
    pub addresses: [IpAddr; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port.
    pub ports: [u16; 2],
    /// TCP flags.
    pub flags: u8,
    /// Things worth knowing about how the question was understood.
    pub notes: Vec<String>,
}

/// Reads a request without a frame.
pub fn question(scene: &Scene, request: &ExplainRequest) -> Result<Question, Refusal> {
    if request.from.is_empty() || request.to.is_empty() {
        return Err(Refusal::bad_request("give both ends ('from' and 'to'), or a frame"));
    }
    let to = To::parse(&request.to)?;
    let (sources, destinations) = (scene.addresses(&request.from)?, scene.addresses(&to.who)?);
    let pairs = sources.iter().flat_map(|s| destinations.iter().map(move |d| [*s, *d]));
    let Some(addresses) = pairs.into_iter().find(|[s, d]| s.is_ipv4() == d.is_ipv4()) else {
        let shown = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        return Err(Refusal::invalid(format!(
            "{} ({}) and {} ({}) have no address family in common",
            request.from,
            shown(&sources),
            to.who,
            shown(&destinations)
        )));
    };
    let flags = request.flags.as_deref().map_or(Some(tcp::SYN), tcp_flags);
    let flags = flags.ok_or_else(|| Refusal::bad_request("TCP flags are letters of FSRPAU, as S or SA"))?;
    let icmp = if addresses[0].is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    let protocol = match to.protocol {
        None | Some(protocol::ICMP | protocol::ICMPV6) => icmp,
        Some(other) => other,
    };
    let mut notes = Vec::new();
    if sources.len() > 1 && request.from.parse::<IpAddr>().is_err() {
        notes.push(format!("{} has {} addresses: {} is asked about", request.from, sources.len(), addresses[0]));
    }
    if destinations.len() > 1 {
        notes.push(format!("{} has {} addresses: {} is asked about", to.who, destinations.len(), addresses[1]));
    }
    let ports = [request.sport.unwrap_or(SOME_PORT), to.port.unwrap_or_default()];
    Ok(Question { addresses, protocol, ports, flags, notes })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;

    fn scene() -> Scene {
        let place = |name: &str, ifindex, addresses: &[&str]| Place {
            name: name.into(),
            ifindex,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ..Place::default()
        };
        let far = HashMap::from([("10.0.9.9".parse().unwrap(), "far".into())]);
        Scene {
            places: vec![place("web-1", 3, &["10.0.0.1", "fd00::1"]), place("web-2", 4, &["fd00::2"]), place("new", 5, &[])],
            host: vec!["10.0.0.254".parse().unwrap()],
            names: Names { addresses: Arc::new(far), ..Names::default() },
        }
    }

    fn asked(from: &str, to: &str) -> Result<Question, String> {
        let request = ExplainRequest { from: from.into(), to: to.into(), ..ExplainRequest::default() };
        question(&scene(), &request).map_err(|e| e.to_string())
    }

    fn shown(q: &Question) -> String {
        format!("{} {} {} {}", q.addresses[0], q.addresses[1], q.protocol, q.ports[1])
    }

    #[test]
    fn destinations_are_read() {
        for (from, to, read) in [
            ("web-1", "10.0.0.9:443/tcp", "10.0.0.1 10.0.0.9 6 443"),
            ("web-1", "[fd00::9]:53/udp", "fd00::1 fd00::9 17 53"),
            ("web-1", "web-2:22", "fd00::1 fd00::2 6 22"),
            ("web-1", "10.0.0.9/icmp", "10.0.0.1 10.0.0.9 1 0"),
            ("web-1", "fd00::9/icmp", "fd00::1 fd00::9 58 0"),
            ("web-1", "fd00::9", "fd00::1 fd00::9 58 0"),
            ("web-1", "[fd00::9]", "fd00::1 fd00::9 58 0"),
            ("web-1", "far", "10.0.0.1 10.0.9.9 1 0"),
            ("web-1", "10.0.0.9/47", "10.0.0.1 10.0.0.9 47 0"),
            ("host", "web-1:22", "10.0.0.254 10.0.0.1 6 22"),
            ("world", "web-2:22", "2001:db8::1 fd00::2 6 22"),
            ("8.8.8.8", "web-1:53/UDP", "8.8.8.8 10.0.0.1 17 53"),
        ] {
            assert_eq!(asked(from, to).as_ref().map(shown), Ok(read.to_owned()), "{from} {to}");
        }
        assert_eq!(asked("web-1", "web-2:22").unwrap().notes, ["web-1 has 2 addresses: fd00::1 is asked about"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        for (from, to, why) in [
            ("", "10.0.0.9:1", "both ends"),
            ("web-1", "", "both ends"),
            ("nobody", "10.0.0.9:1", "no endpoint 'nobody'"),
            ("web-1", "nobody:1", "no endpoint 'nobody'"),
            ("new", "10.0.0.9:1", "no address of endpoint new"),
            ("web-2", "10.0.0.9:1", "no address family in common"),
            ("web-1", "10.0.0.9:99999", "port is no number"),
            ("web-1", "10.0.0.9/tcp", "port is missing"),
            ("web-1", "10.0.0.9:1/tpc", "no such protocol"),
            ("web-1", "[fd00::9:1", "] is missing"),
            ("web-1", "[fd00::9]x", "port is no number"),
            ("web-1", ":22", "names nobody"),
        ] {
            let refused = asked(from, to).unwrap_err();
            assert!(refused.contains(why), "{from} {to}: {refused}");
        }
        let flags =
            ExplainRequest { from: "web-1".into(), to: "10.0.0.9:1".into(), flags: Some("Q".into()), ..Default::default() };
        assert!(question(&scene(), &flags).unwrap_err().to_string().contains("FSRPAU"));
    }
}

//! Networks, as rules write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses with a common prefix. A single address is one whose prefix is all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    v4: bool,
    len: u8,
    /// The address from the most significant bit on, whatever its family; zero behind the prefix.
    bits: u128,
}

impl Cidr {
    /// Every IPv4 address.
    pub const ALL_V4: Self = Self { v4: true, len: 0, bits: 0 };
    /// Every IPv6 address.
    pub const ALL_V6: Self = Self { v4: false, len: 0, bits: 0 };

    /// The first `len` bits of an address; all of them, if it has no more.
    #[must_use]
    pub fn new(address: IpAddr, len: u8) -> Self {
        let (bits, most) = bits(address);
        let len = len.min(most);
        Self { v4: most == 32, len, bits: bits & mask(len) }
    }

    /// `10.0.0.0/8`, or one address.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || "must be an address or a network, such as 10.0.0.0/8 or fd00::/64".to_owned();
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(|_| form())?;
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Err(format!("is an IPv4 address in IPv6 form: write {v4}"));
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => most,
            Some(len) if len.starts_with(|c: char| c.is_ascii_digit()) => len.parse().map_err(|_| form())?,
            Some(_) => return Err(form()),
        };
        if len > most {
            return Err(format!("has a prefix of {len} bits, and the address has only {most}"));
        }
        let cidr = Self::new(address, len);
        if cidr.bits != bits(address).0 {
            return Err(format!("has bits set behind its prefix: write {cidr}"));
        }
        Ok(cidr)
    }

    /// Is it of IPv4?
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.v4
    }

    /// Bits of the prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.len
    }

    /// The first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        if self.v4 { Ipv4Addr::from_bits((self.bits >> 96) as u32).into() } else { Ipv6Addr::from_bits(self.bits).into() }
    }

    /// Are all addresses of `other` in it?
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.v4 == other.v4 && self.len <= other.len && self.bits == other.bits & mask(self.len)
    }

    /// The network around it with so many bits; itself, if it has fewer.
    #[must_use]
    pub fn widen(&self, len: u8) -> Self {
        let len = len.min(self.len);
        Self { len, bits: self.bits & mask(len), ..*self }
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        Self::new(address, u8::MAX)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.len)
    }
}

/// The address from the most significant bit on, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_compared() {
        let cidr = |text: &str| Cidr::parse(text).unwrap();
        for text in ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3/32", "fd00::/64", "::/0", "fd00::1/128"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("10.1.2.3"), cidr("10.1.2.3/32"));
        assert!(cidr("10.0.0.0/8").contains(&cidr("10.1.0.0/16")) && cidr("10.0.0.0/8").contains(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.1.0.0/16").contains(&cidr("10.0.0.0/8")) && !cidr("0.0.0.0/0").contains(&cidr("::/0")));
        assert!(!cidr("10.0.0.0/8").contains(&cidr("11.0.0.0/8")) && Cidr::ALL_V6.contains(&cidr("fd00::1")));
        assert_eq!(cidr("10.1.2.3").widen(16), cidr("10.1.0.0/16"));
        assert_eq!(cidr("10.1.2.3").widen(0), Cidr::ALL_V4);
    }

    #[test]
    fn what_is_none_is_refused() {
        let wrong = |text: &str| Cidr::parse(text).unwrap_err();
        for text in ["", "10", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "a/8", "10.0.0.0/999", "fe80::1%eth0/64"] {
            assert!(wrong(text).starts_with("must be an address or a network"), "{text}");
        }
        assert_eq!(wrong("10.0.0.0/33"), "has a prefix of 33 bits, and the address has only 32");
        assert_eq!(wrong("10.0.0.1/8"), "has bits set behind its prefix: write 10.0.0.0/8");
        assert_eq!(wrong("::ffff:10.0.0.1"), "is an IPv4 address in IPv6 form: write 10.0.0.1");
    }
}

//! Frames that tell a network where a guest now is. Pure: bytes only, nothing is sent.
//!
//! | frame | tells | source |
//! |---|---|---|
//! | gratuitous ARP, request and reply | IPv4 neighbours; some listen to one form only | RFC 826, RFC 5227 §3, RFC 2002 §4.6 |
//! | unsolicited neighbour advertisement | IPv6 neighbours | RFC 4861 §4.4, §7.2.6 |
//! | RARP request of itself for itself | switches, where no address is known | RFC 903; QEMU's announce |

use std::net::{Ipv4Addr, Ipv6Addr};

/// Without the checksum the hardware adds; shorter frames are padded with zeros.
pub const FRAME_BYTES_MIN: usize = 60;
const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const NEXT_HEADER_ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// It replaces what the neighbours believed.
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_TARGET_LINK_ADDRESS: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// A VLAN the guest's port tags for; 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan(u16);

impl Vlan {
    /// `None`: 0 and 4095 are no VLANs.
    #[must_use]
    pub fn new(id: u16) -> Option<Self> {
        (1..=4094).contains(&id).then_some(Self(id))
    }
}

/// Operation of a gratuitous ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Request,
    Reply,
}

/// Everything there is to say for one interface, in the order in which it is best said.
#[must_use]
pub fn all(mac: Mac, ipv4: &[Ipv4Addr], ipv6: &[Ipv6Addr], vlan: Option<Vlan>) -> Vec<Vec<u8>> {
    let mut frames = vec![rarp(mac, vlan)];
    for &address in ipv4 {
        frames.push(gratuitous_arp(mac, address, Form::Request, vlan));
        frames.push(gratuitous_arp(mac, address, Form::Reply, vlan));
    }
    for &address in ipv6 {
        frames.push(neighbour_advertisement(mac, address, vlan));
    }
    frames
}

fn ethernet(to: Mac, from: Mac, vlan: Option<Vlan>, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(100);
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    if let Some(Vlan(id)) = vlan {
        frame.extend_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        frame.extend_from_slice(&id.to_be_bytes());
    }
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

fn pad(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(FRAME_BYTES_MIN), 0);
    frame
}

/// The body ARP and RARP share: Ethernet and IPv4, then sender and target, MAC and address each.
fn arp_body(frame: &mut Vec<u8>, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) {
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend_from_slice(&mac.0);
        frame.extend_from_slice(&address.octets());
    }
}

/// Sender and target address are the guest's own. The target MAC is nothing in a request and
/// everybody in a reply, as `arping` sends them.
#[must_use]
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr, form: Form, vlan: Option<Vlan>) -> Vec<u8> {
    let (operation, target) = match form {
        Form::Request => (1, Mac([0; 6])),
        Form::Reply => (2, BROADCAST),
    };
    let mut frame = ethernet(BROADCAST, mac, vlan, ETHERTYPE_ARP);
    arp_body(&mut frame, operation, (mac, address), (target, address));
    pad(frame)
}

/// "Who am I?", which nobody answers and every switch learns from.
#[must_use]
pub fn rarp(mac: Mac, vlan: Option<Vlan>) -> Vec<u8> {
    let nobody = Ipv4Addr::UNSPECIFIED;
    let mut frame = ethernet(BROADCAST, mac, vlan, ETHERTYPE_RARP);
    arp_body(&mut frame, 3, (mac, nobody), (mac, nobody));
    pad(frame)
}

/// To all nodes (ff02::1), from the address itself, unsolicited and overriding.
#[must_use]
pub fn neighbour_advertisement(mac: Mac, address: Ipv6Addr, vlan: Option<Vlan>) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, FLAG_OVERRIDE, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    // Length in units of 8 bytes.
    message.extend_from_slice(&[OPTION_TARGET_LINK_ADDRESS, 1]);
    message.extend_from_slice(&mac.0);
    let sum = checksum(address, all_nodes, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let length = u16::try_from(message.len()).expect("32 bytes");
    let group = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let mut frame = ethernet(group, mac, vlan, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    // A hop limit below 255 has passed a router, and is ignored.
    frame.extend_from_slice(&[NEXT_HEADER_ICMPV6, 255]);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&all_nodes.octets());
    frame.extend_from_slice(&message);
    pad(frame)
}

/// RFC 8200 §8.1: over the pseudo-header and the message. Verifies to 0 over a message that has its sum.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        let pairs = bytes.chunks(2);
        pairs
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum()
    };
    let length = u32::try_from(message.len()).expect("32 bytes");
    let mut sum = words(&from.octets()) + words(&to.octets()) + words(message);
    sum += length + u32::from(NEXT_HEADER_ICMPV6);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("folded")
}

#[cfg(test)]
mod tests {
    //! What could go wrong: a neighbour that ignores the announcement keeps talking to the dead host.

    use super::*;

    const MAC: Mac = Mac([0x02, 0, 0, 0xaa, 0xbb, 0xcc]);
    const IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        let pairs = (0..digits.len()).step_by(2);
        pairs
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn gratuitous_arp_is_byte_for_byte() {
        let request = hex("ffffffffffff 020000aabbcc 0806 0001 0800 06 04 0001
             020000aabbcc c0000207 000000000000 c0000207 000000000000000000000000000000000000");
        assert_eq!(gratuitous_arp(MAC, IPV4, Form::Request, None), request);
        let reply = hex(
            "ffffffffffff 020000aabbcc 8100 0064 0806 0001 0800 06 04 0002
             020000aabbcc c0000207 ffffffffffff c0000207 0000000000000000000000000000",
        );
        let vlan = Vlan::new(100);
        assert_eq!(gratuitous_arp(MAC, IPV4, Form::Reply, vlan), reply);
        assert_eq!(reply.len(), FRAME_BYTES_MIN);
    }

    #[test]
    fn rarp_is_byte_for_byte() {
        let frame = hex("ffffffffffff 020000aabbcc 8035 0001 0800 06 04 0003
             020000aabbcc 00000000 020000aabbcc 00000000 000000000000000000000000000000000000");
        assert_eq!(rarp(MAC, None), frame);
    }

    #[test]
    fn neighbour_advertisement_is_byte_for_byte() {
        let address = "2001:db8::7".parse().unwrap();
        let frame = neighbour_advertisement(MAC, address, None);
        let expected = hex("333300000001 020000aabbcc 86dd 60000000 0020 3a ff
             20010db8000000000000000000000007 ff020000000000000000000000000001
             88 00 SSSS 20000000 20010db8000000000000000000000007 02 01 020000aabbcc"
            .replace("SSSS", NA_CHECKSUM)
            .as_str());
        assert_eq!(frame, expected);
        // A receiver sums everything, the checksum too, and gets 0.
        let all_nodes = "ff02::1".parse().unwrap();
        assert_eq!(checksum(address, all_nodes, &frame[54..]), 0);
    }

    /// Worked out apart from the code, by the sum of RFC 1071.
    const NA_CHECKSUM: &str = "3ca9";

    #[test]
    fn one_interface_says_everything_once() {
        let ipv6 = ["fe80::1".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let frames = all(MAC, &[IPV4], &ipv6, Vlan::new(4094));
        assert_eq!(frames.len(), 5);
        assert!(frames.iter().all(|f| f[12..16] == [0x81, 0x00, 0x0f, 0xfe]));
        assert!(Vlan::new(0).is_none() && Vlan::new(4095).is_none());
    }
}

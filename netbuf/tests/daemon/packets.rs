//! Packets that somebody else than a stack says: an acknowledgement once more, and ICMP host unreachable. IPv4.

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const ICMP: u8 = 1;

/// RFC 1071.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// An IPv4 packet without options around `body`, with its checksum, in a frame.
fn packet(to: &[u8], from: &[u8], protocol: u8, addresses: [&[u8]; 2], body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + body.len() as u16).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    header.extend(addresses.concat());
    let check = sum(&[&header]);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    [to, from, &[8, 0], &header, body].concat()
}

pub(crate) fn is_tcp(frame: &[u8]) -> bool {
    frame.len() >= ETHERNET + 40 && frame[12..15] == [8, 0, 0x45] && frame[ETHERNET + 9] == TCP
}

/// The acknowledgement of a frame of TCP, without its data: the same once more.
pub(crate) fn bare_ack(frame: &[u8]) -> Vec<u8> {
    let ip = &frame[ETHERNET..];
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let tcp = &ip[20..total];
    let header = usize::from(tcp[12] >> 4) * 4;
    let mut ack = tcp[..header].to_vec();
    let after =
        u32::from_be_bytes(tcp[4..8].try_into().unwrap()).wrapping_add((tcp.len() - header) as u32);
    ack[4..8].copy_from_slice(&after.to_be_bytes());
    ack[13] = 0x10;
    ack[16..18].copy_from_slice(&[0, 0]);
    let length = (header as u16).to_be_bytes();
    let check = sum(&[&ip[12..20], &[0, TCP], &length, &ack]);
    ack[16..18].copy_from_slice(&check.to_be_bytes());
    packet(
        &frame[..6],
        &frame[6..12],
        TCP,
        [&ip[12..16], &ip[16..20]],
        &ack,
    )
}

/// To who said the frame, from whom it was for: RFC 792 type 3 code 1, which by RFC 6069 undoes one step of its
/// back-off, if the sequence number is the one it waits for.
pub(crate) fn unreachable(frame: &[u8]) -> Vec<u8> {
    let ip = &frame[ETHERNET..];
    let mut message = vec![3, 1, 0, 0, 0, 0, 0, 0];
    message.extend(&ip[..28]);
    let check = sum(&[&message]);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    packet(
        &frame[6..12],
        &frame[..6],
        ICMP,
        [&ip[16..20], &ip[12..16]],
        &message,
    )
}

//! Frames of a guest, of every kind there is.

/// A frame of the guest's with counted bytes behind its type.
pub(crate) fn frame(to: [u8; 6], kind: [u8; 2], bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes);
    frame.extend(to);
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(kind);
    frame.extend((14..bytes).map(|i| (i * 7) as u8));
    frame
}

/// What the guest may say; an empty last frame and one as long as the interface takes among it.
pub(crate) fn kinds() -> Vec<(&'static str, Vec<u8>)> {
    let peer = [2, 0, 0, 0, 0, 2];
    let tagged = |outer: [u8; 2], bytes| {
        let mut tagged = frame(peer, [0x08, 0x00], bytes);
        tagged.splice(12..12, [outer[0], outer[1], 0x20, 0x2a]);
        tagged
    };
    let mut stacked = tagged([0x81, 0x00], 200);
    stacked.splice(12..12, [0x88, 0xa8, 0x00, 0x07]);
    vec![
        ("IPv4", frame(peer, [0x08, 0x00], 98)),
        ("IPv6", frame(peer, [0x86, 0xdd], 118)),
        ("ARP", frame([0xff; 6], [0x08, 0x06], 42)),
        ("VLAN", tagged([0x81, 0x00], 98)),
        ("VLAN, jumbo", tagged([0x81, 0x00], 9014)),
        ("802.1ad", tagged([0x88, 0xa8], 98)),
        ("VLAN in 802.1ad", stacked),
        (
            "IPv4 multicast",
            frame([1, 0, 0x5e, 0, 0, 0xfb], [0x08, 0x00], 90),
        ),
        (
            "IPv6 multicast",
            frame([0x33, 0x33, 0, 0, 0, 1], [0x86, 0xdd], 90),
        ),
        ("jumbo", frame(peer, [0x08, 0x00], 9014)),
        ("unknown type", frame(peer, [0x88, 0xb5], 60)),
        ("length instead of type", frame(peer, [0x00, 0x2e], 60)),
        ("header alone", frame(peer, [0x88, 0xb5], 14)),
    ]
}

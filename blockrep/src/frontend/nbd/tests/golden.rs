//! Transcripts byte by byte, written from the protocol document and not from the constants.

use super::*;

const GREETING: &str = "
    4e42444d41474943    # NBDMAGIC
    49484156454f5054    # IHAVEOPT
    0003                # fixed newstyle, no zeroes";

fn server(text: &str) -> Vec<u8> {
    [hex(GREETING), hex(text)].concat()
}

/// Old clients (and nbd-client by default) know no other way in: a wrong byte here locks them out.
#[test]
fn export_name_with_and_without_zeroes() {
    let choose = "49484156454f5054 00000001 00000004 6469736b"; // "disk"
    let chosen = "
        0000000000100000    # size
        016d                # has flags, flush, fua, trim, write zeroes, multi conn";
    for (flags, zeroes) in [("00000003", 0), ("00000001", 124), ("00000000", 124)] {
        let client = [hex(flags), hex(choose)].concat();
        let played = play(config(), &one_export(), &client, &[usize::MAX]);
        assert_eq!(
            played.out,
            [server(chosen), vec![0; zeroes]].concat(),
            "flags {flags}"
        );
        assert_eq!(played.events, [Event::TransmissionStarted]);
        assert_eq!(played.end, Ok(Phase::Transmission));
    }
}

/// The way every modern client comes in.
#[test]
fn structured_reply_list_info_and_go() {
    let exports = vec![
        full_export("disk", 0x10_0000)
            .with_description("root disk")
            .expect("a good text"),
        ExportInfo::new("ro", 0x200).expect("a good export"),
    ];
    let client = hex("
        00000003
        49484156454f5054 00000008 00000000                                  # STRUCTURED_REPLY
        49484156454f5054 00000003 00000000                                  # LIST
        49484156454f5054 00000006 0000000a 00000002 726f 0001 0003          # INFO ro: BLOCK_SIZE
        49484156454f5054 00000007 0000000c 00000000 0003 0001 0002 0003     # GO: NAME, DESC., B.S.
    ");
    let wanted = server(
        "
        0003e889045565a9 00000008 00000001 00000000                         # ACK
        0003e889045565a9 00000003 00000002 00000011                         # SERVER
            00000004 6469736b 726f6f74206469736b
        0003e889045565a9 00000003 00000002 00000006                         # SERVER
            00000002 726f
        0003e889045565a9 00000003 00000001 00000000                         # ACK
        0003e889045565a9 00000006 00000003 0000000c                         # INFO
            0000 0000000000000200 0081                                      # EXPORT: DF, no more
        0003e889045565a9 00000006 00000003 0000000e                         # INFO
            0003 00000200 00001000 00100000                                 # BLOCK_SIZE
        0003e889045565a9 00000006 00000001 00000000                         # ACK
        0003e889045565a9 00000007 00000003 0000000c                         # INFO
            0000 0000000000100000 01ed                                      # EXPORT
        0003e889045565a9 00000007 00000003 00000006                         # INFO
            0001 6469736b                                                   # NAME
        0003e889045565a9 00000007 00000003 0000000b                         # INFO
            0002 726f6f74206469736b                                         # DESCRIPTION
        0003e889045565a9 00000007 00000003 0000000e                         # INFO
            0003 00000200 00001000 00100000                                 # BLOCK_SIZE
        0003e889045565a9 00000007 00000001 00000000                         # ACK
    ",
    );
    let played = play(config(), &exports, &client, &[usize::MAX]);
    assert_eq!(played.out, wanted);
    assert_eq!(played.events, [Event::TransmissionStarted]);
}

/// A client that leaves during negotiation must get its ACK, or it reports an error.
#[test]
fn abort_is_acknowledged_with_or_without_data() {
    for data in ["00000000", "00000003 616263"] {
        let client = [hex("00000001 49484156454f5054 00000002"), hex(data)].concat();
        let played = play(config(), &one_export(), &client, &[usize::MAX]);
        assert_eq!(
            played.out,
            server("0003e889045565a9 00000002 00000001 00000000")
        );
        assert_eq!(played.events, [Event::Disconnect]);
        assert_eq!(played.end, Ok(Phase::Closing));
    }
}

/// A field at a wrong place would write the right data to the wrong sector.
#[test]
fn requests_are_read_field_by_field() {
    let client = [
        handshake(true),
        hex("25609513 0004 0000 1122334455667788 0000000000000200 00000400"), // READ, DF
        hex("25609513 0001 0001 a1a2a3a4a5a6a7a8 0000000000001000 00000200"), // WRITE, FUA
        vec![0xab; 512],
        hex("25609513 0000 0003 0000000000000001 0000000000000000 00000000"), // FLUSH
        hex("25609513 0001 0004 0000000000000002 0000000000000000 00100000"), // TRIM, FUA, all
        hex("25609513 0002 0006 0000000000000003 00000000000ffe00 00000200"), // ZEROES, NO_HOLE
        hex("25609513 0000 0002 0000000000000004 0000000000000000 00000000"), // DISC
        hex("deadbeef"),
    ]
    .concat();
    let request = |cookie, command, offset, length, fua| Request {
        cookie: Cookie(cookie),
        command,
        offset,
        length,
        fua,
    };
    let played = play(config(), &one_export(), &client, &[usize::MAX]);
    let read = Command::Read {
        dont_fragment: true,
    };
    let zeroes = Command::WriteZeroes {
        no_hole: true,
        fast: false,
    };
    assert_eq!(
        played.events,
        [
            Event::TransmissionStarted,
            Event::Request(request(0x1122_3344_5566_7788, read, 0x200, 0x400, false)),
            Event::WritePayload(request(
                0xa1a2_a3a4_a5a6_a7a8,
                Command::Write,
                0x1000,
                0x200,
                true
            )),
            Event::Request(request(1, Command::Flush, 0, 0, false)),
            Event::Request(request(2, Command::Trim, 0, 0x10_0000, true)),
            Event::Request(request(3, zeroes, 0xf_fe00, 0x200, false)),
            Event::Disconnect,
        ]
    );
    assert_eq!(played.payloads, [vec![0xab; 512]]);
    assert_eq!(played.end, Ok(Phase::Closing));
}

/// A wrong reply header shifts the data the guest reads, or kills its connection.
#[test]
fn replies_byte_by_byte() {
    let cookie = Cookie(0x1122_3344_5566_7788);
    let read = Request {
        cookie,
        command: Command::Read {
            dont_fragment: false,
        },
        offset: 0x0102_0304_0506_0000,
        length: 0x1000,
        fua: false,
    };
    let write = Request {
        command: Command::Write,
        ..read
    };
    let (simple, structured) = (Replies::new(false), Replies::new(true));
    let ok = hex("67446698 00000000 1122334455667788");
    assert_eq!(simple.success(&read).to_vec(), ok);
    assert_eq!(simple.success(&write).to_vec(), ok);
    assert_eq!(structured.success(&write).to_vec(), ok);
    assert_eq!(
        structured.success(&read).to_vec(),
        hex("668e33ef 0001 0001 1122334455667788 00001008 0102030405060000")
    );
    assert_eq!(
        encode_offset_data_header(cookie, 0x200, 0x400, false).to_vec(),
        hex("668e33ef 0000 0001 1122334455667788 00000408 0000000000000200")
    );
    assert_eq!(
        encode_none_chunk(cookie).to_vec(),
        hex("668e33ef 0001 0000 1122334455667788 00000000")
    );
    assert_eq!(
        simple.error(cookie, Errno::Io).to_vec(),
        hex("67446698 00000005 1122334455667788")
    );
    assert_eq!(
        structured.error(cookie, Errno::NoSpc).to_vec(),
        hex("668e33ef 0001 8001 1122334455667788 00000006 0000001c 0000")
    );
}

/// A wrong number makes a guest see "invalid argument" where its disk is full.
#[test]
fn error_numbers_are_those_of_the_document() {
    use Errno::*;
    let wire = [Perm, Io, NoMem, Inval, NoSpc, Overflow, NotSup, Shutdown].map(Errno::code);
    assert_eq!(wire, [1, 5, 12, 22, 28, 75, 95, 108]);
    let from_os = [
        (libc::EROFS, Perm),
        (libc::EDQUOT, NoSpc),
        (libc::EFBIG, NoSpc),
        (libc::EOPNOTSUPP, Inval),
        (libc::ENOMEM, NoMem),
        (libc::EIO, Io),
        (libc::ETIMEDOUT, Io),
    ];
    for (os, errno) in from_os {
        assert_eq!(Errno::from_os(os), errno, "{os}");
    }
}

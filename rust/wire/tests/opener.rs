//! Openers: their layout to the byte, and that nothing else is taken for one.

use anyreach_wire::opener::{
    MAC_LEN, OPENER_FIRST_BYTE, OPENER_LEN, Opener, OpenerKind, OpenerRole, TAG_LEN, is_opener,
};
use proptest::prelude::*;

const KINDS: [OpenerKind; 3] = [OpenerKind::Open, OpenerKind::Answer, OpenerKind::Reflection];
const ROLES: [OpenerRole; 3] = [OpenerRole::Client, OpenerRole::Server, OpenerRole::Myself];

#[test]
fn the_layout_is_this() {
    let opener = Opener {
        kind: OpenerKind::Answer,
        tag: *b"ABCDEFGH",
        number: 0x0102_0304,
    };
    let datagram = opener.to_datagram(b"0123456789");
    assert_eq!(&datagram, b"\x0d\x01ABCDEFGH\x01\x02\x03\x040123456789");
    assert_eq!(
        &opener.signed(OpenerRole::Client),
        b"\x0d\x01ABCDEFGH\x01\x02\x03\x04c"
    );
}

#[test]
fn the_first_byte_belongs_to_nobody_else() {
    // RFC 7983, section 7: STUN to 3, ZRTP from 16, DTLS from 20; QUIC has 0x40.
    assert!((4..16).contains(&OPENER_FIRST_BYTE));
    assert_eq!(OPENER_FIRST_BYTE & 0x40, 0);
}

#[test]
fn what_is_signed_differs_by_role() {
    let opener = Opener {
        kind: OpenerKind::Open,
        tag: [7; TAG_LEN],
        number: 1,
    };
    for one in ROLES {
        for other in ROLES {
            assert_eq!(opener.signed(one) == opener.signed(other), one == other);
        }
    }
}

fn any_opener() -> impl Strategy<Value = Opener> {
    (0..3_usize, any::<[u8; TAG_LEN]>(), any::<u32>()).prop_map(|(kind, tag, number)| Opener {
        kind: KINDS[kind],
        tag,
        number,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(opener in any_opener(), mac in any::<[u8; MAC_LEN]>()) {
        let datagram = opener.to_datagram(&mac);
        prop_assert!(is_opener(&datagram));
        prop_assert_eq!(Opener::parse(&datagram), Some((opener, mac)));
        // All of it but the proof itself is proved.
        prop_assert_eq!(
            &opener.signed(OpenerRole::Server)[..OPENER_LEN - MAC_LEN],
            &datagram[..OPENER_LEN - MAC_LEN]
        );
    }

    #[test]
    fn whatever_is_read_is_written_alike(
        datagram in proptest::collection::vec(any::<u8>(), 0..40),
        ours in any::<bool>(),
        kind in 0..4_u8,
    ) {
        let mut datagram = datagram;
        if ours {
            datagram.resize(OPENER_LEN, 0);
            datagram[0] = OPENER_FIRST_BYTE;
            datagram[1] = kind;
        }
        match Opener::parse(&datagram) {
            Some((opener, mac)) => {
                prop_assert!(is_opener(&datagram));
                prop_assert_eq!(&opener.to_datagram(&mac)[..], &datagram[..]);
            }
            None => prop_assert!(!is_opener(&datagram) || datagram[1] > 2),
        }
    }

    #[test]
    fn two_openers_never_sign_alike(a in any_opener(), b in any_opener()) {
        prop_assert_eq!(
            a.signed(OpenerRole::Client) == b.signed(OpenerRole::Client),
            a == b
        );
    }
}

//! What a token proves, and every way to forge one.

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn forge(value: &HeaderValue, change: impl FnOnce(&mut Vec<u8>)) -> HeaderValue {
    let text = value.to_str().unwrap();
    let mut bytes = URL_SAFE_NO_PAD
        .decode(text.strip_prefix("Anyreach-Token ").unwrap())
        .unwrap();
    change(&mut bytes);
    HeaderValue::try_from(format!("{SCHEME} {}", URL_SAFE_NO_PAD.encode(bytes))).unwrap()
}

struct Scene {
    node: Identity,
    relay: PeerId,
    verifier: Verifier,
}

fn scene() -> Scene {
    let relay = Identity::generate().unwrap().peer_id();
    let authority = Audience::authority("Relay.example.org:443").unwrap();
    Scene {
        node: Identity::generate().unwrap(),
        relay,
        verifier: Verifier::new(relay, [authority]),
    }
}

impl Scene {
    fn token(&self) -> HeaderValue {
        issue(&self.node, &Audience::peer(self.relay), at(0)).unwrap()
    }
}

#[test]
fn a_token_proves_the_node_once() {
    let scene = scene();
    let token = scene.token();
    assert!(token.is_sensitive());
    assert!(token.len() < 7400, "{} bytes", token.len());
    assert_eq!(
        scene.verifier.verify(&token, at(1)),
        Ok(scene.node.peer_id())
    );
    assert_eq!(
        scene.verifier.verify(&token, at(1)),
        Err(TokenError::Replayed)
    );
    assert_eq!(
        scene.verifier.verify(&scene.token(), at(1)),
        Ok(scene.node.peer_id())
    );
}

#[test]
fn the_scheme_is_case_insensitive_and_the_authority_is_too() {
    let scene = scene();
    let audience = Audience::authority("RELAY.example.org:443").unwrap();
    let token = issue(&scene.node, &audience, at(0)).unwrap();
    let text = token
        .to_str()
        .unwrap()
        .replacen(SCHEME, "anyreach-token", 1);
    let value = HeaderValue::try_from(text).unwrap();
    assert_eq!(
        scene.verifier.verify(&value, at(0)),
        Ok(scene.node.peer_id())
    );
}

#[test]
fn another_relay_refuses() {
    let scene = scene();
    let elsewhere = Verifier::new(Identity::generate().unwrap().peer_id(), []);
    assert_eq!(
        elsewhere.verify(&scene.token(), at(0)),
        Err(TokenError::Audience)
    );
    let audience = Audience::authority("other.example.org:443").unwrap();
    let token = issue(&scene.node, &audience, at(0)).unwrap();
    assert_eq!(
        scene.verifier.verify(&token, at(0)),
        Err(TokenError::Audience)
    );
}

#[test]
fn time_has_two_ends() {
    let scene = scene();
    let verify = |seconds: i64| {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000_u64.strict_add_signed(seconds));
        scene.verifier.verify(&scene.token(), now)
    };
    assert!(verify(59).is_ok());
    assert_eq!(verify(60), Err(TokenError::Expired));
    assert!(verify(-60).is_ok());
    assert_eq!(verify(-61), Err(TokenError::TooFarAhead));
}

#[test]
fn every_changed_byte_is_noticed() {
    let scene = scene();
    let token = scene.token();
    let length = forge(&token, |_| {}).len();
    assert_eq!(length, token.len());
    // Expiry within limits, nonce, audience, key, signature: first and last byte of each.
    let key = FIXED_LEN + 52;
    let signature = key + PUBLIC_KEY_LEN;
    let ends = [
        8,
        9,
        24,
        FIXED_LEN,
        key - 1,
        key,
        signature - 1,
        signature,
        signature + SIGNATURE_LEN - 1,
    ];
    for position in ends {
        let forged = forge(&token, |bytes| bytes[position] ^= 1);
        let error = scene.verifier.verify(&forged, at(0)).unwrap_err();
        assert!(
            matches!(error, TokenError::Signature | TokenError::Audience),
            "byte {position}: {error:?}"
        );
    }
    // None of that used the token up.
    assert!(scene.verifier.verify(&token, at(0)).is_ok());
}

#[test]
fn a_key_cannot_be_put_under_anothers_signature() {
    let scene = scene();
    let thief = Identity::generate().unwrap();
    let spki = thief.public_key();
    let key = spki[spki.len() - PUBLIC_KEY_LEN..].to_vec();
    let forged = forge(&scene.token(), |bytes| {
        let start = FIXED_LEN + 52;
        bytes[start..start + PUBLIC_KEY_LEN].copy_from_slice(&key);
    });
    assert_eq!(
        scene.verifier.verify(&forged, at(0)),
        Err(TokenError::Signature)
    );
}

#[test]
fn a_statement_of_another_kind_is_no_token() {
    let scene = scene();
    let forged = forge(&scene.token(), |bytes| {
        let start = FIXED_LEN + 52;
        let signature = scene.node.sign(&bytes[..start]).unwrap();
        bytes[start + PUBLIC_KEY_LEN..].copy_from_slice(&signature);
    });
    assert_eq!(
        scene.verifier.verify(&forged, at(0)),
        Err(TokenError::Signature)
    );
}

#[test]
fn what_is_no_token_is_malformed() {
    let scene = scene();
    let token = scene.token();
    let cut = |length: usize| forge(&token, |bytes| bytes.truncate(length));
    for length in [0, 1, 8, 24, 25, 26, 77, 78, 5000] {
        let error = scene.verifier.verify(&cut(length), at(0));
        assert_eq!(error, Err(TokenError::Malformed), "{length} bytes");
    }
    let longer = forge(&token, |bytes| bytes.push(0));
    let audience = forge(&token, |bytes| bytes[25] = 255);
    let text = token.to_str().unwrap();
    let others = [
        longer,
        audience,
        HeaderValue::from_static("Basic dXNlcjpwYXNz"),
        HeaderValue::from_static("Anyreach-Token"),
        HeaderValue::from_static("Anyreach-Token "),
        HeaderValue::from_static("Anyreach-Token ?!"),
        HeaderValue::from_static(""),
        HeaderValue::try_from(format!("{text}=")).unwrap(),
        HeaderValue::try_from(format!("{SCHEME} {}", "A".repeat(16_000))).unwrap(),
        HeaderValue::from_bytes(b"Anyreach-Token \xff\xff").unwrap(),
    ];
    for value in others {
        let error = scene.verifier.verify(&value, at(0));
        assert_eq!(error, Err(TokenError::Malformed), "{value:?}");
    }
    let newer = forge(&token, |bytes| bytes[0] = 2);
    assert_eq!(
        scene.verifier.verify(&newer, at(0)),
        Err(TokenError::Version(2))
    );
}

#[test]
fn extreme_expiries_do_no_harm() {
    let scene = scene();
    for (expiry, error) in [
        (0, TokenError::Expired),
        (u64::MAX, TokenError::TooFarAhead),
    ] {
        let forged = forge(&scene.token(), |bytes| {
            bytes[1..9].copy_from_slice(&u64::to_be_bytes(expiry));
        });
        assert_eq!(scene.verifier.verify(&forged, at(0)), Err(error));
        let before_1970 = UNIX_EPOCH - Duration::from_secs(1);
        assert!(scene.verifier.verify(&forged, before_1970).is_err());
    }
}

#[test]
fn the_memory_of_used_tokens_is_bounded_and_forgets_nothing_acceptable() {
    let mut used = Used::default();
    let peer = PeerId([7; 32]);
    let nonce = |n: u64| {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&n.to_be_bytes());
        nonce
    };
    let many = MAX_REMEMBERED as u64;
    for n in 0..many {
        assert_eq!(used.take(100 + n / 1000, nonce(n), peer, 50), Ok(()));
    }
    // One more forgets the first, and everything that expires with it.
    assert_eq!(used.take(130, nonce(many), peer, 50), Ok(()));
    assert_eq!(used.tokens.len(), MAX_REMEMBERED);
    assert_eq!(used.take(100, nonce(0), peer, 50), Err(TokenError::Expired));
    assert_eq!(
        used.take(101, nonce(1000), peer, 50),
        Err(TokenError::Replayed)
    );
    // A nonce is only its maker's.
    assert_eq!(used.take(101, nonce(1000), PeerId([8; 32]), 50), Ok(()));
    // When they expire, there is room again.
    assert_eq!(used.take(200, nonce(1), peer, 131), Ok(()));
    assert_eq!(used.tokens.len(), 1);
}

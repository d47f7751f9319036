use std::os::unix::fs::PermissionsExt;

use super::*;

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

struct Fixture {
    store: TokenStore,
    dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture { store: TokenStore::open(&dir.path().join("tokens")).unwrap(), dir }
}

impl Fixture {
    fn token(&self, name: &str) -> JoinToken {
        let controllers = vec!["203.0.113.1:15012".to_owned()];
        self.store.create(&node(name), 3600, [7; 32], controllers, 1000).unwrap()
    }
}

#[test]
fn a_token_survives_copying() {
    let f = fixture();
    let token = f.token("edge-a");
    let text = token.encode();
    assert!(text.starts_with("selvage1."));
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{text}");
    assert_eq!(JoinToken::parse(&format!("  {text}\n")).unwrap(), token);
    assert_eq!(token.expires, 4600);
}

#[test]
fn what_is_not_a_token_says_so_without_repeating_it() {
    let text = fixture().token("edge-a").encode();
    assert_eq!(JoinToken::parse("hello"), Err(TokenError::Prefix));
    assert_eq!(JoinToken::parse(&text[..text.len() - 5]), Err(TokenError::Damaged));
    assert_eq!(JoinToken::parse("selvage1.!!!"), Err(TokenError::Damaged));
    assert_eq!(JoinToken::parse(&"x".repeat(9000)), Err(TokenError::TooLong(9000)));
}

#[test]
fn an_id_cannot_leave_the_directory() {
    let wire = Wire {
        id: "../../etc/passwd".to_owned(),
        node: "a".to_owned(),
        secret: BASE64.encode([0; 32]),
        ca_sha256: BASE64.encode([0; 32]),
        expires: 1,
        controllers: Vec::new(),
    };
    let text = format!("{PREFIX}{}", BASE64.encode(serde_json::to_vec(&wire).unwrap()));
    assert_eq!(JoinToken::parse(&text), Err(TokenError::Damaged));
}

#[test]
fn each_refusal_is_distinct() {
    let f = fixture();
    let token = f.token("edge-a");
    let wrong = f.store.spend(&token, &node("edge-b"), b"csr", 1001);
    assert!(matches!(wrong, Err(UseError::WrongNode { .. })), "{wrong:?}");
    let late = f.store.spend(&token, &node("edge-a"), b"csr", 4600);
    assert!(matches!(late, Err(UseError::Expired { seconds: 0 })), "{late:?}");
    f.store.check(&token, &node("edge-a"), b"another csr", 1001).unwrap();
    f.store.spend(&token, &node("edge-a"), b"csr", 1001).unwrap();
    let replay = f.store.check(&token, &node("edge-a"), b"another csr", 1002);
    assert!(matches!(replay, Err(UseError::Replayed)), "{replay:?}");
    let replay = f.store.spend(&token, &node("edge-a"), b"another csr", 1002);
    assert!(matches!(replay, Err(UseError::Replayed)), "{replay:?}");
    let mut forged = f.token("edge-a");
    forged.secret[0] ^= 1;
    let unknown = f.store.spend(&forged, &node("edge-a"), b"csr", 1001);
    assert!(matches!(unknown, Err(UseError::Unknown)), "{unknown:?}");
    let elsewhere = fixture().token("edge-a");
    let unknown = f.store.spend(&elsewhere, &node("edge-a"), b"csr", 1001);
    assert!(matches!(unknown, Err(UseError::Unknown)), "{unknown:?}");
}

#[test]
fn a_lost_answer_can_be_asked_for_again_but_not_for_ever() {
    let f = fixture();
    let token = f.token("edge-a");
    f.store.spend(&token, &node("edge-a"), b"csr", 1001).unwrap();
    f.store.spend(&token, &node("edge-a"), b"csr", 1600).unwrap();
    let late = f.store.spend(&token, &node("edge-a"), b"csr", 1601);
    assert!(matches!(late, Err(UseError::Replayed)), "{late:?}");
}

#[test]
fn a_running_controller_sees_tokens_made_by_another_process() {
    let f = fixture();
    let other = TokenStore::open(&f.dir.path().join("tokens")).unwrap();
    let token = f.token("edge-a");
    other.spend(&token, &node("edge-a"), b"csr", 1001).unwrap();
    assert_eq!(f.store.list().unwrap()[0].used, Some(1001));
    assert!(f.store.remove(&token.id).unwrap());
    assert!(!f.store.remove(&token.id).unwrap());
    let gone = other.spend(&token, &node("edge-a"), b"csr", 1001);
    assert!(matches!(gone, Err(UseError::Unknown)), "{gone:?}");
}

#[test]
fn one_of_many_concurrent_spends_wins() {
    let f = fixture();
    let token = f.token("edge-a");
    let won = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|s| {
        for i in 0..8u8 {
            let (store, token, won) = (f.store.clone(), token.clone(), &won);
            s.spawn(move || {
                if store.spend(&token, &node("edge-a"), &[i], 1001).is_ok() {
                    won.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
}

#[test]
fn the_secret_is_neither_printed_nor_stored() {
    let f = fixture();
    let token = f.token("edge-a");
    let secret = BASE64.encode(token.secret);
    assert!(token.encode().len() > secret.len());
    let shown = format!("{token:?} {:?}", f.store.list().unwrap());
    assert!(!shown.contains(&secret) && !shown.contains(&format!("{:?}", token.secret)), "{shown}");
    let path = f.dir.path().join("tokens").join(format!("{}.json", token.id));
    let stored = std::fs::read_to_string(&path).unwrap();
    assert!(!stored.contains(&secret), "{stored}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn old_records_go_when_new_ones_come() {
    let f = fixture();
    f.token("edge-a");
    f.store.create(&node("edge-b"), 60, [0; 32], Vec::new(), 4600 + 24 * 3600 + 1).unwrap();
    let left: Vec<_> = f.store.list().unwrap().into_iter().map(|t| t.node).collect();
    assert_eq!(left, ["edge-b"]);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_fail_badly(text in ".{0,200}", cut in 0usize..300, flip in 0usize..300) {
        JoinToken::parse(&text).ok();
        JoinToken::parse(&format!("{PREFIX}{text}")).ok();
        JoinToken::parse(&format!("{PREFIX}{}", BASE64.encode(&text))).ok();
        let token = JoinToken { id: "0123456789abcdef".to_owned(), node: node("a"), ca_sha256: [1; 32], expires: 9,
            controllers: Vec::new(), secret: [2; 32] };
        let mut bytes = token.encode().into_bytes();
        bytes.truncate(cut);
        if let Some(b) = bytes.get_mut(flip) {
            *b = b'A';
        }
        // A damaged token is refused, or it is another token; it is never the same one.
        let damaged = String::from_utf8(bytes).unwrap();
        if damaged != token.encode() && let Ok(other) = JoinToken::parse(&damaged) {
            proptest::prop_assert_ne!(other, token);
        }
    }
}

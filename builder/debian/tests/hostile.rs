//! No parser panics, whatever it is given, and what is wrong is named.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use dyad_debian::{
    Lock, Origin, Release, Universe, check_clearsign, control, parse_provides, parse_relations,
};
use proptest::prelude::*;

fn origin() -> Origin {
    Origin { suite: "bookworm".to_owned(), component: "main".to_owned() }
}

fn parse_all(bytes: &[u8]) {
    for stanza in control::stanzas(bytes).flatten() {
        for field in stanza.fields() {
            let _ = field;
        }
        let _ = stanza.get("Package");
    }
    let _ = Release::parse(bytes);
    let _ = check_clearsign(bytes);
    let _ = Universe::new("amd64").add(origin(), bytes.to_vec());
    let text = String::from_utf8_lossy(bytes);
    let _ = (parse_relations(&text, "amd64"), parse_provides(&text), Lock::parse(&text));
}

const STANZA: &str = "Package: a\nVersion: 1\nArchitecture: amd64\nDepends: b (>= 1) | c:any [amd64 !i386], d\nProvides: e (= 2), f\n\
    Filename: pool/a.deb\nSize: 10\nSHA256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
const RELEASE: &str = "Origin: Debian\nCodename: bookworm\nDate: Sat, 11 Jul 2026 10:17:11 UTC\nSHA256:\n \
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef 10 main/binary-amd64/Packages\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        parse_all(&bytes);
    }

    #[test]
    fn texts_that_look_right(text in "([A-Z][a-z]{0,5}:? ?|[ \n,|()\\[\\]<>=~.:#-]|[a-z0-9]{1,4}|-----BEGIN PGP SIGNED MESSAGE-----\n){0,60}") {
        parse_all(text.as_bytes());
    }

    #[test]
    fn real_texts_with_damage(at in 0..300_usize, byte: u8, cut in 0..300_usize) {
        for text in [STANZA, RELEASE] {
            let mut bytes = text.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut.max(at + 1));
            parse_all(&bytes);
        }
    }
}

#[test]
fn a_good_stanza_is_read() {
    let mut universe = Universe::new("amd64");
    universe.add(origin(), STANZA.as_bytes().to_vec()).unwrap();
    let package = universe.versions("a").next().unwrap();
    assert_eq!((package.version, package.filename, package.size), ("1", "pool/a.deb", 10));
    assert_eq!(universe.providers("e").map(|(p, v)| (p.name, v)).collect::<Vec<_>>(), [("a", Some("2"))]);
    assert_eq!(universe.providers("f").map(|(p, v)| (p.name, v)).collect::<Vec<_>>(), [("a", None)]);
}

#[test]
fn wrong_stanzas_are_named() {
    let cases = [
        ("Size: 10", "Size: ten", "field Size is not a number of bytes"),
        ("Size: 10", "", "field Size is missing"),
        ("Size: 10", "Size: 10\nsize: 11", "field Size stands there twice"),
        ("pool/a.deb", "pool/../../etc/passwd", "field Filename is not a path below the archive's base"),
        ("pool/a.deb", "/etc/passwd", "field Filename is not a path below the archive's base"),
        ("SHA256: 0123", "SHA256: x123", "field SHA256 is not 64 hexadecimal digits"),
        ("Package: a", "Package: ../a", "field Package has characters outside"),
        ("Version: 1", "Version: 1/2", "field Version has characters outside"),
        ("e (= 2)", "e (>= 2)", "only = may stand before a provided version"),
        ("Size: 10", "Size 10", "\"Size 10\" is not a field"),
    ];
    for (good, bad, expected) in cases {
        let text = STANZA.replace(good, bad).replace("\n\n", "\n");
        let mut universe = Universe::new("amd64");
        let error = universe.add(origin(), text.into_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("bookworm/main"), "{bad}: {error}");
        assert!(universe.is_empty());
    }
}

#[test]
fn wrong_release_files_are_named() {
    let cases = [
        ("Date: Sat, 11 Jul 2026 10:17:11 UTC\n", "", "field Date is missing"),
        ("10:17:11 UTC", "noon", "is not a date"),
        ("SHA256:", "MD5Sum:", "field SHA256 is missing"),
        (" 10 main", " x main", "SHA256 table"),
        (" main/", " ../main/", "SHA256 table"),
        ("Codename", "\nCodename", "it has 2 stanzas"),
        ("Codename: ", "Codename ", "is not a field"),
    ];
    for (good, bad, expected) in cases {
        let error = Release::parse(RELEASE.replace(good, bad).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{bad}: {error}");
    }
}

#[test]
fn only_one_whole_signed_message_is_let_through() {
    let good = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\na: b\n-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n";
    assert_eq!(check_clearsign(good.as_bytes()), Ok(()));
    let cases = [
        ("<html>login first</html>".to_owned(), "first line"),
        (String::new(), "first line"),
        (good.replace("-----END PGP SIGNATURE-----\n", ""), "cut short"),
        (good[..60].to_owned(), "cut short"),
        (format!("{good}a: c\n"), "text follows"),
        (format!("{good}{good}"), "second signed message"),
        (format!("a: c\n{good}"), "first line"),
        (good.replace("a: b", "a: \0b"), "NUL"),
    ];
    for (text, expected) in cases {
        let error = check_clearsign(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

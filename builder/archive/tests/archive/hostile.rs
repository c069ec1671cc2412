//! What a hostile or broken mirror can send, and the refusal that each gets.

use crate::common::{Archive, Behaviour, Key, NOW, packages_index, sha256, xz};
use dyad_archive::{Environment, Keyring, Refresh, Silent, Sources};

fn refused(archive: &Archive, expected: &[&str]) {
    let error = archive.refresh(false).unwrap_err();
    println!("{error}");
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// As `refused`; what was seen before stays as it was.
fn release_refused(archive: &Archive, expected: &[&str]) {
    let before = cached_releases(archive);
    refused(archive, expected);
    assert!(before == cached_releases(archive), "a refused file changed what was seen before");
}

fn cached_releases(archive: &Archive) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(archive.cache.root().join("releases")).unwrap();
    files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn forged_release_files_are_refused() {
    let archive = Archive::new();
    assert_eq!(archive.refresh(false).unwrap().len(), 2);
    let good = archive.key.clearsign(&archive.release_text(|_| {}));
    let text = String::from_utf8(good.clone()).unwrap();
    let put = |bytes: &[u8]| archive.server.put("dists/bookworm/InRelease", bytes);

    put(text.replace("Codename: bookworm", "Codename: bookwurm").as_bytes());
    release_refused(&archive, &["/debian/dists/bookworm/InRelease: forged", "BADSIG"]);

    let stranger = Key::new(archive.directory.path(), "stranger");
    put(&stranger.clearsign(&archive.release_text(|_| {})));
    release_refused(&archive, &["no valid signature by a key of", "archive.gpg", "is not in it"]);

    put(archive.release_text(|_| {}).as_bytes());
    release_refused(&archive, &["not a clear-signed file", "first line"]);
    put(b"<html>please log in</html>");
    release_refused(&archive, &["not a clear-signed file"]);
    put(&good[..good.len() / 2]);
    release_refused(&archive, &["cut short"]);
    put(&[good.as_slice(), b"Codename: bookworm\n"].concat());
    release_refused(&archive, &["text follows the signature"]);
    put(&[good.as_slice(), stranger.clearsign("Codename: bookworm\n").as_slice()].concat());
    release_refused(&archive, &["second signed message"]);
    // An armoured signature without a text in it.
    put(text.replace("-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----\n\n=xxxx").as_bytes());
    release_refused(&archive, &["it was refused"]);

    put(&good);
    assert_eq!(archive.refresh(false).unwrap().len(), 2);
}

#[test]
fn expired_release_files_are_refused_unless_apt_is_told_not_to() {
    let archive = Archive::new();
    archive.publish(|release| {
        release.insert("Valid-Until", "Sat, 11 Jul 2026 10:17:10 UTC".to_owned());
    });
    release_refused(
        &archive,
        &["expired: it was valid until 2026-07-11 10:17:10 UTC, and it is 2026-07-11 10:17:11 UTC now"],
    );
    let mut sources = archive.sources();
    sources.archives[0].check_valid_until = false;
    sources.refresh(&archive.cache, Refresh { offline: false, now: NOW }, &Silent).unwrap();
    // Time passes for the cache too.
    archive.publish(|release| {
        release.insert("Valid-Until", "Sat, 11 Jul 2026 10:17:11 UTC".to_owned());
    });
    archive.refresh(false).unwrap();
    let later = Refresh { offline: true, now: NOW + 1 };
    assert!(
        archive
            .sources()
            .refresh(&archive.cache, later, &Silent)
            .unwrap_err()
            .to_string()
            .contains("expired")
    );
}

#[test]
fn replayed_release_files_are_refused() {
    let archive = Archive::new();
    archive.refresh(false).unwrap();
    archive.publish(|release| {
        release.insert("Date", "Sat, 11 Jul 2026 09:17:10 UTC".to_owned());
    });
    release_refused(
        &archive,
        &["replayed: it is of 2026-07-11 09:17:10 UTC, but one of 2026-07-11 09:17:11 UTC was seen before"],
    );
    // The same date is no replay, and a damaged memory of what was seen blocks nothing.
    archive.publish(|release| {
        release.insert("Label", "again".to_owned());
    });
    archive.refresh(false).unwrap();
    for file in std::fs::read_dir(archive.cache.root().join("releases")).unwrap() {
        std::fs::write(file.unwrap().path(), "damaged").unwrap();
    }
    archive.refresh(false).unwrap();
}

#[test]
fn release_files_of_something_else_are_refused() {
    let archive = Archive::new();
    archive.publish(|release| {
        release.insert("Codename", "trixie".to_owned());
    });
    release_refused(&archive, &["wrong suite: expected \"bookworm\", it is for \"trixie\""]);
    archive.publish(|_| {});
    let mut sources = archive.sources();
    sources.archives[0].origin = Some("Debian".to_owned());
    let error = sources.refresh(&archive.cache, Refresh { offline: false, now: NOW }, &Silent).unwrap_err();
    assert!(error.to_string().contains("wrong origin: expected \"Debian\", it is for \"Test\""), "{error}");
    archive.publish(|release| {
        release.insert("SHA256", String::new());
    });
    refused(&archive, &["it lists no main/binary-amd64/Packages", "it offers components main for amd64"]);
    archive.publish(|release| {
        release.remove("Date");
    });
    release_refused(&archive, &["field Date is missing"]);
}

#[test]
fn wrong_and_truncated_indexes_are_refused() {
    let archive = Archive::new();
    let packed = xz(packages_index().as_bytes());
    let by_hash = format!("dists/bookworm/main/binary-amd64/by-hash/SHA256/{}", sha256(&packed));
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 1;
    archive.server.put(&by_hash, flipped);
    refused(&archive, &["by-hash", "wrong content: expected", "got"]);
    archive.server.put(&by_hash, &packed[..packed.len() - 1]);
    refused(&archive, &["wrong content: expected"]);
    archive.server.put(&by_hash, [packed.as_slice(), b"x"].concat());
    refused(&archive, &["more than", "bytes came"]);
    archive.server.remove(&by_hash);
    assert_eq!(archive.refresh(false).unwrap().len(), 2, "the plain name is the way out");
    archive.server.remove("dists/bookworm/main/binary-amd64/Packages.xz");
    assert_eq!(archive.refresh(false).unwrap().len(), 2, "the cache has it");
    let fresh = Archive::new();
    fresh.server.remove(&by_hash);
    fresh.server.remove("dists/bookworm/main/binary-amd64/Packages.xz");
    refused(&fresh, &["Packages.xz does not exist on the server (HTTP 404)"]);
}

#[test]
fn an_index_that_unpacks_to_something_else_is_refused() {
    let archive = Archive::new();
    let bomb = xz(&vec![b'\n'; 50 << 20]);
    archive
        .server
        .put(&format!("dists/bookworm/main/binary-amd64/by-hash/SHA256/{}", sha256(&bomb)), bomb.clone());
    let index = packages_index();
    archive.publish(|release| {
        let table = format!(
            "\n {} {} main/binary-amd64/Packages\n {} {} main/binary-amd64/Packages.xz",
            sha256(index.as_bytes()),
            index.len(),
            sha256(&bomb),
            bomb.len()
        );
        release.insert("SHA256", table);
    });
    refused(&archive, &["more than", "bytes came, which is more than it may have"]);
}

#[test]
fn a_release_file_of_endless_size_is_cut_off() {
    let archive = Archive::new();
    archive.server.put("dists/bookworm/InRelease", vec![b'x'; 9 << 20]);
    refused(&archive, &["InRelease: more than 8388608 bytes came"]);
}

#[test]
fn a_server_that_fails_for_a_while_is_asked_again() {
    let archive = Archive::new();
    let path = "dists/bookworm/InRelease";
    archive.server.behave(path, Behaviour { status: Some((503, 2)), ..Behaviour::default() });
    archive.refresh(false).unwrap();
    archive.server.behave(path, Behaviour { status: Some((403, 1)), ..Behaviour::default() });
    refused(&archive, &["the server answered HTTP 403"]);
    archive.server.remove(path);
    refused(&archive, &["InRelease does not exist on the server (HTTP 404)"]);
}

#[test]
fn keyrings_may_be_armoured_inline_or_pinned_by_fingerprint() {
    let archive = Archive::new();
    let with = |keyring: Option<Keyring>| {
        let mut sources = archive.sources();
        sources.archives[0].keyring = keyring;
        let result = sources.refresh(&archive.cache, Refresh { offline: false, now: NOW }, &Silent);
        result.map(|universe| universe.len()).map_err(|e| e.to_string())
    };
    let armoured = archive.directory.path().join("archive.asc");
    std::fs::write(&armoured, archive.key.armoured()).unwrap();
    assert_eq!(with(Some(Keyring::file(&armoured))), Ok(2));
    let block = archive.key.armoured();
    // The way deb822 writes it: indented, with a dot for the empty line.
    let indented: String =
        block.lines().map(|line| format!(" {}\n", if line.is_empty() { "." } else { line })).collect();
    assert_eq!(with(Some(Keyring { inline: Some(indented), ..Keyring::default() })), Ok(2));
    let wrong = Keyring { fingerprints: vec!["0".repeat(40)], ..Keyring::file(&armoured) };
    assert!(with(Some(wrong)).unwrap_err().contains("is not the one named"));
    let gone = Keyring::file(archive.directory.path().join("gone.gpg"));
    assert!(with(Some(gone)).unwrap_err().contains("gone.gpg: cannot be read"));
    assert!(with(None).unwrap_err().contains("DYAD_KEYRING=FILE"));
}

#[test]
fn sources_that_cannot_be_used_are_named() {
    let archive = Archive::new();
    let overrides = |mirror: Option<&str>| dyad_archive::Overrides {
        mirror: mirror.map(str::to_owned),
        ..archive.overrides()
    };
    let discover = |mirror| Sources::from_layers(&overrides(mirror), &Environment::default(), None);
    let error = discover(None).unwrap_err().to_string();
    assert!(error.contains("DYAD_MIRROR=URL") && error.contains("DYAD_KEYRING=FILE"), "{error}");
    assert!(
        discover(Some("ftp://mirror/debian"))
            .unwrap_err()
            .to_string()
            .contains("is not an http or https URL")
    );
    assert!(discover(Some("http:///debian")).unwrap_err().to_string().contains("names no host"));
    let mut sources = archive.sources();
    sources.archives[0].base = "http://127.0.0.1:1/debian".to_owned();
    let error = sources.refresh(&archive.cache, Refresh { offline: false, now: NOW }, &Silent).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot download http://127.0.0.1:1/debian/dists/bookworm/InRelease:"),
        "{error}"
    );
}

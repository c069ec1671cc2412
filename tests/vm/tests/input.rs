//! Bad input through the command line: what is wrong, where, and what would be accepted; nothing is left behind.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dyad_vm_tests::{dyad, program, root, run, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// A copy of a definition beside this tree's overlays, with one change.
fn definition(dir: &TempDir, from: &str, to: &str) -> String {
    let text = fs::read_to_string(root().join("images/lab.toml")).unwrap();
    assert!(text.contains(from), "images/lab.toml has {from:?}");
    fs::create_dir(dir.path().join("images")).unwrap();
    std::os::unix::fs::symlink(root().join("overlays"), dir.path().join("overlays")).unwrap();
    let file = dir.path().join("images/lab.toml");
    fs::write(&file, text.replacen(from, to, 1)).unwrap();
    file.to_str().unwrap().to_owned()
}

/// The message of a build that must be refused, without the lines of finished stages; nothing may lie in the output directory.
fn refused(definition: &str, env: &[(&str, &str)]) -> String {
    let out = Path::new(definition).with_file_name("out");
    let output = run(&["build", definition, "--out", out.to_str().unwrap()], env);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        !out.exists() || fs::read_dir(&out).unwrap().next().is_none(),
        "nothing is left in {}",
        out.display()
    );
    said.lines().skip_while(|l| l.starts_with("  ") && l.ends_with(" s")).map(|l| format!("{l}\n")).collect()
}

#[test]
fn a_misspelt_key() {
    let dir = TempDir::new().unwrap();
    let file = definition(&dir, "\nkernel = ", "\nkernl = ");
    let expected = format!(
        "error: unknown key `kernl`\n --> {file}:6:1\n  |\n6 | kernl = \"linux-image-amd64\"\n  | ^^^^^ did you mean `kernel`?\n  |\n  \
         = help: accepted keys: name, version, description, suite, architecture, kernel, source_date_epoch, packages, \
         overlays, outputs, source, modules, layout, boot, prune, keep, omit\n"
    );
    assert_eq!(refused(&file, &[]), expected);
}

#[test]
fn an_unknown_overlay() {
    let dir = TempDir::new().unwrap();
    let file = definition(&dir, "overlays = [", "overlays = [\"nett\", ");
    let said = refused(&file, &[]);
    for part in [
        "error: there is no overlay `nett`\n",
        &format!("--> {file}:9:13\n"),
        "did you mean `net`?",
        "help: overlays here: base, bonding, ",
    ] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

#[test]
fn an_unknown_package() {
    let dir = TempDir::new().unwrap();
    let file = definition(&dir, "packages = [", "packages = [\"no-such-package\", ");
    let text = fs::read_to_string(&file).unwrap();
    let line = 1 + text.lines().position(|line| line.contains("no-such-package")).unwrap();
    let expected = format!(
        "dyad: {file}:{line}: package \"no-such-package\" is not in bookworm, bookworm-security, bookworm-updates\n"
    );
    let said = refused(&file, &[]);
    assert!(said.ends_with(&expected), "{said}");
}

#[test]
fn a_mirror_that_nobody_answers_for() {
    let dir = TempDir::new().unwrap();
    let file = definition(&dir, "suite", "suite");
    let cache = dir.path().join("cache");
    // A port that was free a moment ago and where nothing listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mirror = format!("http://127.0.0.1:{port}/debian");
    let said = refused(&file, &[("DYAD_MIRROR", &mirror), ("XDG_CACHE_HOME", cache.to_str().unwrap())]);
    let expected =
        format!("cannot download {mirror}/dists/bookworm/InRelease: io: Connection refused (os error 111)\n");
    assert!(said.ends_with(&expected), "{said}");
}

/// Build scripts look at what cargo says of a package, and are run anew when that changes: here this test's own.
#[test]
fn our_programs_are_compiled_alike_whoever_starts_the_builder() {
    let dir = TempDir::new().unwrap();
    let file = definition(&dir, "suite", "suite");
    let (cargo, seen) = (dir.path().join("cargo"), dir.path().join("seen"));
    fs::write(&cargo, format!("#!/bin/sh\nenv >> {}\necho no compiler here >&2\nexit 7\n", seen.display()))
        .unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let said = refused(&file, &[("CARGO", cargo.to_str().unwrap()), ("CARGO_NET_RETRY", "3")]);
    assert!(said.contains("compiling ") && said.contains("no compiler here"), "{said}");
    let seen = fs::read_to_string(&seen).unwrap();
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some() && !seen.contains("CARGO_PKG_"), "{seen}");
    assert!(!seen.contains("CARGO_MANIFEST_"), "{seen}");
    assert!(seen.contains("\nCARGO_NET_RETRY=3\n"), "what the user says is handed on: {seen}");
}

#[test]
fn built_image_explained_damaged_and_without_room() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let built = run(&["build", "images/lab.toml", "--out", out.to_str().unwrap(), "--json"], &[]);
    let record: Value = serde_json::from_str(&stdout("dyad build", &built)).unwrap();
    assert_eq!(record["outputs"].as_array().unwrap().len(), 2, "{record}");
    let raw = out.join("lab_0.1.0.raw");
    why(&raw);
    no_room();
    damaged_raw(&raw);
    damaged_qcow2(&out.join("lab_0.1.0.qcow2"));
}

fn why(raw: &Path) {
    let ask = |path: &str| run(&["inspect", raw.to_str().unwrap(), "--why", path], &[]);
    let text = |path: &str| stdout(path, &ask(path));
    let package = text("/usr/lib/postgresql/15/bin/postgres");
    let lines: Vec<&str> = package.lines().map(str::trim_start).collect();
    assert_eq!(lines[0], "postgresql-15 was asked for by overlay postgresql");
    let last = lines[lines.len() - 1];
    assert!(
        last.starts_with("package postgresql-15 ")
            && last.ends_with(" ships /usr/lib/postgresql/15/bin/postgres"),
        "{package}"
    );
    let library = text("/usr/lib/x86_64-linux-gnu/libpq.so.5");
    assert!(library.contains("depends on libpq5") && library.contains("package libpq5 "), "{library}");
    let overlay = text("/etc/systemd/journald.conf");
    assert!(
        overlay.contains("overlay journald")
            && overlay.trim_end().ends_with("ships /etc/systemd/journald.conf"),
        "{overlay}"
    );
    let pruned = text("/usr/sbin/ldconfig");
    assert!(pruned.contains("ships /usr/sbin/ldconfig\n") && pruned.contains("left out: "), "{pruned}");
    assert!(pruned.contains("the cache of libraries is made by the builder"), "{pruned}");
    let unknown = ask("/no/such/path");
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&unknown.stderr),
        "dyad: /no/such/path is not in the image, and no package shipped it\n"
    );
}

fn no_room() {
    let dir = TempDir::new().unwrap();
    let small = dir.path().to_str().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=8m none '{small}' && ! '{}' build images/lab.toml --out '{small}/out' && ls -A '{small}/out'",
        dyad().display()
    );
    let output = program("unshare", &["-Urm", "sh", "-c", &script]);
    let left = stdout("a build onto a full disk", &output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().last().unwrap_or_default();
    let expected =
        format!("dyad: writing the squashfs in {small}/out: No space left on device (os error 28)");
    assert_eq!(last, expected, "{said}");
    assert_eq!(left, "", "what was begun is removed");
}

/// `dyad verify` of a copy with one byte changed.
fn verify_with_a_flip(file: &Path, at: u64) -> (i32, String) {
    let copy = file.with_file_name("damaged");
    stdout("cp", &program("cp", &["--sparse=always", file.to_str().unwrap(), copy.to_str().unwrap()]));
    let byte = {
        use std::os::unix::fs::FileExt;
        let mut byte = [0];
        fs::File::open(&copy).unwrap().read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    let mut damaged = fs::File::options().write(true).open(&copy).unwrap();
    damaged.seek(SeekFrom::Start(at)).unwrap();
    damaged.write_all(&[byte ^ 0x10]).unwrap();
    let output = run(&["verify", copy.to_str().unwrap()], &[]);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn damaged_raw(raw: &Path) {
    let inspect = stdout("dyad inspect", &run(&["inspect", "--json", raw.to_str().unwrap()], &[]));
    let facts: Value = serde_json::from_str(&inspect).unwrap();
    let part = |number: u64| {
        let parts = facts["partitions"].as_array().unwrap();
        parts.iter().find(|p| p["number"] == number).unwrap()["offset"].as_u64().unwrap()
    };
    let end = fs::metadata(raw).unwrap().len();
    let regions: [(&str, u64, &[&str]); 6] = [
        (
            "primary partition table",
            512 + 24,
            &["primary copy damaged: it has a wrong header checksum, backup copy good"],
        ),
        (
            "backup partition table",
            end - 512 + 24,
            &["primary copy good, backup copy damaged: it has a wrong header checksum"],
        ),
        (
            "file allocation table",
            part(1) + 32 * 512 + 400,
            &["EFI/Linux/dyad_0.1.0+3-0.efi", "its cluster chain ends"],
        ),
        ("root superblock", part(2), &["partition 2", "data block 0 is damaged"]),
        ("middle of the root", part(2) + 20 * 4096 + 7, &["partition 2", "data block 20 is damaged"]),
        ("hash tree", part(3) + 4096 + 9, &["partition 2", "root hash is "]),
    ];
    for (what, at, parts) in regions {
        let (code, said) = verify_with_a_flip(raw, at);
        println!("{what}: {}", said.trim());
        assert_eq!(code, 1, "{what}: {said}");
        for part in parts {
            assert!(said.contains(part), "{what}: {part:?} is missing in {said}");
        }
    }
}

fn damaged_qcow2(qcow2: &Path) {
    let length = fs::metadata(qcow2).unwrap().len();
    for (what, at) in [("version", 7), ("size", 24), ("L1 table", 40), ("a cluster", length / 2)] {
        let (code, said) = verify_with_a_flip(qcow2, at);
        println!("{what}: {}", said.trim());
        assert_eq!(code, 1, "{what}: {said}");
        assert!(said.starts_with("dyad: ") && !said.contains("os error"), "{what}: {said}");
    }
}

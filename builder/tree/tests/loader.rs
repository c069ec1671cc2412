//! The library cache against ldconfig, and programs started inside a finished tree.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Tar, merged, package};
use dyad_formats::tree::{Kind, Tree};

/// Debian's loader directory on the build machine and in packages.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";

#[allow(clippy::disallowed_methods, reason = "tests run outside oracles directly")]
fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("LD_DEBUG", "libs")
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn write_out(tree: &Tree, dir: &Path) {
    for (path, _, inode) in tree.iter() {
        let at = dir.join(std::str::from_utf8(&path[1..]).unwrap());
        match &inode.kind {
            Kind::Dir => fs::create_dir_all(&at).unwrap(),
            Kind::File(data) => {
                fs::write(&at, data).unwrap();
                fs::set_permissions(&at, fs::Permissions::from_mode(u32::from(inode.meta.mode))).unwrap();
            }
            Kind::Symlink(target) => symlink(std::str::from_utf8(target).unwrap(), &at).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// A package of files of this machine: bash, its libraries with their links, and one library that nothing needs.
fn system() -> Tar {
    let mut tar = Tar::default()
        .file("./etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n")
        .file(
            "./etc/ld.so.conf.d/x.conf",
            format!("# Multiarch\n/usr/local/lib\n{LIBRARIES}\n/usr{LIBRARIES}\n").as_bytes(),
        )
        .symlink("./lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
        .program("./bin/bash", &fs::read("/bin/bash").unwrap());
    for name in ["ld-linux-x86-64.so.2", "libc.so.6", "libtinfo.so.6", "libz.so.1", "libm.so.6"] {
        let link = PathBuf::from(LIBRARIES).join(name);
        let real = fs::canonicalize(&link).unwrap();
        let file = real.file_name().unwrap().to_str().unwrap();
        tar = tar.program(&format!(".{LIBRARIES}/{file}"), &fs::read(&real).unwrap());
        if file != name && name != "libtinfo.so.6" {
            tar = tar.symlink(&format!(".{LIBRARIES}/{name}"), file);
        }
    }
    tar
}

#[test]
fn the_cache_is_what_ldconfig_writes_and_programs_run() {
    let keep = "description = \"d\"\n[[keep]]\npath = \"/usr/lib/x86_64-linux-gnu/libz.so.1\"\nreason = \"opened by name\"\n";
    let merged = merged("", &[("one", keep)]);
    let built = common::build_with(vec![package("system", "", system())], &merged, vec![]).unwrap();
    let has = |name: &str| built.root.get(format!("/usr{LIBRARIES}/{name}").as_bytes()).is_some();
    assert!(has("libc.so.6") && has("libz.so.1"), "needed by bash, and kept by rule");
    assert!(has("libtinfo.so.6"), "a link that ldconfig would have made");
    assert!(!has("libm.so.6"), "nothing needs it");
    let dropped = built.report.dropped.iter().find(|d| d.path.ends_with("/libm.so.6")).unwrap();
    assert_eq!(dropped.rule, "derived: library that nothing in the image needs");

    let dir = tempfile::tempdir().unwrap();
    write_out(&built.root, dir.path());
    let root = dir.path().to_str().unwrap();
    let print = |cache: &str| {
        let text = String::from_utf8(run("/sbin/ldconfig", &["-p", "-C", cache]).stdout).unwrap();
        let lines = text.lines().filter(|l| l.contains("=>")).map(|l| {
            let (head, tail) = (l.split(", OS ABI").next().unwrap(), l.split("=>").nth(1).unwrap());
            format!("{} => {tail}", head.split(')').next().unwrap())
        });
        lines.collect::<Vec<_>>()
    };
    let ours = print(&format!("{root}/etc/ld.so.cache"));
    let made = run("/sbin/ldconfig", &["-r", root, "-X", "-C", "/theirs"]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(ours, print(&format!("{root}/theirs")));
    assert_eq!(ours.len(), 4, "{ours:?}");

    fs::remove_file(dir.path().join("theirs")).unwrap();
    let in_root = ["--map-root-user", "/usr/sbin/chroot", root, "/bin/bash", "-c", "echo hello"];
    let hello = run("/usr/bin/unshare", &in_root);
    assert_eq!(String::from_utf8_lossy(&hello.stdout), "hello\n", "{hello:?}");
    let debug = String::from_utf8_lossy(&hello.stderr).into_owned();
    assert!(debug.contains("search cache=/etc/ld.so.cache"), "{debug}");
    assert!(debug.contains("trying file=/lib/x86_64-linux-gnu/libtinfo.so.6"), "{debug}");
}

#[test]
fn a_program_that_cannot_start() {
    let without = |services: &str| {
        let overlay = format!(
            "description = \"d\"\n[[prune]]\npath = \"/usr/lib/x86_64-linux-gnu/libtinfo*\"\nreason = \"too big\"\n{services}"
        );
        common::build_with(vec![package("system", "", system())], &merged("", &[("one", &overlay)]), vec![])
    };
    let built = without("").unwrap();
    assert!(built.root.get(b"/usr/bin/bash").is_none());
    let dropped = built.report.dropped.iter().find(|d| d.path == "/usr/bin/bash").unwrap();
    let rule = "derived: cannot be loaded: needs libtinfo.so.6, which ";
    assert!(dropped.rule.starts_with(rule), "{}", dropped.rule);
    let text = without("[services.shell]\nexec = [\"/bin/bash\"]\n").map(|_| ()).unwrap_err().to_string();
    assert!(
        text.starts_with("/usr/bin/bash needs libtinfo.so.6, which was left out (overlay one: "),
        "{text}"
    );
    let gone = merged("", &[("one", "description = \"d\"\n[services.x]\nexec = [\"/usr/bin/nothing\"]\n")]);
    let text = common::build_with(vec![], &gone, vec![]).map(|_| ()).unwrap_err().to_string();
    assert_eq!(text, "overlay one: service x names /usr/bin/nothing, which is not in the image");
}

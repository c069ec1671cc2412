//! What a definition and its overlays become.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use dyad_spec::Source;
use dyad_spec::compile::{Accounts, compile};
use dyad_spec::compiled::{ImageTable, Link, Readiness, Restart, SocketKind, StopStep};
use dyad_spec::image::Merged;
use dyad_spec::merge::merge;

const DEFINITION: &str = r#"
name = "demo"
version = "1.0.0"
description = "An image"
suite = "bookworm"
architecture = "amd64"
kernel = "linux-image-amd64"
source_date_epoch = 1767225600
packages = ["extra"]
overlays = ["web", "base"]
[modules]
initrd = ["@virtio"]
[layout]
root = "512MiB"
verity = "8MiB"
[boot]
console = ["tty0", "ttyS0,115200n8"]
command_line = ["quiet"]
[[keep]]
path = "/usr/share/doc/web"
reason = "shown to users"
"#;

const BASE: &str = r#"
description = "The base"
packages = ["zsh", "bash"]
[modules]
initrd = ["@virtio", "nvme"]
load = ["loop"]
[groups.web]
gid = 300
[sysctls]
"vm.swappiness" = 1
[services.log]
exec = ["/usr/bin/log"]
readiness = "notify"
[[prune]]
path = "/usr/share/doc"
reason = "read elsewhere"
[[links]]
path = "/var/run"
target = "/run"
"#;

const WEB: &str = r#"
description = "A web server"
requires = ["base"]
packages = ["bash", "nginx"]
[modules]
load = ["loop", "bonding max_bonds=0"]
[users.www]
uid = 301
group = "web"
groups = ["adm"]
home = "/var/www"
[services.a-web]
exec = ["/usr/sbin/nginx", "-g", "daemon off;"]
user = "www"
groups = ["adm"]
after = ["log"]
env = { LANG = "C" }
capabilities = ["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]
restart = "always"
restart_min = "1s"
restart_max = "1min"
stop = [{ signal = "SIGQUIT", wait = "5s" }, { signal = "SIGTERM", wait = "500ms" }]
sockets = [{ path = "/run/web/http", kind = "seqpacket", mode = "0660", name = "http" }]
watchdog = "10s"
phases = ["data"]
fence = true
[[directories]]
path = "/var/lib/web/cache"
mode = "0700"
user = "www"
[[links]]
path = "/etc/web"
target = "../run/web"
[[files]]
path = "/etc/web.key"
mode = "0640"
group = "web"
"#;

fn merged() -> Merged {
    let overlays = [("base", BASE), ("web", WEB), ("unused", "not even TOML")]
        .map(|(name, text)| (name.to_owned(), Source::new(format!("overlays/{name}/overlay.toml"), text)));
    let merged = merge(Source::new("images/demo.toml", DEFINITION), &BTreeMap::from(overlays));
    merged.unwrap_or_else(|errors| panic!("{errors}"))
}

/// Known users (with their primary group's number) and groups.
struct Known(&'static [(&'static str, u32, u32)], &'static [(&'static str, u32)]);

impl Accounts for Known {
    fn user(&self, name: &str) -> Option<(u32, u32)> {
        self.0.iter().find(|(n, ..)| *n == name).map(|&(_, uid, gid)| (uid, gid))
    }
    fn group(&self, name: &str) -> Option<u32> {
        self.1.iter().find(|(n, _)| *n == name).map(|&(_, gid)| gid)
    }
}

const ACCOUNTS: Known = Known(&[("root", 0, 0), ("www", 301, 300)], &[("adm", 4), ("web", 300)]);

#[test]
fn overlays_come_after_what_they_require_and_everything_says_who_asked() {
    let merged = merged();
    assert_eq!(merged.overlays, ["base", "web"]);
    let packages: Vec<String> =
        merged.packages.iter().map(|p| format!("{}: {}", p.what, p.by.join(", "))).collect();
    assert_eq!(
        packages,
        [
            "bash: overlay base, overlay web",
            "extra: image demo",
            "linux-image-amd64: image demo",
            "nginx: overlay web",
            "zsh: overlay base"
        ]
    );
    let names = |all: &[dyad_spec::image::Asked<dyad_spec::ModuleSelector>]| -> Vec<String> {
        all.iter().map(|m| m.what.to_string()).collect()
    };
    assert_eq!(names(&merged.initrd_modules), ["@virtio", "nvme"]);
    assert_eq!(merged.initrd_modules[0].by, ["image demo", "overlay base"]);
    assert_eq!(names(&merged.root_modules), ["loop", "bonding"]);
    assert_eq!(merged.command_line, ["quiet", "console=tty0", "console=ttyS0,115200n8"]);
    assert_eq!(
        (merged.prune[0].origin.as_str(), merged.keep[0].origin.as_str()),
        ("overlay base", "image demo")
    );
    assert_eq!(merged.users[0].group, "web");
    let groups: Vec<(&str, Option<u32>, usize)> =
        merged.groups.iter().map(|g| (g.name.as_str(), g.gid, g.members.len())).collect();
    assert_eq!(groups, [("adm", None, 1), ("web", Some(300), 0)]);
    assert_eq!((merged.image_links[0].path.as_str(), merged.boot_links.len()), ("/etc/web", 1));
    assert_eq!((merged.files[0].mode, merged.files[0].user.as_str()), (Some(0o640), "root"));
    assert_eq!(merged.layout.esp.to_string(), "1GiB");
}

#[test]
fn the_table_has_numbers_only() {
    let table = compile(&merged(), &ACCOUNTS).unwrap();
    assert_eq!(ImageTable::decode(&table.encode()).unwrap(), table);
    let [log, web] = &table.services[..] else { panic!("two services") };
    assert_eq!(
        (log.name.as_str(), log.readiness, log.restart),
        ("log", Readiness::Notify, Restart::OnFailure)
    );
    assert_eq!((log.uid, log.capabilities.as_ref(), log.autostart, log.no_new_privs), (0, None, true, true));
    assert_eq!(log.stop, [StopStep { signal: 15, wait_ms: 10_000 }]);
    assert_eq!(web.exec, ["/usr/sbin/nginx", "-g", "daemon off;"]);
    assert_eq!((web.uid, web.gid, &web.groups[..], &web.after[..]), (301, 300, &[4][..], &[0][..]));
    assert_eq!(web.capabilities.as_deref(), Some(&[0, 10][..]));
    assert_eq!((web.restart_min_ms, web.restart_max_ms, web.watchdog_ms), (1_000, 60_000, 10_000));
    assert_eq!((web.stop[0].signal, web.stop[1].wait_ms), (3, 500));
    assert_eq!((web.sockets[0].kind, web.sockets[0].mode), (SocketKind::SeqPacket, 0o660));
    assert_eq!((&web.phases[..], web.fence), (&["data".to_owned()][..], true));
    let directories: Vec<(&str, u16, u32, u32)> =
        table.directories.iter().map(|d| (d.path.as_str(), d.mode, d.uid, d.gid)).collect();
    assert_eq!(
        directories,
        [("/var/lib", 0o755, 0, 0), ("/var/lib/web", 0o755, 0, 0), ("/var/lib/web/cache", 0o700, 301, 300)]
    );
    assert_eq!(table.links, [Link { path: "/var/run".into(), target: "/run".into() }]);
    assert_eq!(table.sysctls, [("vm.swappiness".to_owned(), "1".to_owned())]);
    assert_eq!(table.modules, ["loop", "bonding max_bonds=0"]);
}

#[test]
fn unknown_accounts_are_named() {
    let no_user = compile(&merged(), &Known(&[("root", 0, 0)], &[("adm", 4)])).unwrap_err();
    assert_eq!(
        no_user.to_string(),
        "overlay web: service a-web names user `www`, which neither the base system nor an overlay defines; \
         add `[users.www]` with a uid"
    );
    let no_group = compile(&merged(), &Known(ACCOUNTS.0, &[])).unwrap_err();
    assert_eq!(
        no_group.to_string(),
        "overlay web: service a-web names group `adm`, which neither the base system nor an overlay defines; \
         add `[groups.adm]` with a gid"
    );
}

//! The closure against apt itself, on the package lists that this machine's apt has fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dyad_archive::process::{self, Command};
use dyad_debian::{Origin, Request, Universe, resolve};

/// The package lists of Debian's own suites, in apt's order: what this machine's apt has fetched, or, where it never did,
/// what it fetches now into `directory`, which an ordinary user may ask of it.
fn host_lists(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let fetched = lists(&[]);
    if !fetched.is_empty() {
        return fetched;
    }
    let (state, cache) = (directory.join("state"), directory.join("cache"));
    for part in ["state/lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(directory.join(part)).unwrap();
    }
    let own = [
        format!("Dir::State={}", state.display()),
        format!("Dir::Cache={}", cache.display()),
        "APT::Sandbox::User=root".to_owned(),
    ];
    apt_get(&own).args(["-q", "update"]).run_checked().unwrap();
    let fetched = lists(&own);
    assert!(!fetched.is_empty(), "apt on this machine has no sources of Debian's packages");
    fetched
}

fn apt_get(options: &[String]) -> Command {
    let command = Command::new(process::find("apt-get").unwrap());
    options.iter().fold(command, |command, option| command.args(["-o", option.as_str()]))
}

fn lists(options: &[String]) -> Vec<(String, Vec<u8>)> {
    let format = "$(RELEASE) $(COMPONENT) $(ORIGIN) $(FILENAME)";
    let targets = apt_get(options).args(["indextargets", "--format", format, "Created-By: Packages"]);
    let targets = String::from_utf8(targets.run_checked().unwrap().stdout).unwrap();
    let helper = "/usr/lib/apt/apt-helper";
    targets
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|words| words[1] == "main" && words[2] == "Debian")
        .map(|words| {
            let cat = Command::new(helper).args(["cat-file", words[3]]).stdout_bytes_max(1 << 30);
            (words[0].to_owned(), cat.run_checked().unwrap().stdout)
        })
        .collect()
}

/// An apt that knows these lists, has nothing installed, and touches nothing of this machine's.
struct EmptyApt<'a> {
    directory: &'a Path,
}

impl EmptyApt<'_> {
    fn new<'a>(directory: &'a Path, lists: &[(String, Vec<u8>)]) -> EmptyApt<'a> {
        let mut sources = String::new();
        for (number, (_, text)) in lists.iter().enumerate() {
            let repository = directory.join(number.to_string());
            std::fs::create_dir(&repository).unwrap();
            std::fs::write(repository.join("Packages"), text).unwrap();
            sources += &format!("deb [trusted=yes arch=amd64] file:{} ./\n", repository.display());
        }
        std::fs::write(directory.join("sources.list"), sources).unwrap();
        // Read before anything else: keeps this machine's settings and update hooks out.
        let only = "Dir::Etc::main \"/dev/null\"; Dir::Etc::parts \"/dev/null\";\n";
        std::fs::write(directory.join("apt.conf"), only).unwrap();
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        let apt = EmptyApt { directory };
        apt.command().arg("update").run_checked().unwrap();
        apt
    }

    fn command(&self) -> Command {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let apt_get = Command::new(process::find("apt-get").unwrap());
        let mut command = apt_get.env("APT_CONFIG", self.directory.join("apt.conf")).arg("-q");
        for (key, value) in [
            ("Dir::Etc::sourcelist", file("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::Etc::preferences", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
            ("Dir::State::lists", file("lists")),
            ("Dir::State::status", "/dev/null".to_owned()),
            ("Dir::State::extended_states", "/dev/null".to_owned()),
            ("Dir::Cache", file("cache")),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Architectures", "amd64".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command = command.arg("-o").arg(format!("{key}={value}"));
        }
        command
    }

    /// What apt would install, by name, with versions.
    fn closure(&self, packages: &[&str]) -> BTreeMap<String, String> {
        let install = ["install", "--simulate", "--no-install-recommends", "-y"];
        let answer = self.command().args(install).args(packages).run_checked().unwrap();
        let text = String::from_utf8(answer.stdout).unwrap();
        // Inst NAME (VERSION SUITE [ARCH])
        let lines = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_once(" ("));
        lines.map(|(name, rest)| (name.to_owned(), rest.split(' ').next().unwrap().to_owned())).collect()
    }
}

/// The sets, and by name what we take that apt does not (+) and what apt takes that we do not (-).
const SETS: [(&str, &[&str], &[&str]); 8] = [
    ("lab", &["postgresql", "lvm2", "e2fsprogs", "linux-image-amd64", "systemd-boot-efi", "systemd"], &[]),
    ("appliance", &["postgresql", "drbd-utils", "qemu-system-x86", "lvm2", "nftables", "ovmf"], &[]),
    ("web", &["nginx", "php-fpm", "mariadb-server", "certbot"], &[]),
    ("mail", &["postfix", "dovecot-imapd", "rspamd", "mutt"], &[]),
    ("desktop", &["xfce4", "lightdm", "network-manager-gnome"], &[]),
    ("build", &["build-essential", "debhelper", "git", "cmake", "python3-venv"], &[]),
    ("virtual", &["openssh-server", "apache2", "cron", "default-mta", "default-jre-headless"], &[]),
    ("perl", &["libdbd-pg-perl", "munin-node", "backuppc"], &[]),
];

#[test]
fn the_closure_is_apts() {
    let directory = tempfile::tempdir().unwrap();
    let lists = host_lists(&directory.path().join("host"));
    let apt = EmptyApt::new(directory.path(), &lists);
    let mut universe = Universe::new("amd64");
    for (suite, text) in lists {
        universe.add(Origin { suite, component: "main".to_owned() }, text).unwrap();
    }
    let mut wrong = Vec::new();
    for (name, packages, explained) in SETS {
        let request =
            Request { packages: packages.iter().map(|p| p.parse().unwrap()).collect(), ..Request::default() };
        let ours: BTreeMap<_, _> =
            resolve(&universe, &request).unwrap().packages.into_iter().map(|p| (p.name, p.version)).collect();
        let theirs = apt.closure(packages);
        let more = ours
            .iter()
            .filter(|(name, version)| theirs.get(*name) != Some(version))
            .map(|(n, _)| format!("+{n}"));
        let less = theirs
            .iter()
            .filter(|(name, version)| ours.get(*name) != Some(version))
            .map(|(n, _)| format!("-{n}"));
        let differences: BTreeSet<_> = more.chain(less).collect();
        println!("{name}: {} packages, apt {}: {differences:?}", ours.len(), theirs.len());
        if differences != explained.iter().map(|e| e.to_string()).collect() {
            wrong.push(format!("{name}: {differences:?}, explained: {explained:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! `cargo xtask configured-root IMAGE`: an image's root beside the root that apt and dpkg make of the same packages, with
//! every maintainer script run. Each path that differs is printed with the reason; one without a reason is a failure.
//! A second argument names an archive of such a root that was made before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dyad_image_tests::text;
use dyad_vm_tests::{program, root, run, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// Reasons for what scripts make or change, by path.
const REASONS: &str = "tests/image/configured-root.txt";

/// Archive -> {path: [kind, mode, uid, gid, target or SHA-256, extended attributes]}, and {path: [packages]} of dpkg.
const READ: &str = r#"
import hashlib, json, sys, tarfile
rows, owners = {}, {}
clean = lambda name: "/" + name.removeprefix("./").strip("/").removeprefix(".")
kinds = {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link", tarfile.CHRTYPE: "device",
         tarfile.BLKTYPE: "device", tarfile.FIFOTYPE: "pipe"}
with tarfile.open(sys.argv[1]) as archive:
    for m in archive:
        if m.islnk():
            rows[clean(m.name)] = rows[clean(m.linkname)]
            continue
        content = m.linkname
        if m.isreg():
            data = archive.extractfile(m).read()
            content = hashlib.sha256(data).hexdigest()
            if "/dpkg/info/" in m.name and m.name.endswith(".list"):
                package = m.name.rsplit("/", 1)[1][:-5].split(":")[0]
                for path in data.decode().splitlines():
                    merged = path.split("/")[1] if path != "/." else ""
                    path = "/usr" + path if merged in ("bin", "sbin", "lib", "lib64") else path
                    owners.setdefault(path, []).append(package)
        xattrs = sorted(k.removeprefix("SCHILY.xattr.") for k in m.pax_headers if k.startswith("SCHILY.xattr."))
        rows[clean(m.name)] = [kinds.get(m.type, "file"), oct(m.mode & 0o7777), m.uid, m.gid, content, xattrs]
print(json.dumps([rows, owners]))
"#;
const FIELDS: [&str; 6] = ["kind", "mode", "user", "group", "content", "extended attributes"];

type Rows = BTreeMap<String, [Value; 6]>;
type Owners = BTreeMap<String, BTreeSet<String>>;

fn read(archive: &Path) -> (Rows, Owners) {
    let output = program("python3", &["-c", READ, text(archive)]);
    serde_json::from_str(&stdout("reading the archive", &output))
        .expect("the script prints what is read here")
}

/// The root of the same packages with everything that they depend on, configured. A namespace of its own, so that
/// nothing that a script starts or mounts stays.
fn configured(packages: &[&str], archive: &Path) {
    let include = format!("--include={}", packages.join(","));
    let make = ["mmdebstrap", "--quiet", "--variant=essential", &include, "bookworm", text(archive)];
    let privileged = stdout("id", &program("id", &["-u"])).trim() == "0";
    let line = match privileged {
        true => {
            [&["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"][..], &make].concat()
        }
        // Needs ranges in /etc/subuid and /etc/subgid, and newuidmap; mmdebstrap says so.
        false => make.to_vec(),
    };
    stdout("mmdebstrap (Debian packages mmdebstrap and uidmap)", &program(line[0], &line[1..]));
}

/// What is known of both roots.
struct Both {
    ours: Rows,
    theirs: Rows,
    owners: Owners,
    manifest: Value,
    /// Packages of the image.
    packages: BTreeSet<String>,
    /// By path, or by the start of one where the pattern ends in `*`.
    reasons: Vec<(String, String)>,
}

impl Both {
    fn origin(&self, path: &str) -> &str {
        self.manifest["origins"][path].as_str().unwrap_or_default()
    }

    fn stated(&self, path: &str) -> Option<String> {
        let fits = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => path == pattern || path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/')),
        };
        self.reasons.iter().find(|(pattern, _)| fits(pattern)).map(|(_, reason)| reason.clone())
    }

    /// Where a chain of links of update-alternatives ends, if this path is one.
    fn alternative(&self, path: &str) -> Option<String> {
        const DIR: &str = "/etc/alternatives/";
        let target = |path: &str| match self.theirs.get(path) {
            Some(row) if row[0] == "link" => row[4].as_str().map(str::to_owned),
            _ => None,
        };
        let first = target(path)?;
        let end =
            if path.starts_with(DIR) { first } else { target(Some(&first).filter(|f| f.starts_with(DIR))?)? };
        let usr = ["/bin/", "/sbin/", "/lib/"].iter().any(|top| end.starts_with(top));
        let end = if usr { format!("/usr{end}") } else { end };
        (!self.ours.contains_key(&end))
            .then(|| "update-alternatives: what it points to is not in the image".to_owned())
    }

    /// Why the configured root has a path that the image lacks.
    fn missing(&self, path: &str, dropped: &BTreeMap<&str, &str>) -> Option<String> {
        if let Some(rule) = dropped.get(path) {
            return Some(format!("left out by {rule}"));
        }
        match self.owners.get(path) {
            Some(owners) if owners.is_disjoint(&self.packages) => {
                Some("shipped by a package that the image leaves out".to_owned())
            }
            // A directory goes with the last thing in it, or has its content at run time.
            Some(_) if self.theirs[path][0] == "directory" => {
                let below = format!("{path}/");
                let empty =
                    !self.ours.range(below.clone()..).next().is_some_and(|(p, _)| p.starts_with(&below));
                empty.then(|| "a directory of which nothing is left".to_owned())
            }
            Some(_) => None,
            None => self.alternative(path).or_else(|| self.stated(path)),
        }
    }

    /// Every difference: (path, what, reason).
    fn differences(&self) -> Vec<(String, String, Option<String>)> {
        let dropped = self.manifest["dropped"].as_array().expect("the manifest lists what was left out");
        let word = |d: &'_ Value, key: &str| d[key].as_str().map(str::to_owned).unwrap_or_default();
        let dropped: Vec<(String, String)> =
            dropped.iter().map(|d| (word(d, "path"), word(d, "rule"))).collect();
        let dropped: BTreeMap<&str, &str> = dropped.iter().map(|(p, r)| (p.as_str(), r.as_str())).collect();
        let mut all = Vec::new();
        for (path, theirs) in &self.theirs {
            let Some(ours) = self.ours.get(path) else {
                all.push((path.clone(), "only configured".to_owned(), self.missing(path, &dropped)));
                continue;
            };
            let fields = FIELDS.iter().zip(ours.iter().zip(theirs));
            let differ: Vec<&str> = fields.filter(|(_, (a, b))| a != b).map(|(name, _)| *name).collect();
            if !differ.is_empty() {
                let laid =
                    self.origin(path).strip_prefix("overlay ").map(|name| format!("laid by overlay {name}"));
                all.push((
                    path.clone(),
                    format!("other {}", differ.join(", ")),
                    laid.or_else(|| self.stated(path)),
                ));
            }
        }
        for path in self.ours.keys().filter(|path| !self.theirs.contains_key(*path)) {
            let origin = self.origin(path);
            let known = !origin.is_empty() && !origin.starts_with("package ");
            all.push((path.clone(), "only image".to_owned(), known.then(|| origin.to_owned())));
        }
        all
    }
}

fn reasons() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(REASONS)).expect("the list of reasons is in the tree");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pair = |line: &str| {
        let (path, reason) = line.split_once(' ').expect("PATH REASON");
        (path.to_owned(), reason.trim().to_owned())
    };
    lines.map(pair).collect()
}

fn compare(image: &str, made: Option<PathBuf>) -> Both {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let definition = format!("images/{image}.toml");
    let out = text(dir.path());
    let record = run(&["build", &definition, "--out", out, "--format", "tree", "--json"], &[]);
    let record: Value = serde_json::from_str(&stdout("dyad build", &record)).expect("--json prints JSON");
    let tar = Path::new(record["outputs"][0]["path"].as_str().expect("one output")).to_owned();
    let json = |suffix: &str| -> Value {
        let text = fs::read(tar.with_extension(suffix)).expect("it lies beside the output");
        serde_json::from_slice(&text).expect("it is JSON")
    };
    let built = json("build.json");
    let built = built["packages"].as_array().expect("the build record lists packages");
    let packages: BTreeSet<String> =
        built.iter().filter_map(|p| p["name"].as_str()).map(str::to_owned).collect();
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    let archive = made.unwrap_or_else(|| {
        let archive = dir.path().join("configured.tar");
        configured(&names, &archive);
        archive
    });
    let (theirs, owners) = read(&archive);
    let (ours, _) = read(&tar);
    Both { ours, theirs, owners, manifest: json("manifest.json"), packages, reasons: reasons() }
}

fn main() -> ExitCode {
    let image = std::env::args().nth(1).unwrap_or_else(|| "lab".to_owned());
    let both = compare(&image, std::env::args_os().nth(2).map(PathBuf::from));
    let all = both.differences();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut unexplained = 0;
    for (path, what, reason) in &all {
        println!("{path}: {what}: {}", reason.as_deref().unwrap_or("NO REASON"));
        let reason = reason.as_deref().unwrap_or("NO REASON");
        *counts.entry(format!("{what}: {reason}")).or_default() += 1;
        unexplained += usize::from(reason == "NO REASON");
    }
    println!("\npaths, what, why:");
    let mut sums: Vec<(&String, &usize)> = counts.iter().collect();
    sums.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    for (what, count) in sums {
        println!("{count:>6} {what}");
    }
    let same = both.ours.len() - all.iter().filter(|(path, ..)| both.ours.contains_key(path)).count();
    println!(
        "{image}: {} paths, {same} of them the same as dpkg makes them; {} in the configured root; {} differences, {unexplained} \
         without a reason",
        both.ours.len(),
        both.theirs.len(),
        all.len()
    );
    if unexplained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

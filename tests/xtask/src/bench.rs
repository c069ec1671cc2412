//! `cargo xtask bench NAME`: measurements that are made side by side in one run and reported as ratios.

mod boot;
mod pairs;
mod witness;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh::{self, Cost};

/// What the comparison needs beside this tree.
const PEERS: &str = "mmdebstrap, squashfs-tools and time";

/// Runs the named benchmark.
pub(crate) fn run(root: &Path, name: &str, options: &[&str]) -> Result<bool> {
    match (name, options) {
        ("build", []) => build(root).map(|()| true),
        ("image-size", []) => image_size(root).map(|()| true),
        ("witness", []) => witness::run(root).map(|()| true),
        ("init", []) => init(root).map(|()| true),
        ("boot", []) => boot::run(root),
        ("failover" | "steady", options) => pairs::run(root, name, options).map(|()| true),
        (_, []) => {
            bail!(
                "unknown benchmark {name}; there are: boot, build, failover, image-size, init, steady, witness"
            )
        }
        _ => bail!("{name} has no options {options:?}"),
    }
}

/// Debian's packages with what they need, unpacked and not installed; the directory.
fn unpacked(root: &Path, dyad: &str, packages: &[&str]) -> Result<String> {
    let made = sh::output(root, dyad, &[&["tools"][..], packages].concat())?;
    Ok(made.trim().to_owned())
}

/// `dyad`, built; or the one that `DYAD_BIN` names.
fn program(root: &Path) -> Result<String> {
    if let Ok(built) = std::env::var("DYAD_BIN") {
        return Ok(built);
    }
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    Ok(text(&sh::target_dir(root).join("release/dyad"))?.to_owned())
}

/// PID 1 beside Debian's other supervisors, in namespaces: needs root. The others are unpacked, not installed.
fn init(root: &Path) -> Result<()> {
    // finit's plugins are what sees the PID files of its services.
    let packages = ["busybox-static", "finit", "finit-plugins", "runit", "s6", "systemd"];
    let peers = unpacked(root, &program(root)?, &packages)?;
    // As on the image: linked statically, optimised as a release.
    let env = [("DYAD_PEERS", peers.as_str()), ("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")];
    let target = ["--target", "x86_64-unknown-linux-gnu"];
    let bench = ["bench", "--locked", "--package", "init", "--bench", "supervisors"];
    sh::cargo_env(root, &[&bench[..], &target[..]].concat(), &env)
}

/// A measured way to an image.
struct Row {
    image: &'static str,
    how: &'static str,
    cost: Cost,
    /// Bytes of the compressed root.
    root_bytes: u64,
}

/// Copies of definitions and overlays that a benchmark may change, and where it builds.
struct Bench {
    dyad: String,
    work: PathBuf,
}

impl Bench {
    fn new(root: &Path) -> Result<Self> {
        let dyad = program(root)?;
        let work = std::env::temp_dir().join(format!("dyad-bench-{}", std::process::id()));
        fs::create_dir_all(&work)?;
        for dir in ["images", "overlays"] {
            sh::output(root, "cp", &["-r", dir, text(&work)?])?;
        }
        Ok(Bench { dyad, work })
    }

    /// Raw and qcow2 images from cached packages.
    fn build(&self, image: &'static str, how: &'static str) -> Result<Row> {
        let (definition, out, blocks) =
            (format!("images/{image}.toml"), format!("out-{image}"), self.blocks(image));
        let args = ["build", &definition, "--offline", "--out", &out, "--format", "raw", "--format", "qcow2"];
        let cost = sh::measure(&self.work, &self.dyad, &args, &[("DYAD_BLOCK_CACHE", text(&blocks)?)])?;
        let facts = self.json(&["inspect", "--json", &self.output(image)?])?;
        let root_bytes =
            facts["root"]["bytes"].as_u64().context("`dyad inspect` names no size of the root")?;
        Ok(Row { image, how, cost, root_bytes })
    }

    fn blocks(&self, image: &str) -> PathBuf {
        self.work.join(format!("blocks-{image}"))
    }

    /// The raw image, whatever its version.
    fn output(&self, image: &str) -> Result<String> {
        let dir = self.work.join(format!("out-{image}"));
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "raw") {
                return Ok(text(&path)?.to_owned());
            }
        }
        bail!("{} has no raw image", dir.display())
    }

    fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&sh::output(&self.work, &self.dyad, args)?)?)
    }

    /// Names of the packages in the lock file.
    fn packages(&self, image: &str) -> Result<Vec<String>> {
        sh::output(&self.work, &self.dyad, &["lock", &format!("images/{image}.toml")])?;
        let lock = fs::read_to_string(self.work.join(format!("images/{image}.lock")))?;
        let names: Vec<String> = lock
            .lines()
            .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            bail!("the lock file names no package");
        }
        Ok(names)
    }

    /// Debian's own tools on the same packages: unpacked without their scripts, which is the least that they can do.
    /// Packages come from a cache that a run before has filled.
    fn peer(&self, image: &'static str) -> Result<Row> {
        let include = self.packages(image)?.join(",");
        fs::create_dir_all(self.work.join("debs"))?;
        let script = format!(
            "set -e; rm -f peer.squashfs; mmdebstrap --quiet --variant=extract --include={include} \
             --skip=download/empty --skip=essential/unlink \
             --setup-hook='mkdir -p \"$1/var/cache/apt/archives\"' \
             --setup-hook='sync-in debs /var/cache/apt/archives' \
             --customize-hook='sync-out /var/cache/apt/archives debs' bookworm peer.tar; \
             sqfstar -quiet -no-progress -comp zstd -b 1M peer.squashfs < peer.tar"
        );
        let run = || sh::measure(&self.work, "/bin/sh", &["-c", &script], &[]).context(PEERS);
        run()?;
        let cost = run()?;
        let root_bytes = fs::metadata(self.work.join("peer.squashfs"))?.len();
        Ok(Row { image, how: "mmdebstrap, mksquashfs", cost, root_bytes })
    }

    fn rows(&self, image: &'static str) -> Result<Vec<Row>> {
        // The first build of all fills the package cache, so that only our own work is measured.
        let definition = format!("images/{image}.toml");
        let args = ["build", &definition, "--out", "first", "--format", "tree"];
        sh::measure(&self.work, &self.dyad, &args, &[("DYAD_BLOCK_CACHE", text(&self.blocks(image))?)])?;
        fs::remove_dir_all(self.blocks(image))?;
        let mut rows = vec![self.build(image, "no cached block")?, self.build(image, "nothing changed")?];
        let file = self.work.join("overlays/base/files/etc/dyad-bench");
        fs::create_dir_all(file.parent().context("the file has a directory")?)?;
        fs::write(&file, format!("one line of {image}\n"))?;
        rows.push(self.build(image, "one file more in an overlay")?);
        let path = self.work.join(&definition);
        let before = fs::read_to_string(&path)?;
        let after = before.replacen("packages = [", "packages = [\"less\", ", 1);
        if after == before {
            bail!("{definition} has no line `packages = [`");
        }
        fs::write(&path, after)?;
        sh::output(&self.work, &self.dyad, &["build", &definition, "--out", "first", "--format", "tree"])?;
        rows.push(self.build(image, "one package more")?);
        fs::write(&path, before)?;
        fs::remove_file(&file)?;
        rows.push(self.peer(image)?);
        Ok(rows)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Image builds from cached packages beside Debian's own tools on the same packages; ratios are the peer's cost by ours.
fn build(root: &Path) -> Result<()> {
    let bench = Bench::new(root)?;
    println!(
        "| image | what | wall s | CPU s | peak MiB | root MiB | wall ratio | CPU ratio | size ratio |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for image in ["lab", "appliance"] {
        let rows = bench.rows(image)?;
        let peer = rows.last().context("the peer is the last row")?;
        for row in &rows {
            let wall = |r: &Row| r.cost.wall.as_secs_f64();
            println!(
                "| {} | {} | {:.1} | {:.1} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
                row.image,
                row.how,
                wall(row),
                row.cost.cpu_seconds,
                row.cost.peak_kib / 1024,
                row.root_bytes as f64 / f64::from(1 << 20),
                wall(peer) / wall(row),
                peer.cost.cpu_seconds / row.cost.cpu_seconds,
                peer.root_bytes as f64 / row.root_bytes as f64,
            );
        }
    }
    fs::remove_dir_all(&bench.work)?;
    Ok(())
}

/// Root and kernel image of every definition, and what the same packages take when nothing is left out.
fn image_size(root: &Path) -> Result<()> {
    const MIB: f64 = 1024.0 * 1024.0;
    let bench = Bench::new(root)?;
    println!(
        "| image | packages | root MiB | kernel image MiB | unpruned squashfs MiB | ratio |\n|---|---|---|---|---|---|"
    );
    for image in ["lab", "appliance"] {
        let definition = format!("images/{image}.toml");
        let built = bench.json(&["build", &definition, "--out", "size", "--format", "raw", "--json"])?;
        let number = |value: &serde_json::Value| {
            value.as_u64().map(|n| n as f64).context("`dyad build` names no size")
        };
        let (ours, kernel) = (number(&built["root"]["bytes"])?, number(&built["uki_bytes"])?);
        let peer = bench.peer(image)?.root_bytes as f64;
        let packages = &built["packages"];
        println!(
            "| {image} | {packages} | {:.1} | {:.1} | {:.1} | {:.1} |",
            ours / MIB,
            kernel / MIB,
            peer / MIB,
            peer / ours
        );
    }
    fs::remove_dir_all(&bench.work)?;
    Ok(())
}

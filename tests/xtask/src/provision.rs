//! The programs that the tests judge our bytes with, for a machine that has none of them and a user who is not root.
//!
//! What is not installed is unpacked by `dyad tools` into the cache and laid over `/usr` in a mount namespace of the
//! tests' own: the host's files win, and nothing on the host changes. Inside, the tests run as the user they were
//! started by, without any capability.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Set for the inner run; holds the root that was laid over the host's.
const INSIDE: &str = "DYAD_XTASK_TOOLS";

/// Debian packages of this list that are not installed.
fn missing<'a>(root: &Path, packages: &[&'a str]) -> Vec<&'a str> {
    let installed = |package: &str| {
        sh::output(root, "dpkg-query", &["--show", "--showformat=${db:Status-Status}", package])
            .is_ok_and(|state| state == "installed")
    };
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

/// True: everything is here, go on. False: the checks ran inside a namespace and passed.
pub(crate) fn ready(root: &Path, packages: &[&str], arguments: &[&str]) -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let missing = missing(root, packages);
    if missing.is_empty() {
        return Ok(true);
    }
    println!("not installed, taken from Debian packages for this run: {}", missing.join(" "));
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    let dyad = sh::target_dir(root).join("release/dyad");
    let mut words = vec!["tools"];
    words.extend(&missing);
    let tools = sh::output(root, dyad.to_str().context("the target directory is not UTF-8")?, &words)?;
    let tools = tools.trim();
    if tools.is_empty() || !Path::new(tools).join("usr").is_dir() {
        bail!("`dyad tools` printed {tools:?}, which holds no usr directory");
    }
    let (user, group) = (sh::output(root, "id", &["-u"])?, sh::output(root, "id", &["-g"])?);
    // The outer namespace may mount; the inner one gives the user back and no capability with it.
    let script = "set -e\n\
        mount -t overlay overlay -o \"lowerdir=/usr:$1/usr\" /usr\n\
        user=$2 group=$3; shift 3\n\
        exec unshare --user --map-user=\"$user\" --map-group=\"$group\" \"$@\"";
    let exe = std::env::current_exe()?;
    let exe = exe.to_str().context("the path of xtask is not UTF-8")?;
    let mut all = vec!["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    all.extend([tools, user.trim(), group.trim(), exe]);
    all.extend(arguments);
    sh::step(root, "unshare", &all, &[(INSIDE, tools)])?;
    Ok(false)
}

//! The programs that the tests judge our bytes with, for a machine that has none of them and a user who is not root.
//!
//! What is not installed is unpacked by `dyad tools` into the cache and laid over `/usr` in a mount namespace of the
//! tests' own, and the user `postgres` is added to the accounts: the host's files win, and nothing on the host changes.
//! Inside, the tests run as the user they were started by, without any capability.

use std::path::{Path, PathBuf};

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

/// The host's accounts and `postgres`, which PostgreSQL's package would have made: the tests run the server as that user.
struct Accounts(PathBuf);

impl Accounts {
    fn new() -> Result<Accounts> {
        let accounts = Accounts(std::env::temp_dir().join(format!("dyad-accounts-{}", std::process::id())));
        std::fs::create_dir(&accounts.0).with_context(|| accounts.0.display().to_string())?;
        let read = |name: &str| std::fs::read_to_string(format!("/etc/{name}"));
        let (mut users, mut groups) = (read("passwd")?, read("group")?);
        let taken =
            |id: &str| users.lines().chain(groups.lines()).any(|line| line.split(':').nth(2) == Some(id));
        // Debian's numbers for users of packages.
        let id = (100..1000).rev().map(|id| id.to_string()).find(|id| !taken(id));
        let id = id.context("no number is free for the user `postgres`")?;
        if !users.lines().any(|line| line.starts_with("postgres:")) {
            users += &format!("postgres:x:{id}:{id}::/var/lib/postgresql:/bin/sh\n");
            groups += &format!("postgres:x:{id}:\n");
        }
        std::fs::write(accounts.0.join("passwd"), users)?;
        std::fs::write(accounts.0.join("group"), groups)?;
        Ok(accounts)
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
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
    let accounts = Accounts::new()?;
    let (user, group) = (sh::output(root, "id", &["-u"])?, sh::output(root, "id", &["-g"])?);
    // The outer namespace may mount; the inner one gives the user back and no capability with it.
    let script = "set -e\n\
        mount -t overlay overlay -o \"lowerdir=/usr:$1/usr\" /usr\n\
        for file in passwd group; do mount --bind \"$2/$file\" /etc/$file; done\n\
        user=$3 group=$4; shift 4\n\
        exec unshare --user --map-user=\"$user\" --map-group=\"$group\" \"$@\"";
    let exe = std::env::current_exe()?;
    let exe = exe.to_str().context("the path of xtask is not UTF-8")?;
    let mut all = vec!["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    let accounts = accounts.0.to_str().context("the temporary directory is not UTF-8")?;
    all.extend([tools, accounts, user.trim(), group.trim(), exe]);
    all.extend(arguments);
    sh::step(root, "unshare", &all, &[(INSIDE, tools)])?;
    Ok(false)
}

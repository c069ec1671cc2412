//! Host name, `hosts` and `resolv.conf`: the root's `/etc` links to them in `/run/dyad/etc`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use dyad_spec::site::{Node, Site};

/// Host name of a machine that does not know yet who it is.
pub const UNNAMED: &str = "dyad";

/// Content of the three files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Host name.
    pub hostname: String,
    /// `/etc/hosts`
    pub hosts: String,
    /// `/etc/resolv.conf`
    pub resolv_conf: String,
}

impl Names {
    /// What a machine without a site file has.
    pub fn unnamed() -> Self {
        Self { hostname: UNNAMED.to_owned(), hosts: local(UNNAMED), resolv_conf: String::new() }
    }

    /// What a node has: every node and every virtual address of the site by name.
    pub fn of(site: &Site, node: &Node) -> Self {
        let mut hosts = local(&node.name);
        let nodes = site.nodes.iter().flat_map(|node| {
            node.addresses.iter().map(move |address| (address.address.address, node.name.as_str()))
        });
        let vips = site.vips.iter().map(|vip| (vip.address.address, vip.name.as_str()));
        for (address, name) in nodes.chain(vips) {
            // Writing to a string cannot fail.
            let _ = writeln!(hosts, "{address} {name}");
        }
        let resolv_conf = site.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        Self { hostname: node.name.clone(), hosts, resolv_conf }
    }

    /// Sets the host name and writes the files into `directory` (`/run/dyad/etc`). What is right already stays.
    pub fn apply(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        write(&directory.join("hostname"), &format!("{}\n", self.hostname))?;
        write(&directory.join("hosts"), &self.hosts)?;
        write(&directory.join("resolv.conf"), &self.resolv_conf)?;
        if rustix::system::uname().nodename().to_bytes() != self.hostname.as_bytes() {
            rustix::system::sethostname(self.hostname.as_bytes())?;
        }
        Ok(())
    }
}

fn local(name: &str) -> String {
    format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")
}

/// Replaces a file whole, so that no reader sees half of it. The directory is volatile: nothing is flushed.
fn write(path: &Path, content: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|now| now == content.as_bytes()) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

//! The small types that files are made of, each with one validating constructor.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::decode::{Scalar, words};

/// Read access to the strings below.
pub(crate) trait Text {
    fn as_str(&self) -> &str;
}

/// Declares a string with rules: read-only access, one way in.
macro_rules! text {
    ($(#[doc = $doc:literal])* $vis:vis $name:ident, $accepted:literal, $check:expr) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name(String);

        impl Text for $name {
            fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Scalar for $name {
            const ACCEPTED: &'static str = $accepted;
            fn parse(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map(|()| $name(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn only(ok: bool) -> Result<(), String> {
    if ok { Ok(()) } else { Err(String::new()) }
}

fn made_of(text: &str, first: fn(char) -> bool, rest: fn(char) -> bool, max: usize) -> bool {
    text.len() <= max && text.chars().next().is_some_and(first) && text.chars().all(rest)
}

fn lower_name(text: &str, extra: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c))
}

fn printable(text: &str) -> bool {
    text.chars().all(|c| !c.is_control())
}

text!(
    /// Name of an image, overlay, service, node, volume or VM.
    pub(crate) Name, "a name of at most 32 characters a-z, 0-9 and `-`, starting with a letter",
    |t| only(lower_name(t, "-", 32))
);
text!(
    /// Version of an image.
    pub(crate) Version, "a version of at most 32 characters 0-9, a-z, `.`, `-` and `~`, starting with a digit; never `+`",
    |t| {
        if t.contains('+') {
            return Err("`+` counts boot attempts in file names and never stands in a version".into());
        }
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-~".contains(c);
        only(made_of(t, |c| c.is_ascii_digit(), rest, 32))
    }
);
text!(
    /// Name of a Debian package.
    pub(crate) PackageName, "a Debian package name: a-z, 0-9, `+`, `-`, `.`, at least two characters",
    |t| {
        let start = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        only(t.len() >= 2 && made_of(t, start, rest, 128))
    }
);
text!(
    /// Name of a user or group in the image.
    pub(crate) AccountName, "a user or group name of at most 31 characters a-z, 0-9, `-` and `_`, starting with a letter or `_`",
    |t| {
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        only(made_of(t, |c| c.is_ascii_lowercase() || c == '_', rest, 31))
    }
);
text!(
    /// Kernel module, with underscores.
    pub ModuleName, "a kernel module name: letters, digits and `_` (write `_` for `-`)",
    |t| only(made_of(t, |c| c.is_ascii_alphanumeric(), |c| c.is_ascii_alphanumeric() || c == '_', 64))
);
text!(
    /// Module loaded by name, with parameters.
    pub(crate) ModuleLoad, "a kernel module name with `_` for `-`, then parameters, such as \"bonding max_bonds=0\"",
    |t| {
        let mut words = t.split(' ');
        ModuleName::parse(words.next().unwrap_or(""))?;
        let parameter = |w: &str| {
            w.split_once('=').is_some_and(|(k, v)| !k.is_empty() && !v.is_empty())
                && w.chars().all(|c| c.is_ascii_graphic() && !"\"'".contains(c))
        };
        only(t.len() <= 256 && words.all(parameter))
    }
);
text!(
    /// Kernel parameter below /proc/sys, with dots.
    pub(crate) SysctlName, "a kernel parameter such as \"net.ipv4.ip_forward\"",
    |t| {
        let part = |p: &str| {
            made_of(p, |c| c.is_ascii_alphanumeric(), |c| c.is_ascii_alphanumeric() || "-_".contains(c), 64)
        };
        only(t.len() <= 128 && t.contains('.') && t.split('.').all(part))
    }
);
text!(
    /// Name of an environment variable.
    pub(crate) EnvName, "an environment variable name: A-Z, 0-9 and `_`",
    |t| {
        let rest = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        only(made_of(t, |c| c.is_ascii_uppercase() || c == '_', rest, 64))
    }
);
text!(
    /// One line of text.
    pub(crate) Line, "one line of text, not empty, at most 4096 bytes, without control characters",
    |t| only(!t.is_empty() && t.len() <= 4096 && printable(t))
);
text!(
    /// One word of the kernel's command line.
    pub(crate) KernelWord, "one word of the kernel command line without spaces or quotes; not `dyad.*`, `console=`, `root=` or `init=`, which the image sets itself",
    |t| {
        if ["dyad.", "console=", "root=", "init=", "rdinit="].iter().any(|own| t.starts_with(own)) {
            return Err("the image sets this itself".into());
        }
        only(!t.is_empty() && t.len() <= 256 && t.chars().all(|c| c.is_ascii_graphic() && !"\"'\\".contains(c)))
    }
);
text!(
    /// A console device with optional line settings.
    pub(crate) Console, "a console such as \"tty0\" or \"ttyS0,115200n8\"",
    |t| {
        let rest = |c: char| c.is_ascii_alphanumeric() || c == ',';
        only(made_of(t, |c| c.is_ascii_alphabetic(), rest, 32))
    }
);
text!(
    /// Absolute, normalised path.
    pub(crate) AbsPath, "an absolute path without `.`, `..`, `//` or a trailing `/`",
    |t| {
        let parts = t.strip_prefix('/').unwrap_or("");
        let ok = parts.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
        only(ok && t.len() <= 1024 && printable(t))
    }
);
text!(
    /// What a symbolic link points to.
    pub(crate) LinkTarget, "a link target: a path, absolute or relative, without control characters",
    |t| only(!t.is_empty() && t.len() <= 1024 && printable(t))
);
text!(
    /// Where packages come from.
    pub(crate) Url, "a URL starting with http://, https:// or file:/",
    |t| {
        let ok = ["http://", "https://", "file:/"].iter().any(|p| t.len() > p.len() && t.starts_with(p));
        only(ok && t.len() <= 1024 && t.chars().all(|c| c.is_ascii_graphic()))
    }
);
text!(
    /// Network interface: a link's role, a bond, a VLAN or a bridge.
    pub(crate) IfName, "an interface name of at most 15 characters a-z, 0-9 and `-`, starting with a letter",
    |t| only(lower_name(t, "-", 15))
);
text!(
    /// Fixed role of a physical link: its interface name on every node.
    pub(crate) Role, "a link role: \"lan0\" to \"lan9\" or \"repl0\" to \"repl9\"",
    |t| {
        let digit = t.strip_prefix("lan").or_else(|| t.strip_prefix("repl")).unwrap_or("");
        only(digit.len() == 1 && digit.starts_with(|c: char| c.is_ascii_digit()))
    }
);
text!(
    /// Where a device sits on the PCI bus, stable across boots.
    pub(crate) PciPath, "a PCI address such as \"0000:00:04.0\" (domain:bus:device.function, lower-case hex)",
    |t| {
        let hex = |p: &str, n: usize| {
            p.len() == n && p.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
        };
        let parts: Vec<&str> = t.split([':', '.']).collect();
        let shape = t.len() == 12 && t.as_bytes()[4] == b':' && t.as_bytes()[7] == b':' && t.as_bytes()[10] == b'.';
        only(matches!(parts[..], [a, b, c, d] if hex(a, 4) && hex(b, 2) && hex(c, 2) && hex(d, 1)) && shape)
    }
);
text!(
    /// PostgreSQL role or database, an identifier that needs no quoting.
    pub(crate) SqlName, "an SQL name of at most 63 characters a-z, 0-9 and `_`, starting with a letter; not `pg_*`",
    |t| {
        if t.starts_with("pg_") {
            return Err("names starting with pg_ belong to PostgreSQL".into());
        }
        only(lower_name(t, "_", 63))
    }
);
text!(
    /// PostgreSQL setting.
    pub(crate) GucName, "a PostgreSQL setting such as \"work_mem\" or \"auto_explain.log_min_duration\"",
    |t| only(lower_name(t, "_.", 63))
);

impl ModuleLoad {
    /// The module's name.
    pub(crate) fn module(&self) -> ModuleName {
        ModuleName(self.0.split(' ').next().unwrap_or_default().to_owned())
    }
}

words! {
    /// Debian release that packages come from.
    pub enum Suite {
        /// Debian 12.
        Bookworm = "bookworm",
    }
}

words! {
    /// Processor architecture, by Debian's name.
    pub enum Architecture {
        /// x86-64.
        Amd64 = "amd64",
    }
}

words! {
    /// File that a build can produce.
    pub enum OutputFormat {
        /// Disk image, byte for byte.
        Raw = "raw",
        /// Disk image for QEMU.
        Qcow2 = "qcow2",
        /// Kernel, initrd with root, and command line for network boot.
        Pxe = "pxe",
        /// The root tree as a tar file.
        Tree = "tree",
    }
}

words! {
    /// Groups of kernel modules that are selected together.
    pub enum ModuleClass {
        /// Paravirtual devices of QEMU and clouds.
        Virtio = "@virtio",
        /// Disk controllers of servers: NVMe, AHCI, SAS, RAID.
        ServerStorage = "@server-storage",
        /// Network cards of servers.
        ServerNic = "@server-nic",
        /// Replicated block devices.
        Drbd = "@drbd",
        /// Virtual machines.
        Kvm = "@kvm",
        /// Bonds, bridges and VLANs.
        Bonding = "@bonding",
        /// Logical volumes.
        Lvm = "@lvm",
        /// File systems that an appliance mounts.
        Filesystems = "@filesystems",
        /// Packet filtering.
        Nftables = "@nftables",
        /// Hardware watchdogs.
        Watchdog = "@watchdog",
        /// Keyboards and screens.
        Console = "@console",
    }
}

/// Modules to select: a class or one by name; dependencies follow by themselves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModuleSelector {
    /// A class.
    Class(ModuleClass),
    /// One module.
    Name(ModuleName),
}

impl fmt::Display for ModuleSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModuleSelector::Class(class) => class.fmt(f),
            ModuleSelector::Name(name) => name.fmt(f),
        }
    }
}

impl Scalar for ModuleSelector {
    const ACCEPTED: &'static str = "a kernel module name with `_` for `-`, or a class: @virtio, @server-storage, @server-nic, @drbd, @kvm, @bonding, \
                                    @lvm, @filesystems, @nftables, @watchdog, @console";
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('@') {
            return ModuleClass::parse(text).map(ModuleSelector::Class).map_err(|_| "no such class".into());
        }
        ModuleName::parse(text).map(ModuleSelector::Name)
    }
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// A size of whole MiB.
    pub(crate) const fn mib(n: u32) -> Self {
        ByteSize((n as u64) << 20)
    }
}

impl Scalar for ByteSize {
    const ACCEPTED: &'static str = "a size: a whole number and KiB, MiB, GiB or TiB, such as \"512MiB\"";
    fn parse(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let shift = match &text[split..] {
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            "kB" | "KB" | "MB" | "GB" | "TB" | "k" | "K" | "M" | "G" | "T" => {
                return Err("sizes are counted in powers of 1024".into());
            }
            _ => return Err(String::new()),
        };
        let number: u64 = text[..split].parse().map_err(|_| String::new())?;
        match number.checked_mul(1 << shift) {
            Some(bytes) if bytes > 0 && bytes <= 1 << 50 => Ok(ByteSize(bytes)),
            _ => Err("the size must be above zero and at most 1024TiB".into()),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A span of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Millis(u32);

impl Millis {
    /// Milliseconds.
    pub(crate) const fn get(self) -> u32 {
        self.0
    }

    pub(crate) const fn new(ms: u32) -> Self {
        Millis(ms)
    }
}

impl Scalar for Millis {
    const ACCEPTED: &'static str =
        "a duration of at most a day: a whole number and ms, s, min or h, such as \"5s\"";
    fn parse(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit: u64 = match &text[split..] {
            "ms" => 1,
            "s" => 1000,
            "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(String::new()),
        };
        let number: u64 = text[..split].parse().map_err(|_| String::new())?;
        match number.checked_mul(unit) {
            Some(ms) if ms <= 86_400_000 => Ok(Millis(ms as u32)),
            _ => Err("longer than a day".into()),
        }
    }
}

/// Permission bits of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode(u16);

impl Mode {
    /// The bits (0o7777).
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    pub(crate) const fn new(bits: u16) -> Self {
        Mode(bits)
    }
}

impl Scalar for Mode {
    const ACCEPTED: &'static str = "permission bits as a string of 4 octal digits, such as \"0755\"";
    fn parse(text: &str) -> Result<Self, String> {
        if text.len() != 4 || !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return Err(String::new());
        }
        u16::from_str_radix(text, 8).map(Mode).map_err(|e| e.to_string())
    }
}

/// A MAC address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Scalar for Mac {
    const ACCEPTED: &'static str = "a MAC address such as \"52:54:00:12:34:56\"";
    fn parse(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let parts: Vec<&str> = text.split(':').collect();
        if parts.len() != 6 {
            return Err(String::new());
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(String::new());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|e| e.to_string())?;
        }
        if bytes[0] & 1 == 1 {
            return Err("a multicast address belongs to no interface".into());
        }
        if bytes == [0; 6] {
            return Err("all zeros belongs to no interface".into());
        }
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address and the length of its network's prefix, host bits kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpNet {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network part.
    pub prefix: u8,
}

impl IpNet {
    /// Whether an address lies in this network.
    pub fn contains(&self, other: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((a, a4), (b, b4)) = (bits(self.address), bits(other));
        a4 == b4 && (self.prefix == 0 || (a ^ b) >> (128 - u32::from(self.prefix)) == 0)
    }

    /// Whether all host bits are zero: a network rather than an address in one.
    pub fn is_network(&self) -> bool {
        match self.address {
            IpAddr::V4(v4) => u32::from(v4).checked_shl(u32::from(self.prefix)).unwrap_or(0) == 0,
            IpAddr::V6(v6) => u128::from(v6).checked_shl(u32::from(self.prefix)).unwrap_or(0) == 0,
        }
    }
}

impl Scalar for IpNet {
    const ACCEPTED: &'static str =
        "an address with its prefix length, such as \"192.0.2.10/24\" or \"2001:db8::10/64\"";
    fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').ok_or("the prefix length is missing")?;
        let address = IpAddr::from_str(address).map_err(|_| String::new())?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        match prefix.parse::<u8>() {
            Ok(prefix) if digits && prefix <= max => Ok(IpNet { address, prefix }),
            _ => Err(format!("the prefix length must be 0 to {max}")),
        }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Scalar for IpAddr {
    const ACCEPTED: &'static str = "an IP address (names cannot be resolved on the appliance)";
    fn parse(text: &str) -> Result<Self, String> {
        IpAddr::from_str(text).map_err(|_| String::new())
    }
}

impl Scalar for SocketAddr {
    const ACCEPTED: &'static str =
        "an IP address and port, such as \"192.0.2.10:7400\" or \"[2001:db8::10]:7400\"";
    fn parse(text: &str) -> Result<Self, String> {
        match SocketAddr::from_str(text) {
            Ok(a) if a.port() != 0 => Ok(a),
            Ok(_) => Err("port 0 cannot be reached".into()),
            Err(_) => Err(String::new()),
        }
    }
}

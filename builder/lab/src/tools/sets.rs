//! Which packages hold which tool.

/// The Debian release that tools are taken from: they run with their own libraries, so the host's does not matter.
pub(super) const SUITE: &str = "bookworm";
/// Tools run on the host's processor; images are for the same.
pub(super) const ARCH: &str = "amd64";
/// PostgreSQL's major version in [`SUITE`].
pub(super) const POSTGRESQL: &str = "15";

/// Tools that are unpacked together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set<'a> {
    /// Its name in the cache and in messages.
    pub(super) name: &'a str,
    /// The packages asked for.
    pub(super) packages: &'a [&'a str],
    /// Packages left out with what only they need: what they hold is not used here.
    pub(super) omitted: &'a [&'a str],
}

/// The emulator. Left out: network boot ROMs; helpers of the package's scripts; a server of guest file systems.
pub(super) const QEMU: Set<'static> = Set {
    name: "qemu",
    packages: &["qemu-system-x86"],
    omitted: &["ipxe-qemu", "adduser", "acl", "fuse3", "debconf", "gcc-12-base"],
};

/// UEFI firmware.
pub(super) const FIRMWARE: Set<'static> = Set { name: "ovmf", packages: &["ovmf"], omitted: &[] };

/// PostgreSQL's client. Left out: the wrapper in Perl and what configures servers.
pub(super) const PSQL: Set<'static> = Set {
    name: "psql",
    packages: &["postgresql-client-15"],
    omitted: &["postgresql-client-common", "sensible-utils", "debconf", "gcc-12-base", "adduser"],
};

/// The packet filter's program.
pub(super) const NFT: Set<'static> = Set { name: "nftables", packages: &["nftables"], omitted: NEVER_NEEDED };

/// Left out of any set that a caller names: what asks, configures or starts things when packages are installed.
pub(super) const NEVER_NEEDED: &[&str] = &[
    "adduser",
    "debconf",
    "init-system-helpers",
    "passwd",
    "postgresql-client-common",
    "postgresql-common",
    "ssl-cert",
    "sensible-utils",
    "ucf",
    "udev",
];

//! Which packages hold which tool.

/// The Debian release that tools are taken from: they run with their own libraries, so the host's does not matter.
pub(super) const SUITE: &str = "bookworm";
/// Tools run on the host's processor; images are for the same.
pub(super) const ARCH: &str = "amd64";
/// PostgreSQL's major version in [`SUITE`].
pub(super) const POSTGRESQL: &str = "15";

/// Tools that are unpacked together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// The emulator.
    Qemu,
    /// UEFI firmware.
    Firmware,
    /// PostgreSQL's client.
    Psql,
}

impl Set {
    /// Its name in the cache and in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Set::Qemu => "qemu",
            Set::Firmware => "ovmf",
            Set::Psql => "psql",
        }
    }

    /// The packages asked for.
    pub(super) fn packages(self) -> &'static [&'static str] {
        match self {
            Set::Qemu => &["qemu-system-x86"],
            Set::Firmware => &["ovmf"],
            Set::Psql => &["postgresql-client-15"],
        }
    }

    /// Packages left out with what only they need: what they hold is not used here.
    pub(super) fn omitted(self) -> &'static [&'static str] {
        match self {
            // Network boot ROMs; helpers of the package's scripts; a server of guest file systems.
            Set::Qemu => &["ipxe-qemu", "adduser", "acl", "fuse3", "debconf", "gcc-12-base"],
            Set::Firmware => &[],
            // The wrapper in Perl and what configures servers.
            Set::Psql => &["postgresql-client-common", "sensible-utils", "debconf", "gcc-12-base", "adduser"],
        }
    }
}

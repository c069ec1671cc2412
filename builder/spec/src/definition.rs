//! `images/NAME.toml`: what an image is made of.

use crate::decode::{At, Int, table};
use crate::glob::PathGlob;
use crate::scalar::{
    AbsPath, Architecture, ByteSize, Console, KernelWord, Line, ModuleLoad, ModuleSelector, Name,
    OutputFormat, PackageName, Suite, Url, Version,
};

table! {
    /// An image definition.
    pub(crate) struct RawDefinition {
        /// Name of the image; its file is `images/NAME.toml`.
        name: At<Name>,
        /// Version of the image.
        version: Version,
        /// One line about what the image is for.
        description: Line,
        /// Debian release that packages come from.
        suite: Suite,
        /// Processor architecture.
        architecture: Architecture,
        /// Package of the kernel.
        kernel: At<PackageName>,
        /// Time of every file in the image and of nothing else, seconds since 1970.
        source_date_epoch: Int<315532800, 4102444800>,
        /// Packages beyond those that the overlays ask for.
        packages: Vec<At<PackageName>>,
        /// Overlays, in the order in which they are laid; what an overlay requires comes before it.
        overlays: Vec<At<Name>>,
        /// What `dyad build` produces when no format is asked for.
        outputs: Vec<OutputFormat> = vec![OutputFormat::Raw, OutputFormat::Qcow2],
        /// Where packages come from, when not from the host's apt configuration.
        source: RawOrigin = RawOrigin { mirror: None, security_mirror: None, keyring: None, proxy: None },
        /// Kernel modules.
        modules: RawModules = RawModules { initrd: Vec::new(), root: Vec::new(), load: Vec::new() },
        /// The disk.
        layout: RawLayout,
        /// The kernel's command line.
        boot: RawBoot = RawBoot { console: Vec::new(), command_line: Vec::new() },
        /// Files left out of the image.
        prune: Vec<RawPathRule>,
        /// Files kept although a prune rule covers them.
        keep: Vec<RawPathRule>,
        /// Packages left out although something depends on them.
        omit: Vec<RawOmit>,
    }
}

table! {
    /// Where packages come from.
    pub(crate) struct RawOrigin {
        /// Debian archive.
        mirror: Option<Url>,
        /// Debian security archive.
        security_mirror: Option<Url>,
        /// File of the archive's public keys.
        keyring: Option<AbsPath>,
        /// HTTP proxy.
        proxy: Option<Url>,
    }
}

table! {
    /// Kernel modules by class or name; the modules that they need follow by themselves.
    pub(crate) struct RawModules {
        /// Modules in the initrd, loaded there in this order where named one by one.
        initrd: Vec<ModuleSelector>,
        /// Modules in the root file system.
        root: Vec<ModuleSelector>,
        /// Modules of the root loaded at boot without a device asking for them, in this order; parameters may follow a name.
        load: Vec<ModuleLoad>,
    }
}

table! {
    /// Sizes of the partitions; all a multiple of 1 MiB.
    pub(crate) struct RawLayout {
        /// EFI system partition.
        esp: At<ByteSize> = At { value: ByteSize::mib(1024), span: 0..0 },
        /// Root slot: room for later, larger images too.
        root: At<ByteSize>,
        /// Verity slot: at least a hundredth of the root slot.
        verity: At<ByteSize>,
        /// Sector size of the disk that the image is written to: 512 or 4096.
        sector_size: At<Int<512, 4096>> = At { value: Int(512), span: 0..0 },
    }
}

table! {
    /// The kernel's command line, beyond what the image sets itself.
    pub(crate) struct RawBoot {
        /// Consoles; the last one is /dev/console.
        console: Vec<Console>,
        /// Further words.
        command_line: Vec<KernelWord>,
    }
}

table! {
    /// A rule about paths, and why it is right.
    pub(crate) struct RawPathRule {
        /// Pattern; one that names a directory means everything below it.
        path: PathGlob,
        /// Why.
        reason: Line,
    }
}

table! {
    /// A package left out: dependencies on it count as met, and what only it needs stays out too.
    pub(crate) struct RawOmit {
        /// The package.
        package: At<PackageName>,
        /// Why the image works without it.
        reason: Line,
    }
}

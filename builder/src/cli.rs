//! The command line: what can be typed, and nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dyad_spec::OutputFormat;

/// Builds signed, immutable cluster images from Debian packages, and runs them in a lab.
#[derive(Debug, Parser)]
#[command(name = "dyad", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from its definition.
    Build(BuildArgs),
    /// Write or refresh the lock file that pins every package of a definition.
    Lock(LockArgs),
    /// Show what is in an image, a root file system or a kernel image.
    Inspect(InspectArgs),
    /// Check every checksum, hash and structure of an image, and the build record beside it.
    Verify {
        /// The image.
        file: PathBuf,
        /// Public key (NAME.pub) that must have signed the build record.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Explain how two images differ, down to package and file.
    Diff {
        /// The one that was.
        old: PathBuf,
        /// The one that is.
        new: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make keys that sign build records.
    Key {
        /// What to do.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Run virtual nodes from an image on this machine.
    Lab(dyad_lab::LabArgs),
    /// Print the JSON schemas of the files that people write.
    Schema {
        /// definition, overlay or site; all when not given.
        kind: Option<String>,
    },
    /// Unpack Debian packages with what they need into the tools cache, without root, and print the directory.
    Tools {
        /// Package names.
        #[arg(required = true)]
        packages: Vec<String>,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// Existing directory.
        dir: PathBuf,
    },
}

/// `dyad key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make NAME.key, which signs, and NAME.pub, which checks.
    New {
        /// Path without a suffix.
        name: PathBuf,
    },
}

/// Output formats, with what each is for.
pub(crate) const FORMATS: [(OutputFormat, &str); 4] = [
    (OutputFormat::Raw, "disk image, sparse: write it to a disk, or boot it in a virtual machine"),
    (OutputFormat::Qcow2, "the same disk with compressed clusters, for hypervisors"),
    (OutputFormat::Pxe, "kernel, initrd with the root inside, and command line, for network boot"),
    (OutputFormat::Tree, "the root tree as a tar archive, for inspection and containers"),
];

/// Accepts the words of [`FORMATS`] and lists them in the help.
fn formats() -> impl clap::builder::TypedValueParser<Value = OutputFormat> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(FORMATS.map(|(format, help)| PossibleValue::new(format.word()).help(help)))
        .map(|word| FORMATS.iter().find(|(f, _)| f.word() == word).expect("only these words are accepted").0)
}

/// `dyad build`.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The definition, images/NAME.toml.
    pub(crate) definition: PathBuf,
    /// Directory for the outputs.
    #[arg(long, default_value = "out")]
    pub(crate) out: PathBuf,
    /// What to make; may be repeated [default: what the definition names].
    #[arg(long = "format", value_name = "FORMAT", value_parser = formats())]
    pub(crate) formats: Vec<OutputFormat>,
    /// Use exactly the packages of the lock file beside the definition.
    #[arg(long)]
    pub(crate) locked: bool,
    /// Use only what is in the cache.
    #[arg(long)]
    pub(crate) offline: bool,
    /// Bake this site file into the image.
    #[arg(long)]
    pub(crate) site: Option<PathBuf>,
    /// Sign the build record with this private key (NAME.key).
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Print what was built as JSON on standard output, with the SHA-256 of every output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `dyad lock`.
#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    /// The definition, images/NAME.toml.
    pub(crate) definition: PathBuf,
    /// Resolve again against today's archive instead of keeping what the lock file has.
    #[arg(long)]
    pub(crate) update: bool,
}

/// `dyad inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Image or part of one: raw or qcow2 disk, squashfs, unified kernel image, initrd, tree (tar).
    pub(crate) file: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The chain that put this path into the image.
    #[arg(long, value_name = "PATH")]
    pub(crate) why: Option<String>,
    /// What costs what: compressed bytes by package, and what pruning dropped.
    #[arg(long)]
    pub(crate) size: bool,
}

//! Trees -> image bytes: squashfs, dm-verity, initrd, UKI, ESP, disk, and the files that a person gets.
//!
//! Nothing appears under its final name before it is complete: everything is written in a directory of this build beside
//! the outputs and renamed at the end. Identities (GUIDs, salt, serial numbers) are derived from content.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dyad_formats::disk::{self, DiskImage, Input, Source, qcow2};
use dyad_formats::{cpio, fat, squashfs, tar, uki, verity};
use dyad_gpt::Guid;
use dyad_spec::OutputFormat;
use dyad_spec::image::Merged;
use dyad_tree::Built;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::blocks::DiskBlocks;
use crate::record::{Made, chunks_sha256};

/// High enough to save a fifth over the default, low enough for the megabytes of an initrd.
const INITRD_ZSTD_LEVEL: i32 = 19;
/// How data lies in a qcow2 file: the root inside is compressed already.
pub(crate) const QCOW2_CLUSTERS: qcow2::Clusters = qcow2::Clusters::Zstd(3);
/// Tries of a new boot entry; the width of both counters never changes, so neither does the length of the name.
const BOOT_TRIES: &str = "+3-0";
const BUFFER_BYTES: usize = 1 << 20;

/// A finished root: squashfs and verity tree on disk.
pub(crate) struct Root {
    squashfs: PathBuf,
    verity: PathBuf,
    pub(crate) stats: squashfs::Stats,
    verity_bytes: u64,
    pub(crate) hash: [u8; 32],
}

/// One file for the user.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Output {
    /// Which format it is (part of).
    pub(crate) format: &'static str,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Size, holes included.
    pub(crate) bytes: u64,
    /// Digest, lower-case hex, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// Digest of the build record, lower-case hex.
    pub(crate) chunks_sha256: String,
}

impl Output {
    /// As the build record has it.
    pub(crate) fn made(&self) -> Made {
        Made {
            format: self.format.to_owned(),
            file: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: self.bytes,
            chunks_sha256: self.chunks_sha256.clone(),
        }
    }
}

/// A derived 16-byte identity, marked as a custom (version 8) UUID.
pub(crate) fn derived(label: &str, root_hash: &[u8; 32]) -> [u8; 16] {
    let digest = Sha256::new().chain_update(label).chain_update(root_hash).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id[6] = (id[6] & 0x0f) | 0x80;
    id[8] = (id[8] & 0x3f) | 0x80;
    id
}

/// What is written and where: a build's own directory lies in the one that the user named.
fn writing(what: &str, dir: &Path) -> String {
    format!("writing {what} in {}", dir.parent().unwrap_or(dir).display())
}

fn create(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))
}

/// Length and SHA-256 of a file. Holes are hashed without reading them: a disk is mostly those.
fn digest_of(path: &Path) -> Result<(u64, [u8; 32])> {
    let reading = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let bytes = file.metadata().with_context(reading)?.len();
    let zeros = vec![0; BUFFER_BYTES];
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < bytes {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data.min(bytes),
            Err(Errno::NXIO) => bytes,
            // A file system that does not know its holes.
            Err(_) => at,
        };
        while at < data {
            let run = (data - at).min(BUFFER_BYTES as u64);
            hasher.update(&zeros[..run as usize]);
            at += run;
        }
        let end = seek(&file, SeekFrom::Hole(at)).unwrap_or(bytes).min(bytes);
        seek(&file, SeekFrom::Start(at)).with_context(reading)?;
        while at < end {
            let run = (end - at).min(BUFFER_BYTES as u64) as usize;
            file.read_exact(&mut buffer[..run]).with_context(reading)?;
            hasher.update(&buffer[..run]);
            at += run as u64;
        }
    }
    Ok((bytes, hasher.finalize().into()))
}

/// Salt and identity of a hash tree. The salt makes equal blocks of different images differ; derived from the content it
/// keeps builds reproducible.
pub(crate) fn verity_identity(content: &[u8; 32]) -> ([u8; 32], [u8; 16]) {
    let salt = Sha256::new().chain_update("dyad verity salt").chain_update(content).finalize().into();
    (salt, derived("dyad verity uuid", content))
}

/// Writes the squashfs and its hash tree into the build's directory.
pub(crate) fn root(built: &Built, dir: &Path, cache: &dyn squashfs::BlockCache) -> Result<Root> {
    let squashfs = dir.join("root.squashfs");
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, create(&squashfs)?);
    let options = squashfs::Options { cache: Some(cache), ..squashfs::Options::default() };
    let failed = || writing("the squashfs", dir);
    let stats = squashfs::write(&built.root, &options, &mut out).with_context(failed)?;
    out.flush().with_context(failed)?;
    drop(out);
    let (_, content) = digest_of(&squashfs)?;
    let (salt, uuid) = verity_identity(&content);
    let verity = dir.join("root.verity");
    let mut hashes = BufWriter::with_capacity(BUFFER_BYTES, create(&verity)?);
    let mut data = BufReader::with_capacity(BUFFER_BYTES, File::open(&squashfs)?);
    let failed = || writing("the hash tree", dir);
    let hash = verity::write(&mut data, stats.bytes, &salt, uuid, &mut hashes).with_context(failed)?;
    hashes.flush().with_context(failed)?;
    let verity_bytes = hashes.get_ref().metadata()?.len();
    Ok(Root { squashfs, verity, stats, verity_bytes, hash })
}

/// Kernel, initrd and command line.
pub(crate) struct Boot {
    initrd: Bytes,
    command_line: String,
    /// The unified kernel image.
    pub(crate) uki: Bytes,
}

fn os_release(merged: &Merged) -> String {
    let (name, version) = (&merged.name, &merged.version);
    format!(
        "ID=dyad\nNAME=\"Dyad\"\nPRETTY_NAME=\"Dyad {name} {version}\"\nVERSION_ID={version}\nIMAGE_ID={name}\n\
         IMAGE_VERSION={version}\n"
    )
}

/// The compressed initrd. It does not depend on the root's hash.
pub(crate) fn initrd(built: &Built, cache: &DiskBlocks) -> Result<Bytes> {
    let mut archive = Vec::new();
    cpio::write(&built.initrd, &mut archive).context("writing the initrd")?;
    cache.frame(&archive, INITRD_ZSTD_LEVEL).context("compressing the initrd")
}

/// Puts the unified kernel image together.
pub(crate) fn boot(merged: &Merged, built: &Built, root_hash: &[u8; 32], initrd: Bytes) -> Result<Boot> {
    let mut words = vec![
        format!("dyad.root={}", verity::hex(root_hash)),
        format!("dyad.image={}_{}", merged.name, merged.version),
    ];
    words.extend(merged.command_line.iter().cloned());
    let command_line = words.join(" ");
    let parts = uki::Parts {
        os_release: os_release(merged).into(),
        cmdline: command_line.clone(),
        uname: built.report.kernel.clone(),
        microcode: None,
        linux: built.kernel.clone(),
        initrd: initrd.clone(),
    };
    let uki = uki::assemble(&built.stub, &parts).context("assembling the unified kernel image")?.into();
    Ok(Boot { initrd, command_line, uki })
}

/// Where the ESP lists the digests of its files, in the form that `sha256sum --check` reads. It finds damage; only the
/// signed build record finds a forgery.
pub(crate) const SUMS_PATH: &str = "dyad/sha256sums";

/// The list for these files.
pub(crate) fn sums(files: &[(String, Bytes)]) -> Bytes {
    let mut lines: Vec<String> = files
        .iter()
        .filter(|(path, _)| path != SUMS_PATH && path != SITE_PATH)
        .map(|(path, data)| format!("{}  {path}\n", verity::hex(&Sha256::digest(data))))
        .collect();
    lines.sort_by(|a, b| a[64..].cmp(&b[64..]));
    lines.concat().into()
}

/// The site file, which may be laid after the build.
const SITE_PATH: &str = "dyad/site.toml";

/// A volume whose identity comes from the root hash.
pub(crate) fn esp_volume(
    (sector_size, bytes, time): (u32, u64, u32),
    root_hash: &[u8; 32],
    files: &[(String, Bytes)],
) -> Result<fat::Image> {
    let id = derived("dyad esp volume", root_hash);
    let options = fat::Options {
        sector_size,
        bytes,
        volume_id: u32::from_le_bytes([id[0], id[1], id[2], id[3]]),
        label: "DYAD".into(),
        timestamp: fat::Timestamp::from_unix(time),
    };
    fat::write(&options, files).context("writing the EFI system partition")
}

/// The EFI system partition.
fn esp(merged: &Merged, built: &Built, root: &Root, uki: &Bytes, site: Option<Bytes>) -> Result<fat::Image> {
    let mut files = vec![
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), built.bootloader.clone()),
        (format!("EFI/Linux/dyad_{}{BOOT_TRIES}.efi", merged.version), uki.clone()),
        // The newest entry that has tries left; nobody edits a command line that names what must be booted.
        ("loader/loader.conf".to_owned(), Bytes::from_static(b"timeout 0\neditor no\n")),
    ];
    files.push((SUMS_PATH.to_owned(), sums(&files)));
    files.extend(site.map(|text| (SITE_PATH.to_owned(), text)));
    let shape = (merged.layout.sector_size, merged.layout.esp.bytes(), merged.source_date_epoch);
    esp_volume(shape, &root.hash, &files)
}

/// The layout of a disk: `label` is `NAME_VERSION`, the root is a slot of `slots[0]` bytes with `content[0]` bytes in it
/// from input 0, its hash tree the same from input 1.
pub(crate) fn layout(
    (sector_size, label): (u32, &str),
    root_hash: &[u8; 32],
    volume: fat::Image,
    slots: [u64; 2],
    content: [u64; 2],
) -> disk::Layout {
    let file = |input, bytes| Source::File { input, offset: 0, bytes };
    disk::Layout {
        sector_size,
        disk_guid: Guid::from_text_order(derived("dyad disk", root_hash)),
        esp: disk::Esp { volume, guid: Guid::from_text_order(derived("dyad esp", root_hash)) },
        root: disk::Slot { source: file(0, content[0]), bytes: slots[0], name: label.to_owned() },
        verity: disk::Slot { source: file(1, content[1]), bytes: slots[1], name: format!("{label}_verity") },
        root_hash: *root_hash,
    }
}

/// The disk and the files that its extents refer to.
struct Disk {
    image: DiskImage,
    inputs: [PathBuf; 2],
}

impl Disk {
    fn with_inputs<T>(&self, work: impl FnOnce(&DiskImage, &mut [&mut dyn Input]) -> Result<T>) -> Result<T> {
        let mut squashfs = File::open(&self.inputs[0])?;
        let mut verity = File::open(&self.inputs[1])?;
        work(&self.image, &mut [&mut squashfs, &mut verity])
    }
}

/// Everything that outputs are made from.
pub(crate) struct Finished<'a> {
    pub(crate) merged: &'a Merged,
    pub(crate) built: &'a Built,
    pub(crate) root: Root,
    pub(crate) boot: Boot,
    /// Baked site file.
    pub(crate) site: Option<Bytes>,
    /// Hash outputs as whole files too.
    pub(crate) sha256: bool,
}

impl Finished<'_> {
    fn disk(&self) -> Result<Disk> {
        let (merged, root) = (self.merged, &self.root);
        let label = format!("{}_{}", merged.name, merged.version);
        let volume = esp(merged, self.built, root, &self.boot.uki, self.site.clone())?;
        let slots = [merged.layout.root.bytes(), merged.layout.verity.bytes()];
        let content = [root.stats.bytes, root.verity_bytes];
        let layout = layout((merged.layout.sector_size, &label), &root.hash, volume, slots, content);
        let (image, _) = disk::layout(&layout)?;
        Ok(Disk { image, inputs: [root.squashfs.clone(), root.verity.clone()] })
    }

    /// Writes one format into the build's directory: (format, final file name, file).
    fn write(&self, format: OutputFormat, dir: &Path) -> Result<Vec<(String, PathBuf)>> {
        let stem = format!("{}_{}", self.merged.name, self.merged.version);
        let name = |suffix: &str| (format!("{stem}.{suffix}"), dir.join(format!("out.{suffix}")));
        match format {
            OutputFormat::Raw => {
                let (file, path) = name("raw");
                let mut out = create(&path)?;
                self.disk()?.with_inputs(|image, inputs| Ok(disk::write_raw(image, inputs, &mut out)?))?;
                Ok(vec![(file, path)])
            }
            OutputFormat::Qcow2 => {
                let (file, path) = name("qcow2");
                let mut out = BufWriter::with_capacity(BUFFER_BYTES, create(&path)?);
                self.disk()?.with_inputs(|image, inputs| {
                    Ok(qcow2::write(image, inputs, QCOW2_CLUSTERS, &mut out)?)
                })?;
                out.flush()?;
                Ok(vec![(file, path)])
            }
            OutputFormat::Pxe => {
                let [kernel, initrd, line] = ["vmlinuz", "initrd", "cmdline"].map(name);
                create(&kernel.1)?.write_all(&self.built.kernel)?;
                create(&line.1)?.write_all(format!("{}\n", self.boot.command_line).as_bytes())?;
                self.write_pxe_initrd(&initrd.1)?;
                Ok(vec![kernel, initrd, line])
            }
            OutputFormat::Tree => {
                let (file, path) = name("tar");
                let mut out = BufWriter::with_capacity(BUFFER_BYTES, create(&path)?);
                tar::write(&self.built.root, &mut out).context("writing the tar archive")?;
                out.flush()?;
                Ok(vec![(file, path)])
            }
        }
    }

    /// The root and behind it the initrd: the kernel unpacks one archive after the other. The first is not compressed,
    /// because what is in it is already; the kernel takes such an archive only from a multiple of four bytes, which the
    /// end of a compressed one need not be.
    fn write_pxe_initrd(&self, path: &Path) -> Result<()> {
        use dyad_formats::tree::{Inode, Kind, Meta, Tree};
        let mtime = self.merged.source_date_epoch;
        let mut tree = Tree::new(mtime);
        for (name, file) in [("/root.squashfs", &self.root.squashfs), ("/root.verity", &self.root.verity)] {
            let meta = Meta { mode: 0o400, mtime, ..Meta::default() };
            let kind = Kind::File(fs::read(file)?.into());
            tree.insert(name.as_bytes(), Inode { meta, kind, origin: "derived root".into() })?;
        }
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, create(path)?);
        cpio::write(&tree, &mut out).context("writing the initrd")?;
        out.write_all(&self.boot.initrd)?;
        out.flush()?;
        Ok(())
    }

    /// Writes one format and hashes its files: (record, file).
    fn finish(&self, format: OutputFormat, dir: &Path, out: &Path) -> Result<Vec<(Output, PathBuf)>> {
        let files = self.write(format, dir).with_context(|| writing(&format!("format {format}"), dir))?;
        let record = |(name, file): (String, PathBuf)| {
            let path = out.join(name);
            if path.is_dir() {
                bail!("{} is a directory", path.display());
            }
            let (bytes, chunks) = chunks_sha256(&file)?;
            let sha256 = match self.sha256 {
                true => Some(verity::hex(&digest_of(&file)?.1)),
                false => None,
            };
            let chunks_sha256 = verity::hex(&chunks);
            Ok((Output { format: format.word(), path, bytes, sha256, chunks_sha256 }, file))
        };
        files.into_iter().map(record).collect()
    }

    /// Writes all formats at once and what stands beside them, by suffix; when all is complete, moves it to its final
    /// names.
    pub(crate) fn outputs(
        &self,
        formats: &[OutputFormat],
        beside: impl FnOnce(&[Output]) -> Result<Vec<(&'static str, Vec<u8>)>>,
        dir: &Path,
        out: &Path,
    ) -> Result<Vec<Output>> {
        let mut wanted: Vec<OutputFormat> = Vec::new();
        for &format in formats {
            if !wanted.contains(&format) {
                wanted.push(format);
            }
        }
        let finished = std::thread::scope(|scope| {
            // Collected before the first is waited for: all run at once.
            let threads: Vec<_> =
                wanted.iter().map(|&format| scope.spawn(move || self.finish(format, dir, out))).collect();
            let finish = |t: std::thread::ScopedJoinHandle<'_, _>| t.join().expect("a panic is a bug");
            threads.into_iter().map(finish).collect::<Result<Vec<Vec<(Output, PathBuf)>>>>()
        })?;
        let (outputs, files): (Vec<Output>, Vec<PathBuf>) = finished.into_iter().flatten().unzip();
        let beside = beside(&outputs)?;
        for (suffix, data) in &beside {
            create(&dir.join(suffix))?.write_all(data).with_context(|| writing(suffix, dir))?;
        }
        for (output, file) in outputs.iter().zip(files) {
            fs::rename(&file, &output.path)
                .with_context(|| format!("moving to {}", output.path.display()))?;
        }
        for (suffix, _) in &beside {
            let path = out.join(format!("{}_{}.{suffix}", self.merged.name, self.merged.version));
            fs::rename(dir.join(suffix), &path).with_context(|| format!("moving to {}", path.display()))?;
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn derived_ids_are_uuids_that_depend_on_label_and_content() {
        let id = derived("dyad disk", &[1; 32]);
        assert_eq!((id[6] >> 4, id[8] >> 6), (8, 2), "version 8, the RFC's variant");
        assert_eq!(id, derived("dyad disk", &[1; 32]));
        assert_ne!(id, derived("dyad esp", &[1; 32]));
        assert_ne!(id, derived("dyad disk", &[2; 32]));
    }

    #[test]
    fn holes_are_hashed_as_the_zeros_that_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        // Data in the middle, at the very end, and a hole at the end.
        let shapes: [(u64, &[(u64, usize)]); 4] = [
            (0, &[]),
            (5 << 20, &[]),
            (9 << 20, &[(3 << 20, 100_000), ((9 << 20) - 7, 7)]),
            (4096, &[(0, 4096)]),
        ];
        for (bytes, runs) in shapes {
            let file = File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            for &(at, len) in runs {
                file.write_all_at(&vec![0xa5; len], at).unwrap();
            }
            let plain = Sha256::digest(fs::read(&path).unwrap());
            assert_eq!(digest_of(&path).unwrap(), (bytes, plain.into()), "{bytes} {runs:?}");
        }
    }
}

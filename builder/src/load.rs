//! Reads what people wrote: a definition, the overlays beside it, and the files that overlays lay.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use dyad_formats::verity::hex;
use dyad_spec::Source;
use dyad_spec::image::Merged;
use dyad_tree::{OverlayContent, OverlayFile};
use sha2::{Digest, Sha256};

use crate::record::Input;

/// More files than this in one overlay is a mistake (a build directory, say).
const OVERLAY_FILES_MAX: usize = 10_000;

/// The overlays directory of a definition: `overlays` beside the directory of the definition, or in it.
fn overlays_dir(definition: &Path) -> Result<PathBuf> {
    let dir = definition.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let candidates = [dir.join("../overlays"), dir.join("overlays")];
    candidates.iter().find(|c| c.is_dir()).cloned().with_context(|| {
        format!(
            "no overlays: neither {} nor {} is a directory",
            candidates[0].display(),
            candidates[1].display()
        )
    })
}

fn source(path: &Path) -> Result<Source> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Source::new(path.display().to_string(), text))
}

fn overlay_sources(dir: &Path) -> Result<BTreeMap<String, Source>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let file = entry.path().join("overlay.toml");
        let name = entry.file_name().into_string().map_err(|n| anyhow!("overlay name {n:?} is not UTF-8"))?;
        if file.is_file() {
            all.insert(name, source(&file)?);
        }
    }
    Ok(all)
}

/// A definition with everything it needs, checked.
pub(crate) struct Loaded {
    /// Merged definition.
    pub(crate) merged: Merged,
    overlays: PathBuf,
    /// Text of the definition, and of the overlays by name.
    texts: (String, BTreeMap<String, Source>),
}

/// Something that goes into a build, for its record.
pub(crate) fn input(what: String, data: &[u8]) -> Input {
    Input { what, sha256: hex(&Sha256::digest(data)) }
}

/// Reads and merges a definition.
pub(crate) fn definition(path: &Path) -> Result<Loaded> {
    let overlays = overlays_dir(path)?;
    let (definition, texts) = (source(path)?, overlay_sources(&overlays)?);
    let merged = dyad_spec::merge::merge(definition.clone(), &texts)
        .map_err(|d| anyhow!("{}", d.render(false).trim_end()))?;
    Ok(Loaded { merged, overlays, texts: (definition.text, texts) })
}

impl Loaded {
    /// Digests of the definition and of the overlays in use with their files.
    pub(crate) fn digests(&self, files: &[OverlayFile]) -> Vec<Input> {
        let mut inputs = vec![input("definition".to_owned(), self.texts.0.as_bytes())];
        for overlay in &self.merged.overlays {
            let text = self.texts.1.get(overlay).map(|s| s.text.as_bytes()).unwrap_or_default();
            let mut list = format!("overlay.toml {}\n", hex(&Sha256::digest(text)));
            let mut laid: Vec<&OverlayFile> = files.iter().filter(|f| f.overlay == *overlay).collect();
            laid.sort_by(|a, b| a.path.cmp(&b.path));
            for file in laid {
                let path = &file.path;
                list += &match &file.content {
                    OverlayContent::Dir => format!("dir {path}\n"),
                    OverlayContent::Symlink(target) => format!("link {path} {target}\n"),
                    OverlayContent::File { data, executable } => {
                        format!("file {path} {executable} {}\n", hex(&Sha256::digest(data)))
                    }
                };
            }
            inputs.push(input(format!("overlay {overlay}"), list.as_bytes()));
        }
        inputs
    }

    /// The files of the overlays in use.
    pub(crate) fn overlay_files(&self) -> Result<Vec<OverlayFile>> {
        let mut files = Vec::new();
        for overlay in &self.merged.overlays {
            let top = self.overlays.join(overlay).join("files");
            if top.is_dir() {
                walk(overlay, &top, &top, &mut files)?;
            }
        }
        Ok(files)
    }
}

fn walk(overlay: &str, top: &Path, dir: &Path, files: &mut Vec<OverlayFile>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        let inside = path.strip_prefix(top).expect("entries lie below the directory they were read from");
        let inside = inside.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let kind = entry.file_type()?;
        let content = if kind.is_dir() {
            OverlayContent::Dir
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path)?;
            let target = target.into_os_string().into_string();
            OverlayContent::Symlink(
                target.map_err(|t| anyhow!("{}: its target {t:?} is not UTF-8", path.display()))?,
            )
        } else if kind.is_file() {
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            let data = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            OverlayContent::File { data: data.into(), executable }
        } else {
            bail!(
                "{}: an overlay lays files, links and directories; devices and sockets are not copied",
                path.display()
            );
        };
        files.push(OverlayFile { overlay: overlay.to_owned(), path: format!("/{inside}"), content });
        if files.len() > OVERLAY_FILES_MAX {
            bail!("overlay {overlay} has more than {OVERLAY_FILES_MAX} files");
        }
        if kind.is_dir() {
            walk(overlay, top, &path, files)?;
        }
    }
    Ok(())
}

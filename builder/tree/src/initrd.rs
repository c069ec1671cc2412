//! The initrd: the static init, the modules it may need, their index. Nothing else.

use std::sync::Arc;

use bytes::Bytes;
use dyad_formats::tree::{Kind, Tree};
use dyad_spec::compiled::ModuleIndex;

use crate::Error;
use crate::accounts::Accounts;
use crate::lay::Layer;

/// Makes the initrd's tree. `modules` is the tree that the index's paths are looked up in.
pub(crate) fn tree(init: &Bytes, index: &ModuleIndex, modules: &Tree, mtime: u32) -> Result<Tree, Error> {
    let mut tree = Tree::new(mtime);
    let accounts = Accounts::default();
    let mut layer = Layer { tree: &mut tree, accounts: &accounts, mtime, origins: Vec::new() };
    let origin: Arc<str> = Arc::from("derived initrd");
    layer.put(b"/init", Kind::File(init.clone()), 0o755, (0, 0), origin.clone())?;
    for module in &index.modules {
        let inode = modules.get(module.path.as_bytes()).ok_or_else(|| Error::NoFile {
            who: format!("module {}", module.name),
            path: module.path.clone(),
        })?;
        layer.put(module.path.as_bytes(), inode.kind.clone(), 0o644, (0, 0), inode.origin.clone())?;
    }
    let index = Kind::File(Bytes::from(index.encode()));
    layer.put(b"/usr/lib/dyad/modules.bin", index, 0o644, (0, 0), origin)?;
    Ok(tree)
}

//! Which members of a package go into a tree: by path alone, whatever stands for their contents.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Member, MemberKind};

/// What a prune filter says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The member goes into the tree.
    Keep,
    /// The member is left out by the rule with this index.
    Drop(u32),
}

/// Decides by canonical path.
pub type Filter<'a> = dyn Fn(&[u8]) -> Verdict + Sync + 'a;

/// A member that the filter left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Canonical path.
    pub path: Vec<u8>,
    /// Index of the rule.
    pub rule: u32,
    /// Size of its content.
    pub bytes: u64,
}

/// A file that hard links may name: its first name in the tree, if it has one yet.
struct Linkable<'a, C> {
    content: &'a C,
    kept_as: Option<&'a [u8]>,
}

/// Splits members into those that stay, in their order, and those that do not.
pub(crate) fn apply<C: Clone>(
    members: &[Member<C>],
    bytes: &dyn Fn(&C) -> u64,
    filter: &Filter<'_>,
) -> (Vec<Member<C>>, Vec<Pruned>) {
    let (mut kept, mut pruned) = (Vec::new(), Vec::new());
    let mut files: HashMap<&[u8], Linkable<'_, C>> = HashMap::new();
    for member in members {
        let path = member.path.as_slice();
        let verdict = if path == b"/" { Verdict::Keep } else { filter(path) };
        let keep = verdict == Verdict::Keep;
        let (mut kind, mut size) = (None, 0);
        match &member.kind {
            MemberKind::File(content) => {
                size = bytes(content);
                files.insert(path, Linkable { content, kept_as: keep.then_some(path) });
            }
            MemberKind::HardLink(target) => {
                // An archive that links to what it does not hold was refused when it was read.
                let Some(file) = files.get_mut(target.as_slice()) else { continue };
                if keep {
                    // The first kept name of a file carries its content, whichever name the archive gave it first.
                    kind = Some(match file.kept_as {
                        Some(first) => MemberKind::HardLink(first.to_vec()),
                        None => {
                            file.kept_as = Some(path);
                            MemberKind::File(file.content.clone())
                        }
                    });
                }
                let linkable = Linkable { content: file.content, kept_as: file.kept_as };
                files.insert(path, linkable);
            }
            _ => {}
        }
        match verdict {
            Verdict::Keep => kept.push(Member {
                kind: kind.unwrap_or_else(|| member.kind.clone()),
                path: member.path.clone(),
                user: member.user.clone(),
                group: member.group.clone(),
                xattrs: member.xattrs.clone(),
                ..*member
            }),
            Verdict::Drop(rule) => pruned.push(Pruned { path: path.to_vec(), rule, bytes: size }),
        }
    }
    (kept, pruned)
}

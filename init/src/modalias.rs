//! Matching of modalias strings against module alias patterns, as fnmatch(3) without flags does it: `*`, `?`, `[a-z]`.

/// Whether the whole of `text` matches `pattern`.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last `*` took one byte more: linear memory, no recursion.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = if p == pattern.len() {
            if t == text.len() {
                return true;
            }
            None
        } else if pattern[p] == b'*' {
            retry = Some((p + 1, t));
            Some((p + 1, t))
        } else {
            one(&pattern[p..], text.get(t).copied()).map(|length| (p + length, t + 1))
        };
        match (step, retry) {
            (Some(next), _) => (p, t) = next,
            (None, Some((after, from))) if from < text.len() => {
                retry = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the pattern's first element; gives the element's length.
fn one(pattern: &[u8], byte: Option<u8>) -> Option<usize> {
    let byte = byte?;
    match pattern[0] {
        b'?' => Some(1),
        b'[' => class(pattern, byte),
        literal => (literal == byte).then_some(1),
    }
}

fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    // A bracket that never closes is a literal, as in fnmatch.
    let Some(close) = pattern.iter().skip(2).position(|&b| b == b']').map(|at| at + 2) else {
        return (byte == b'[').then_some(1);
    };
    let inner = &pattern[1..close];
    let (negated, inner) = match inner.first() {
        Some(b'!' | b'^') if inner.len() > 1 => (true, &inner[1..]),
        _ => (false, inner),
    };
    let mut found = false;
    let mut at = 0;
    while at < inner.len() {
        if at + 2 < inner.len() && inner[at + 1] == b'-' {
            found |= (inner[at]..=inner[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= inner[at] == byte;
            at += 1;
        }
    }
    (found != negated).then_some(close + 1)
}

/// The part of a pattern before its first wildcard: patterns are sorted and cut by it.
pub(crate) fn literal_prefix(pattern: &str) -> &str {
    &pattern[..pattern.find(['*', '?', '[']).unwrap_or(pattern.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_aliases() {
        let virtio = b"virtio:d00000002v00001AF4";
        assert!(matches(b"virtio:d00000002v*", virtio));
        assert!(!matches(b"virtio:d00000001v*", virtio));
        let pci = b"pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00";
        assert!(matches(b"pci:v00001AF4d*sv*sd*bc*sc*i*", pci));
        assert!(!matches(b"pci:v*d*sv*sd*bc01sc06i01*", pci));
        assert!(matches(b"pci:v*d*sv*sd*bc01sc0[0-3]i*", pci));
        let acpi = b"acpi:LNXPWRBN:";
        assert!(matches(b"acpi*:LNXPWRBN:*", acpi));
        let cpu = b"cpu:type:x86,ven0002fam0019mod0001:feature:,0000,0001,0005,00C2";
        assert!(matches(b"cpu:type:x86,ven*fam*mod*:feature:*00C2*", cpu));
        assert!(!matches(b"cpu:type:x86,ven*fam*mod*:feature:*00C3*", cpu));
    }

    #[test]
    fn edges() {
        assert!(matches(b"", b""));
        assert!(!matches(b"", b"a"));
        assert!(matches(b"*", b""));
        assert!(!matches(b"?", b""));
        assert!(matches(b"a[!b-d]e", b"afe"));
        assert!(!matches(b"a[!b-d]e", b"ace"));
        assert!(matches(b"[", b"["));
        assert!(matches(b"*a*b*c", b"xxaxbxbc"));
    }

    /// The definition, by recursion: slow and plainly right.
    fn slow(p: &[u8], t: &[u8]) -> bool {
        match p.first() {
            None => t.is_empty(),
            Some(b'*') => slow(&p[1..], t) || (!t.is_empty() && slow(p, &t[1..])),
            Some(b'?') => !t.is_empty() && slow(&p[1..], &t[1..]),
            Some(c) => t.first() == Some(c) && slow(&p[1..], &t[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(p in "[ab*?]{0,8}", t in "[ab]{0,10}") {
            prop_assert_eq!(matches(p.as_bytes(), t.as_bytes()), slow(p.as_bytes(), t.as_bytes()));
        }

        #[test]
        fn never_panics(p in any::<Vec<u8>>(), t in any::<Vec<u8>>()) {
            matches(&p, &t);
        }
    }
}

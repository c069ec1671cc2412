//! The `ar` container of a .deb: bounded and exact, every byte accounted for.

use bytes::Bytes;

use super::UnpackError;

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;
/// deb(5) has three members and allows a few more whose names start with `_`.
const MEMBERS_MAX: usize = 16;

/// One member; its content is a slice of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArMember {
    pub(super) name: String,
    pub(super) data: Bytes,
}

/// Splits an archive into its members.
pub(super) fn parse(input: &Bytes) -> Result<Vec<ArMember>, UnpackError> {
    if !input.starts_with(MAGIC) {
        return Err(UnpackError::NotAr);
    }
    let mut members = Vec::new();
    let mut at = MAGIC.len();
    while at < input.len() {
        let header_at = at;
        let error = |what| UnpackError::ArHeader { at: header_at, what };
        if members.len() == MEMBERS_MAX {
            return Err(error("more than 16 members"));
        }
        let header = input.get(at..at + HEADER).ok_or(UnpackError::Truncated { what: "ar header" })?;
        if &header[58..] != b"`\n" {
            return Err(error("end mark missing"));
        }
        let name = std::str::from_utf8(&header[..16]).map_err(|_| error("name is not ASCII"))?;
        let name = name.trim_end_matches(' ').trim_end_matches('/');
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(error("name is empty or not printable"));
        }
        let size = decimal(&header[48..58]).ok_or_else(|| error("size is not a decimal number"))?;
        let start = at + HEADER;
        let end = start.checked_add(size).filter(|&end| end <= input.len());
        let end = end.ok_or(UnpackError::Truncated { what: "ar member" })?;
        members.push(ArMember { name: name.to_owned(), data: input.slice(start..end) });
        at = end;
        if size % 2 == 1 {
            match input.get(at) {
                Some(b'\n') => at += 1,
                Some(_) => return Err(error("padding is not a newline")),
                None => return Err(UnpackError::Truncated { what: "ar padding" }),
            }
        }
    }
    Ok(members)
}

fn decimal(field: &[u8]) -> Option<usize> {
    let digits = field.split(|&b| b == b' ').next().filter(|d| !d.is_empty())?;
    let clean = digits.iter().all(u8::is_ascii_digit) && field[digits.len()..].iter().all(|&b| b == b' ');
    if clean { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::unpack) fn build(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, data) in members {
            out.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, data.len()).bytes(),
            );
            out.extend_from_slice(data);
            if data.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    #[test]
    fn splits_and_refuses_every_truncation() {
        let whole = build(&[("a", b"xyz"), ("b/", b"12")]);
        let members = parse(&Bytes::from(whole.clone())).unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!((members[1].name.as_str(), &members[1].data[..]), ("b", &b"12"[..]));
        let first_end = MAGIC.len() + HEADER + 4;
        for cut in 0..whole.len() {
            let parsed = parse(&Bytes::copy_from_slice(&whole[..cut]));
            assert_eq!(parsed.is_ok(), cut == MAGIC.len() || cut == first_end, "cut at {cut}: {parsed:?}");
        }
    }

    #[test]
    fn refuses_sizes_that_are_not_plain_decimal() {
        for bad in ["-1", "1 1", "0x10", "", "99999999999"] {
            let mut data = build(&[("a", b"")]);
            data[8 + 48..8 + 58].copy_from_slice(format!("{bad:<10.10}").as_bytes());
            assert!(parse(&Bytes::from(data)).is_err(), "{bad}");
        }
    }
}

//! Characters by glyph name: the Adobe Glyph List for scripts that name their glyphs, and the rules for derived names.

/// Lines of a name and its code points in hexadecimal, in the order of the names.
const NAMES: &str = include_str!("glyph_names.txt");

/// The text of a glyph name such as `Adieresis`, `f_f_i`, `uni00E4` or `a.alt`.
pub(super) fn text(name: &str) -> Option<String> {
    let name = name.split('.').next().filter(|name| !name.is_empty())?;
    let parts = name.split('_').map(|part| listed(part).or_else(|| by_code(part)));
    parts.collect()
}

/// Finds a name by binary search over the bytes of the list.
fn listed(name: &str) -> Option<String> {
    let (mut low, mut high) = (0, NAMES.len());
    while low < high {
        let middle = (low + high) / 2;
        let start = NAMES[..middle].rfind('\n').map_or(0, |at| at + 1).max(low);
        let end = NAMES[middle..].find('\n').map_or(NAMES.len(), |at| middle + at);
        let line = &NAMES[start..end];
        let (found, codes) = line.split_once(' ')?;
        match found.cmp(name) {
            std::cmp::Ordering::Less => low = end + 1,
            std::cmp::Ordering::Greater => high = start,
            std::cmp::Ordering::Equal => return codes.split(' ').map(character).collect(),
        }
    }
    None
}

fn character(hex: &str) -> Option<char> {
    u32::from_str_radix(hex, 16).ok().and_then(char::from_u32)
}

/// `uni` and groups of four digits, or `u` and four to six digits.
fn by_code(name: &str) -> Option<String> {
    if let Some(digits) = name.strip_prefix("uni").filter(|digits| digits.len() >= 4 && digits.is_ascii()) {
        let groups = digits.as_bytes().as_chunks::<4>().0;
        return groups.iter().map(|group| character(std::str::from_utf8(group).ok()?)).collect();
    }
    let digits = name.strip_prefix('u').filter(|digits| (4..=6).contains(&digits.len()))?;
    character(digits).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_characters() {
        let check =
            |name: &str, expected: Option<&str>| assert_eq!(text(name).as_deref(), expected, "{name}");
        check("A", Some("A"));
        check("Adieresis", Some("Ä"));
        check("zukatakana", None);
        check("zuhiragana", None);
        check("ffi", Some("ﬃ"));
        check("f_f_i", Some("ffi"));
        check("uni00E4", Some("ä"));
        check("uni00E40301", Some("ä\u{301}"));
        check("u1F600", Some("😀"));
        check("germandbls.sc", Some("ß"));
        check(".notdef", None);
        check("g17", None);
        check("uniD800", None);
        // The first and the last name of the list.
        for line in [NAMES.lines().next(), NAMES.lines().last()].into_iter().flatten() {
            assert!(listed(line.split(' ').next().unwrap()).is_some(), "{line}");
        }
        let names: Vec<_> = NAMES.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert!(names.len() > 1000 && names.is_sorted());
        assert!(names.iter().all(|name| listed(name).is_some()));
    }
}

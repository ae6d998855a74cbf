//! The encodings of simple fonts and of predefined CMaps.

use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GB18030, MACINTOSH, SHIFT_JIS, WINDOWS_1252};

/// A base encoding of a simple font.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BaseEncoding {
    Standard,
    WinAnsi,
    MacRoman,
}

/// Adobe's StandardEncoding from 0x20 on; `\0` where it has no character.
const STANDARD: &str = concat!(
    " !\"#$%&’()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_‘abcdefghijklmnopqrstuvwxyz{|}~\0",
    "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0¡¢£⁄¥ƒ§¤'“«‹›ﬁﬂ\0–†‡·\0¶•‚„”»…‰\0¿",
    "\0`´ˆ˜¯˘˙¨\0˚¸\0˝˛ˇ—\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0Æ\0ª\0\0\0\0ŁØŒº\0\0\0\0\0æ\0\0\0ı\0\0łøœß\0\0\0\0",
);

impl BaseEncoding {
    /// The encoding of a name in a font dictionary.
    pub fn of_name(name: &[u8]) -> Option<BaseEncoding> {
        match name {
            b"StandardEncoding" => Some(BaseEncoding::Standard),
            b"WinAnsiEncoding" => Some(BaseEncoding::WinAnsi),
            b"MacRomanEncoding" => Some(BaseEncoding::MacRoman),
            _ => None,
        }
    }

    pub fn character(self, code: u8) -> Option<char> {
        let decoded =
            |encoding: &'static Encoding| encoding.decode_without_bom_handling(&[code]).0.chars().next();
        let character = match self {
            BaseEncoding::Standard => STANDARD.chars().nth(usize::from(code).checked_sub(0x20)?),
            BaseEncoding::WinAnsi => decoded(WINDOWS_1252),
            BaseEncoding::MacRoman => decoded(MACINTOSH),
        };
        character.filter(|c| !c.is_control())
    }
}

/// The encoding of the codes of a predefined CMap.
#[derive(Clone, Copy, Debug)]
pub(super) enum CodeEncoding {
    /// Two bytes that are a glyph number.
    Identity,
    Utf16,
    Legacy(&'static Encoding),
}

impl CodeEncoding {
    /// The encoding of a CMap by its name.
    pub fn of_name(name: &str) -> Option<CodeEncoding> {
        let legacy: [(&str, &'static Encoding); 13] = [
            ("GBK2K", GB18030),
            ("GBK", GB18030),
            ("GB-EUC", GB18030),
            ("GBpc-EUC", GB18030),
            ("ETen", BIG5),
            ("B5pc", BIG5),
            ("HKscs", BIG5),
            ("KSC", EUC_KR),
            ("90", SHIFT_JIS),
            ("83pv", SHIFT_JIS),
            ("Add-RKSJ", SHIFT_JIS),
            ("Ext-RKSJ", SHIFT_JIS),
            ("EUC-", EUC_JP),
        ];
        if name.starts_with("Identity") {
            return Some(CodeEncoding::Identity);
        }
        if name.starts_with("Uni") && (name.contains("-UCS2") || name.contains("-UTF16")) {
            return Some(CodeEncoding::Utf16);
        }
        let found = legacy.into_iter().find(|(start, _)| name.starts_with(start));
        found.map(|(_, encoding)| CodeEncoding::Legacy(encoding))
    }

    /// The length of the first code in a string of at least one byte.
    pub fn code_length(self, bytes: &[u8]) -> usize {
        let length = match (self, bytes) {
            (CodeEncoding::Utf16, [0xd8..=0xdb, ..]) => 4,
            (CodeEncoding::Identity | CodeEncoding::Utf16, _) => 2,
            (CodeEncoding::Legacy(encoding), [first, ..]) => match first {
                0..=0x80 | 0xff => 1,
                0xa0..=0xdf if encoding == SHIFT_JIS => 1,
                _ if encoding == GB18030 && matches!(bytes.get(1), Some(0x30..=0x39)) => 4,
                _ => 2,
            },
            _ => 1,
        };
        length.min(bytes.len())
    }

    /// The text of a code; None for glyph numbers and invalid codes.
    pub fn text(self, code: &[u8]) -> Option<String> {
        match self {
            CodeEncoding::Identity => None,
            CodeEncoding::Utf16 => {
                let units: Vec<u16> = code.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect();
                String::from_utf16(&units).ok()
            }
            CodeEncoding::Legacy(encoding) => {
                let (text, failed) = encoding.decode_without_bom_handling(code);
                (!failed).then(|| text.into_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_base_encodings_have_characters() {
        assert_eq!(STANDARD.chars().count(), 0xe0);
        assert_eq!(BaseEncoding::Standard.character(0xae), Some('ﬁ'));
        assert_eq!(BaseEncoding::Standard.character(0xfb), Some('ß'));
        assert_eq!(BaseEncoding::Standard.character(0x80), None);
        assert_eq!(BaseEncoding::WinAnsi.character(0x93), Some('“'));
        assert_eq!(BaseEncoding::MacRoman.character(0x8a), Some('ä'));
        assert_eq!(BaseEncoding::of_name(b"Custom"), None);
    }

    #[test]
    fn codes_of_predefined_cmaps_have_text() {
        let check = |name: &str, bytes: &[u8], expected: &str| {
            let encoding = CodeEncoding::of_name(name).unwrap();
            let (mut rest, mut text) = (bytes, String::new());
            while !rest.is_empty() {
                let (code, after) = rest.split_at(encoding.code_length(rest));
                text.extend(encoding.text(code));
                rest = after;
            }
            assert_eq!(text, expected, "{name}");
        };
        check("UniGB-UCS2-H", &[0x78, 0xe8, 0x57, 0x4a], "磨坊");
        check("UniJIS-UTF16-V", &[0xd8, 0x3d, 0xde, 0x00, 0, b'a'], "😀a");
        check("GBK-EUC-H", b"a\xc4\xa5\xb7\xbb", "a磨坊");
        check("90ms-RKSJ-H", b"\x95\xb2\xb1a", "粉ｱa");
        check("KSCms-UHC-H", b"\xb9\xe6", "방");
        check("ETen-B5-H", b"\xbf\x69", "磨");
        check("Identity-H", &[0, 1], "");
        assert!(CodeEncoding::of_name("Custom").is_none());
    }
}

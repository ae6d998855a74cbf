//! Decodes plain text: UTF-8, UTF-16 and, where the bytes are neither, the legacy encoding that they are most likely in.

use crate::io::text;
use anyhow::Result;
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};

/// Decodes the bytes of the file `name`.
///
/// # Errors
/// Bytes that are not text in UTF-8, UTF-16 or a legacy encoding.
pub(super) fn decode(name: &str, bytes: Vec<u8>) -> Result<String> {
    if is_unicode(&bytes) {
        return text::decode(name, bytes);
    }
    match legacy(&bytes) {
        Some(text) => Ok(text),
        None => text::decode(name, bytes),
    }
}

fn is_unicode(bytes: &[u8]) -> bool {
    // A zero byte or a byte order mark: UTF-16, or not text.
    bytes.contains(&0)
        || bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
        // Legacy encodings of Japanese may be ASCII with escapes.
        || !bytes.contains(&0x1b) && std::str::from_utf8(bytes).is_ok()
}

/// The text in the most likely legacy encoding; None for bytes that no text has.
fn legacy(bytes: &[u8]) -> Option<String> {
    let is_control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b);
    if bytes.iter().any(is_control) {
        return None;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    let encoding = detector.guess(None, Utf8Detection::Allow);
    let (text, had_errors) = encoding.decode_without_bom_handling(bytes);
    // C1 control characters are unused bytes of the encoding.
    let is_text = !had_errors && !text.contains(|c| ('\u{80}'..='\u{9f}').contains(&c));
    is_text.then(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use encoding_rs::Encoding;

    fn check(label: &str, text: &str) {
        let (bytes, _, lossy) = Encoding::for_label(label.as_bytes()).unwrap().encode(text);
        assert!(!lossy, "{label}");
        assert_eq!(decode("x", bytes.into_owned()).unwrap(), text, "{label}");
    }

    #[test]
    fn legacy_encodings_are_detected() {
        check("windows-1252", "Die Mühle gehört seit dem 3. Mai 1998 Frau Grün – für 20 €.");
        check("windows-1251", "Мельница принадлежит Маре Велт с третьего мая.");
        check("shift_jis", "製粉所は1998年5月3日からマーラのものです。");
        check("iso-2022-jp", "製粉所はマーラのものです。");
        check("euc-jp", "製粉所は1998年5月3日からマーラのものです。");
        check("gbk", "磨坊自一九九八年五月三日起归玛拉所有。");
        check("big5", "磨坊自一九九八年五月三日起歸瑪拉所有。");
        check("euc-kr", "방앗간은 1998년 5월 3일부터 마라의 것입니다.");
        check("utf-8", "Grüße 日本\n");
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        for bytes in [&b"caf\xe9\x01"[..], b"\x80\x81\x82\x83\xff\x02", b"a\0b", b"\xff\xfea"] {
            assert!(decode("x", bytes.to_vec()).is_err(), "{bytes:?}");
        }
    }
}

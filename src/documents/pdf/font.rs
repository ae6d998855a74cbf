//! Fonts of a PDF as text extraction needs them: the characters and the widths of codes. Outlines are not read. Next:
//! [`super::encoding`] and [`super::glyph_names`].

use super::encoding::{BaseEncoding, CodeEncoding};
use super::glyph_names;
use hayro_cmap::{BfString, CMap};
use hayro_syntax::object::{Array, Dict, Name, Object, Stream};
use std::collections::HashMap;

/// Bytes of a Type 1 font program that are searched for its encoding.
const TYPE1_HEAD: usize = 64 << 10;

/// A font: characters and widths of its codes.
pub(super) struct PdfFont {
    to_unicode: Option<CMap>,
    codes: Codes,
    /// Widths by code, or by glyph number for composite fonts, in thousandths of the font size.
    widths: HashMap<u32, f64>,
    default_width: f64,
    pub is_vertical: bool,
}

enum Codes {
    /// One byte each, with the text by code.
    Simple(Box<[Option<String>; 256]>),
    Predefined(CodeEncoding),
    Embedded(Box<CMap>),
}

/// A code of a string.
pub(super) struct FontCode {
    /// The number of its bytes.
    pub length: usize,
    /// None if the font does not name the character.
    pub text: Option<String>,
    /// The advance in thousandths of the font size.
    pub width: f64,
    /// Whether word spacing is added after it.
    pub is_space: bool,
}

impl PdfFont {
    pub fn new(dict: &Dict<'_>) -> PdfFont {
        let to_unicode = dict.get::<Stream<'_>>("ToUnicode").and_then(|stream| cmap(&stream));
        let subtype = dict.get::<Name<'_>>("Subtype");
        if subtype.as_deref() == Some(b"Type0") {
            composite(dict, to_unicode)
        } else {
            simple(dict, to_unicode)
        }
    }

    /// Reads the first code of a string of at least one byte.
    pub fn code(&self, bytes: &[u8]) -> FontCode {
        let (length, cid) = match &self.codes {
            Codes::Simple(_) => (1, None),
            Codes::Predefined(encoding) => (encoding.code_length(bytes), None),
            Codes::Embedded(cmap) => embedded_code(cmap, bytes),
        };
        let code = bytes[..length].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let mapped = self.to_unicode.as_ref().and_then(|cmap| cmap.lookup_bf_string(code)).map(text);
        // Some programs map codes to U+0000 that have a name.
        let mapped = mapped.filter(|text| !text.is_empty() && !text.contains(['\0', '\u{fffd}']));
        let by_encoding = || match &self.codes {
            Codes::Simple(texts) => texts[code as usize & 0xff].clone(),
            Codes::Predefined(encoding) => encoding.text(&bytes[..length]),
            Codes::Embedded(_) => None,
        };
        let width = match &self.codes {
            // The widths are by glyph number, which a code of another encoding does not give.
            Codes::Predefined(CodeEncoding::Utf16 | CodeEncoding::Legacy(_)) => match (length, code) {
                (1, _) | (_, 0x20..=0x7e) => self.default_width / 2.0,
                _ => self.default_width,
            },
            _ => self.widths.get(&cid.unwrap_or(code)).copied().unwrap_or(self.default_width),
        };
        let is_space = length == 1 && code == 32;
        FontCode { length, text: mapped.or_else(by_encoding), width, is_space }
    }
}

fn text(found: BfString) -> String {
    match found {
        BfString::Char(c) => c.to_string(),
        BfString::String(text) => text,
    }
}

fn cmap(stream: &Stream<'_>) -> Option<CMap> {
    CMap::parse(&stream.decoded().ok()?, |_| None)
}

/// The length and the glyph number of the first code.
fn embedded_code(cmap: &CMap, bytes: &[u8]) -> (usize, Option<u32>) {
    let mut code = 0;
    for (length, byte) in (1..=4_u8).zip(bytes) {
        code = code << 8 | u32::from(*byte);
        if let Some(cid) = cmap.lookup_cid_code(code, length) {
            return (usize::from(length), Some(cid));
        }
    }
    (bytes.len().min(2), None)
}

fn composite(dict: &Dict<'_>, to_unicode: Option<CMap>) -> PdfFont {
    let (mut name, mut codes) = (String::new(), None);
    match dict.get::<Object<'_>>("Encoding") {
        Some(Object::Name(found)) => {
            name = String::from_utf8_lossy(&found).into_owned();
            codes = CodeEncoding::of_name(&name).map(Codes::Predefined);
        }
        Some(Object::Stream(stream)) => codes = cmap(&stream).map(|cmap| Codes::Embedded(Box::new(cmap))),
        _ => {}
    }
    let descendants = dict.get::<Array<'_>>("DescendantFonts");
    let descendant = descendants.and_then(|array| array.iter::<Dict<'_>>().next()).unwrap_or_default();
    PdfFont {
        to_unicode,
        codes: codes.unwrap_or(Codes::Predefined(CodeEncoding::Identity)),
        widths: descendant.get::<Array<'_>>("W").map(|array| glyph_widths(&array)).unwrap_or_default(),
        default_width: descendant.get::<f64>("DW").unwrap_or(1000.0),
        is_vertical: name == "V" || name.ends_with("-V"),
    }
}

/// Widths by glyph number: `first [w w ...]` or `first last w`.
fn glyph_widths(array: &Array<'_>) -> HashMap<u32, f64> {
    let mut widths = HashMap::new();
    let mut numbers: Vec<f64> = Vec::new();
    for object in array.iter::<Object<'_>>() {
        match object {
            Object::Number(number) => numbers.push(number.as_f64()),
            Object::Array(list) => {
                let first = numbers.pop().unwrap_or(0.0) as u32;
                widths.extend((first..=0xffff).zip(list.iter::<f64>()));
                numbers.clear();
            }
            _ => {}
        }
        if let [first, last, width] = numbers[..] {
            widths.extend((first as u32..=(last as u32).min(0xffff)).map(|glyph| (glyph, width)));
            numbers.clear();
        }
    }
    widths
}

fn simple(dict: &Dict<'_>, to_unicode: Option<CMap>) -> PdfFont {
    let descriptor = dict.get::<Dict<'_>>("FontDescriptor").unwrap_or_default();
    let name = dict.get::<Name<'_>>("BaseFont").map(|n| String::from_utf8_lossy(&n).into_owned());
    let is_type3 = dict.get::<Name<'_>>("Subtype").as_deref() == Some(b"Type3");
    // The glyphs of a Type 3 font have a space of their own.
    let scale = match dict.get::<Array<'_>>("FontMatrix").filter(|_| is_type3) {
        Some(matrix) => matrix.iter::<f64>().next().unwrap_or(0.001).abs() * 1000.0,
        None => 1.0,
    };
    let mut widths = HashMap::new();
    if let Some(list) = dict.get::<Array<'_>>("Widths") {
        let first = dict.get::<u32>("FirstChar").unwrap_or(0);
        widths.extend((first..=255).zip(list.iter::<f64>().map(|width| width * scale)));
    }
    let missing = descriptor.get::<f64>("MissingWidth").filter(|width| *width > 0.0);
    if widths.is_empty() && !name.as_deref().is_some_and(|name| name.contains("Courier")) {
        widths.extend((0x20..).zip(HELVETICA.iter().map(|width| f64::from(*width))));
    }
    PdfFont {
        to_unicode,
        codes: Codes::Simple(Box::new(texts(dict, &descriptor))),
        widths,
        default_width: missing.unwrap_or(600.0),
        is_vertical: false,
    }
}

/// Widths of the characters 0x20 to 0x7e of Helvetica, for the standard fonts, whose widths a file may leave out.
const HELVETICA: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556,
    556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278,
    500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469,
    556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500,
    278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];

/// The text of each code, by the font's encoding and its differences.
fn texts(dict: &Dict<'_>, descriptor: &Dict<'_>) -> [Option<String>; 256] {
    let (mut base, mut differences) = (None, None);
    match dict.get::<Object<'_>>("Encoding") {
        Some(Object::Name(name)) => base = BaseEncoding::of_name(&name),
        Some(Object::Dict(encoding)) => {
            base = encoding.get::<Name<'_>>("BaseEncoding").and_then(|name| BaseEncoding::of_name(&name));
            differences = encoding.get::<Array<'_>>("Differences");
        }
        _ => {}
    }
    let is_true_type = dict.get::<Name<'_>>("Subtype").as_deref() == Some(b"TrueType");
    let builtin = base.is_none().then(|| builtin_names(descriptor)).flatten();
    let fallback = if is_true_type { BaseEncoding::WinAnsi } else { BaseEncoding::Standard };
    let base = base.unwrap_or(fallback);
    let mut texts = std::array::from_fn(|code| match &builtin {
        Some(names) => names.get(&(code as u8)).and_then(|name| glyph_names::text(name)),
        None => base.character(code as u8).map(String::from),
    });
    let mut code = 0;
    for object in differences.iter().flat_map(|array| array.iter::<Object<'_>>()) {
        match object {
            Object::Number(number) => code = number.as_i64().clamp(0, 256) as usize,
            Object::Name(name) => {
                if let Some(text) = texts.get_mut(code) {
                    let name = String::from_utf8_lossy(&name);
                    // Bitmap fonts of TeX name glyphs by their code, as `a65`.
                    let is_code = name.trim_start_matches(|c: char| !c.is_ascii_digit()) == code.to_string();
                    let by_code = || base.character(code as u8).filter(|_| is_code).map(String::from);
                    *text = glyph_names::text(&name).or_else(by_code);
                }
                code = (code + 1).min(256);
            }
            _ => {}
        }
    }
    texts
}

/// The glyph names by code of an embedded Type 1 font: lines `dup 65 /A put` in its readable part.
fn builtin_names(descriptor: &Dict<'_>) -> Option<HashMap<u8, String>> {
    let program = descriptor.get::<Stream<'_>>("FontFile")?.decoded().ok()?;
    let head = &program[..program.len().min(TYPE1_HEAD)];
    let head = String::from_utf8_lossy(head);
    let head = head.split("eexec").next()?;
    let mut names = HashMap::new();
    for entry in head.split("dup ").skip(1) {
        let (code, rest) = entry.trim_start().split_once([' ', '/'])?;
        let name = rest.trim_start().trim_start_matches('/').split_whitespace().next();
        if let Some((code, name)) = code.parse().ok().zip(name) {
            names.insert(code, name.to_owned());
        }
    }
    (!names.is_empty()).then_some(names)
}

//! Texts that are hard for a pre-tokenizer: this repository's files, and generated runs of characters of every kind.
//!
//! A seed gives the same texts. Shared by tests through `#[path]`.

use std::path::Path;

/// A kind of text and the function that generates one.
type TextKind = (&'static str, fn(&mut Lcg) -> String);

/// At least one character of each class that patterns distinguish, with the long s and the Kelvin sign of contractions.
const CLASSES: &str = " \t\n\r\u{b}'!1sSſKtTrRvVeEmMlLdDAaǅʰあ한中々〇⾟\u{301}\u{302a}\u{16ff0}٣½\u{a0}\u{3000}\u{85}\u{2028}\u{200b}\u{feff}\0😀\u{e000}";
const EMOJI: [&str; 9] = ["😀", "👩‍💻", "👍🏽", "🇫🇷", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣", "👨‍👩‍👧‍👦", "🤷🏿‍♂️"];
const UNITS: [&str; 16] =
    [" ", "\n", "\t", "a", "A", "=", "中", "\u{301}", "0", " \n", "\r\n", "é", "ab", "\u{3000}", "⾟", "'s"];
const CONTRACTIONS: [&str; 14] =
    ["'s", "'S", "'ſ", "'t", "'RE", "'ve", "'Ve", "'m", "'ll", "'lL", "'d", "'x", "'l", "''s"];
/// First and last code point of blocks of letters in use since Unicode 5, so that all engines agree on their classes.
const SCRIPTS: [(u32, u32); 24] = [
    (0x41, 0x24f),
    (0x250, 0x2ff),
    (0x300, 0x36f),
    (0x391, 0x3a1),
    (0x3a3, 0x3ff),
    (0x400, 0x482),
    (0x48a, 0x513),
    (0x531, 0x556),
    (0x5d0, 0x5ea),
    (0x621, 0x63a),
    (0x660, 0x669),
    (0x904, 0x939),
    (0x966, 0x96f),
    (0xe01, 0xe3a),
    (0x10d0, 0x10f0),
    (0x1100, 0x1159),
    (0x1e00, 0x1e9b),
    (0x2000, 0x2063),
    (0x2150, 0x2182),
    (0x2190, 0x23e7),
    (0x3041, 0x3096),
    (0x30a1, 0x30fa),
    (0x4e00, 0x9fa5),
    (0xac00, 0xd7a3),
];

const KINDS: [TextKind; 8] = [
    ("han", |r| {
        let mut text = String::new();
        for _ in 0..300 {
            (0..r.below(12) + 1).for_each(|_| text.push(r.between(0x4e00, 0x51ff)));
            text.push(r.of_chars("，。、；！ \n的了是"));
        }
        text
    }),
    ("scripts", |r| {
        let mut text = String::new();
        for _ in 0..400 {
            let (first, last) = SCRIPTS[r.below(SCRIPTS.len())];
            (0..r.below(9) + 1).for_each(|_| text.push(r.between(first, last)));
            text.push_str([" ", "", "\n", "-", "  "][r.below(5)]);
        }
        text
    }),
    ("old unicode", |r| {
        (0..1200)
            .map(|_| {
                let (first, last) = SCRIPTS[r.below(SCRIPTS.len())];
                r.between(first, last)
            })
            .collect()
    }),
    ("emoji", |r| {
        (0..600).map(|i| if i % 2 == 0 { r.of(&EMOJI) } else { r.of(&["", " ", "ok", "!\n"]) }).collect()
    }),
    ("control", |r| {
        (0..2000)
            .map(|_| match r.below(5) {
                0 => r.between(127, 159),
                1 => r.of_chars("ab 1."),
                _ => r.between(0, 31),
            })
            .collect()
    }),
    ("runs", |r| (0..12).map(|_| r.of(&UNITS).repeat(r.of(&[1, 2, 5, 30, 200, 1000]))).collect()),
    ("classes", |r| (0..1500).map(|_| r.of_chars(CLASSES)).collect()),
    ("contractions", |r| {
        let mut text = String::new();
        for _ in 0..400 {
            text.push_str(r.of(&["it", "I", "WE", " you", "\n", "1", "", "é", "他", "_"]));
            text.push_str(r.of(&CONTRACTIONS));
            text.push_str(r.of(&["", " ", "o", "\r\n\r\n", " \n x", "'"]));
        }
        text
    }),
];

/// Texts of about `bytes` in all, each with its kind: at most half of them files of this repository, in pieces of 20 kB.
pub fn mixed_text(bytes: usize, seed: u64) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut left = bytes / 2;
    for folder in
        ["README.md", "docs", "kernels/src", "models/src", "src", "convert/src", "tests", "kernels/cuda"]
    {
        add_files(&root.join(folder), &mut left, &mut texts);
    }
    let share = (bytes - (bytes / 2 - left)) / KINDS.len();
    let mut random = Lcg(seed);
    for (kind, make) in KINDS {
        let mut left = share as i64;
        while left > 0 {
            let text = make(&mut random);
            left -= text.len() as i64;
            texts.push((kind.to_owned(), text));
        }
    }
    texts
}

fn add_files(path: &Path, left: &mut usize, texts: &mut Vec<(String, String)>) {
    if path.is_dir() {
        let mut entries: Vec<_> =
            std::fs::read_dir(path).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| add_files(entry, left, texts));
    } else if let Ok(mut text) = std::fs::read_to_string(path) {
        text.truncate(text.floor_char_boundary(*left));
        *left -= text.len();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(20_000));
            texts.push((path.display().to_string(), piece.to_owned()));
            rest = after;
        }
    }
}

/// A linear congruential generator of 31-bit numbers.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % count
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn of_chars(&mut self, text: &str) -> char {
        text.chars().nth(self.below(text.chars().count())).expect("an index below the count")
    }

    fn between(&mut self, first: u32, last: u32) -> char {
        char::from_u32(first + self.below((last - first + 1) as usize) as u32)
            .expect("a block without surrogates")
    }
}

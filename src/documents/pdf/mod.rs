//! Extracts the text of PDFs by page. The crate `hayro-syntax` parses and decrypts the file and its content streams. Next:
//! [`content`] (from operators to glyphs), [`font`] (from codes to characters), [`layout`] (from glyphs to lines), [`reflow`] (from
//! lines to paragraphs).

mod content;
mod encoding;
mod font;
mod glyph_names;
mod hyphens;
mod layout;
mod matrix;
mod reflow;
mod segment;

use super::builder::TextBuilder;
use super::place::Part;
use anyhow::{Result, bail, ensure};
use content::Interpreter;
use hayro_syntax::page::Rotation;
use hayro_syntax::{DecryptionError, LoadPdfError, Pdf};

/// Most pages of a document; the PDF of the largest manuals has about 10,000.
const MAX_PAGES: usize = 50_000;

/// Appends the pages of a document.
///
/// # Errors
/// A damaged or encrypted file, and a document whose pages have no text.
pub(super) fn extract(bytes: &[u8], out: &mut TextBuilder) -> Result<()> {
    let pdf = match Pdf::new(bytes.to_vec()) {
        Ok(pdf) => pdf,
        Err(LoadPdfError::Decryption(DecryptionError::PasswordProtected)) => {
            bail!("expected a PDF without a password, found one that needs a password: save it without")
        }
        Err(LoadPdfError::Decryption(_)) => {
            bail!("expected a PDF without encryption, found an encryption that is not supported")
        }
        Err(LoadPdfError::Invalid) => bail!("expected a valid PDF, found a damaged one"),
    };
    let pages = pdf.pages();
    ensure!(pages.len() <= MAX_PAGES, "expected at most {MAX_PAGES} pages, found {}", pages.len());
    ensure!(!pages.is_empty(), "expected pages, found none");
    let mut interpreter = Interpreter::default();
    let mut texts = Vec::new();
    for page in pages.iter() {
        let turns = match page.rotation() {
            Rotation::None => 0,
            Rotation::Horizontal => 1,
            Rotation::Flipped => 2,
            Rotation::FlippedHorizontal => 3,
        };
        texts.push(layout::lines(interpreter.page(page), turns));
    }
    let (mapped, unmapped) = (interpreter.mapped, interpreter.unmapped);
    let count = match pages.len() {
        1 => "a page".to_owned(),
        count => format!("{count} pages"),
    };
    if mapped == 0 && unmapped == 0 {
        bail!("expected text, found {count} without any (a scan): recognize its text first (ocrmypdf)");
    }
    ensure!(
        mapped >= unmapped,
        "expected text, found {count} with fonts that do not name their characters: recognize its text first \
         (ocrmypdf --force-ocr)"
    );
    hyphens::join(&mut texts);
    for (number, lines) in (1..).zip(texts) {
        out.start(Part::Page(number));
        reflow::join(lines).iter().try_for_each(|line| out.line(line))?;
        out.line("")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

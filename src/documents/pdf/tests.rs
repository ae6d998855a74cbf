//! PDFs that the tests write themselves.

use crate::documents::builder::TextBuilder;
use crate::documents::place::Part;
use crate::documents::test_files::pdf;

fn text(pages: &[&str]) -> Result<String, String> {
    let mut out = TextBuilder::default();
    super::extract(&pdf(pages), &mut out).map_err(|e| e.to_string())?;
    Ok(out.finish().text)
}

#[test]
fn pages_are_parts() {
    let pages = [
        "BT /F1 12 Tf 72 700 Td (Mara Velt) Tj 0 -14 Td (keeps the mill.) Tj ET",
        "BT /F1 12 Tf (Two) Tj ET",
        "",
    ];
    let mut out = TextBuilder::default();
    super::extract(&pdf(&pages), &mut out).unwrap();
    let document = out.finish();
    assert_eq!(document.text, "Mara Velt\nkeeps the mill.\n\nTwo\n");
    let starts: Vec<_> = document.parts.into_iter().map(|start| (start.line, start.part)).collect();
    assert_eq!(starts, [(1, Part::Page(1)), (4, Part::Page(2))]);
}

#[test]
fn text_operators_move_the_text() {
    let check = |page: &str, expected: &str| {
        let found = text(&[&format!("BT /F1 10 Tf {page} ET")]);
        assert_eq!(found.as_deref(), Ok(&*format!("{expected}\n")), "{page}");
    };
    check("[(Ma) -20 (ra) -300 (Velt)] TJ", "Mara Velt");
    check("14 TL 0 700 Td (a) Tj T* (b) Tj (c) ' 0 0 (d) \"", "a\nb\nc\nd");
    check("1 0 0 1 50 700 Tm (caf\\351 \\223q\\224) Tj", "café “q”");
    check("/Span << /ActualText <FEFF00E4> >> BDC (a) Tj (\") Tj EMC (b) Tj", "äb");
    check("0 700 Td (an exam-) Tj 0 -12 Td (ple.) Tj", "an example.");
    // The text of a page ends at a syntax error.
    check("q 2 0 0 2 0 0 cm Q (x) Tj ] >> Tj (y) Tj", "x");
}

#[test]
fn documents_without_text_are_refused() {
    let scan = "expected text, found a page without any (a scan): recognize its text first (ocrmypdf)";
    assert_eq!(text(&["0 0 10 10 re f"]).unwrap_err(), scan);
    let mut out = TextBuilder::default();
    let damaged = super::extract(b"%PDF-1.7\nnothing", &mut out).unwrap_err().to_string();
    assert_eq!(damaged, "expected a valid PDF, found a damaged one");
}

/// A form that draws itself and a page tree that contains itself.
#[test]
fn loops_end() {
    let page = "/Loop Do BT /F1 10 Tf (once) Tj ET";
    assert_eq!(text(&[page]).unwrap(), "once\n");
}

#[test]
fn truncated_and_mutated_files_give_text_or_an_error() {
    let whole = pdf(&["BT /F1 12 Tf 72 700 Td (Mara Velt keeps the mill.) Tj ET"]);
    for end in (0..whole.len()).step_by(7) {
        let _ = super::extract(&whole[..end], &mut TextBuilder::default());
        let mut bytes = whole.clone();
        bytes[end] ^= 0x55;
        let _ = super::extract(&bytes, &mut TextBuilder::default());
    }
}

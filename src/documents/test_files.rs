//! Makes small documents for tests.

use rawzip::{CompressionMethod, ZipArchiveWriter};
use std::io::Write;

/// A zip archive with these entries.
pub fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut archive = ZipArchiveWriter::new(&mut out);
    for (name, bytes) in files {
        let builder = archive.new_file(name).compression_method(CompressionMethod::DEFLATE);
        let (mut entry, config) = builder.start().unwrap();
        let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::fast());
        let mut writer = config.wrap(encoder);
        writer.write_all(bytes).unwrap();
        let (encoder, descriptor) = writer.finish().unwrap();
        encoder.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    out
}

fn relations(of: &[(&str, &str, &str)]) -> String {
    let one = |(id, kind, target): &(&str, &str, &str)| {
        format!("<Relationship Id='{id}' Type='http://schemas/{kind}' Target='{target}'/>")
    };
    format!("<Relationships>{}</Relationships>", of.iter().map(one).collect::<String>())
}

/// The entries of a Word document with this body.
pub fn docx(body: &str) -> Vec<(&'static str, String)> {
    let main = format!("<w:document><w:body>{body}</w:body></w:document>");
    vec![
        ("_rels/.rels", relations(&[("r1", "officeDocument", "word/document.xml")])),
        ("word/document.xml", main),
    ]
}

/// The entries of a workbook with one sheet, Budget. Style 1 is a date.
pub fn xlsx(strings: &[&str], rows: &str) -> Vec<(&'static str, String)> {
    let strings: String = strings.iter().map(|text| format!("<si><t>{text}</t></si>")).collect();
    let links = [
        ("r1", "worksheet", "worksheets/sheet1.xml"),
        ("r2", "sharedStrings", "sharedStrings.xml"),
        ("r3", "styles", "styles.xml"),
    ];
    let styles = "<styleSheet><cellXfs><xf numFmtId='0'/><xf numFmtId='14'/></cellXfs></styleSheet>";
    vec![
        ("_rels/.rels", relations(&[("r1", "officeDocument", "xl/workbook.xml")])),
        ("xl/workbook.xml", "<workbook><sheets><sheet name='Budget' r:id='r1'/></sheets></workbook>".into()),
        ("xl/_rels/workbook.xml.rels", relations(&links)),
        ("xl/sharedStrings.xml", format!("<sst>{strings}</sst>")),
        ("xl/styles.xml", styles.into()),
        ("xl/worksheets/sheet1.xml", format!("<worksheet><sheetData>{rows}</sheetData></worksheet>")),
    ]
}

/// The entries of a book with these chapters: names and bodies.
pub fn epub(chapters: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let container = "<container><rootfile full-path='OEBPS/book.opf'/></container>";
    let item = |(name, _): &(&str, &str)| format!("<item id='{name}' href='{name}.xhtml'/>");
    let items: String = chapters.iter().map(item).collect();
    let order: String = chapters.iter().map(|(name, _)| format!("<itemref idref='{name}'/>")).collect();
    let package = format!("<package><manifest>{items}</manifest><spine>{order}</spine></package>");
    let mut files = vec![("META-INF/container.xml", container.to_owned()), ("OEBPS/book.opf", package)];
    for (name, body) in chapters {
        let path: &'static str = match *name {
            "a" => "OEBPS/a.xhtml",
            _ => "OEBPS/b.xhtml",
        };
        files.push((path, format!("<html><head><title>{name}</title></head><body>{body}</body></html>")));
    }
    files
}

/// A PDF with these content streams as pages. `/F1` is Helvetica, `/Loop` a form that draws itself.
pub fn pdf(pages: &[&str]) -> Vec<u8> {
    let kids: String = (0..pages.len()).map(|i| format!("{} 0 R ", 5 + 2 * i)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Kids [{kids}] /Count {} >>", pages.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
        "<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /Loop 4 0 R >> >> /Length 8 >>\n\
            stream\n/Loop Do\nendstream"
            .to_owned(),
    ];
    for (i, content) in pages.iter().enumerate() {
        let resources = "/Resources << /Font << /F1 3 0 R >> /XObject << /Loop 4 0 R >> >>";
        objects.push(format!("<< /Type /Page /Parent 2 0 R {resources} /Contents {} 0 R >>", 6 + 2 * i));
        objects.push(format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()));
    }
    let (mut out, mut offsets) = (b"%PDF-1.7\n".to_vec(), Vec::new());
    for (number, object) in (1..).zip(&objects) {
        offsets.push(out.len());
        out.extend(format!("{number} 0 obj\n{object}\nendobj\n").as_bytes());
    }
    let start = out.len();
    out.extend(format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).as_bytes());
    offsets.iter().for_each(|at| out.extend(format!("{at:010} 00000 n \n").as_bytes()));
    let trailer =
        format!("trailer << /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    out.extend(trailer.as_bytes());
    out
}

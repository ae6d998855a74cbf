//! Extracts the text of EPUB books by chapter, in the order of the spine.

use super::archive::{Archive, resolve};
use super::builder::TextBuilder;
use super::html::{self, Page};
use super::place::Part;
use super::xml::{XmlEvent, walk};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{HashMap, HashSet};

/// The entry that names the package document.
pub(super) const CONTAINER: &str = "META-INF/container.xml";

/// Appends the chapters of a book.
pub(super) fn extract(archive: &mut Archive<'_>, out: &mut TextBuilder) -> Result<()> {
    let mut package = None;
    walk(&archive.text(CONTAINER)?, |event| {
        if let XmlEvent::Start("rootfile", attributes) = event {
            package = package.take().or_else(|| attributes.get("full-path"));
        }
        Ok(())
    })?;
    let package = package.with_context(|| format!("{CONTAINER}: expected a rootfile, found none"))?;
    let chapters = spine(archive, &package)?;
    let encrypted = encrypted(archive)?;
    if let Some(path) = chapters.iter().find(|path| encrypted.contains(*path)) {
        bail!("expected a book without encryption, found that {path} is encrypted (DRM)");
    }
    let mut number = 0;
    let mut seen = HashSet::new();
    for path in chapters.iter().filter(|path| seen.insert(*path)) {
        // A link to a missing file does not make the other chapters unreadable.
        if !archive.has(path) {
            continue;
        }
        let Page { title, heading, lines } = html::page(&archive.text(path)?);
        if lines.iter().all(|line| line.is_empty()) {
            continue;
        }
        number += 1;
        out.start(Part::Chapter(number, heading.or(title).unwrap_or_default()));
        for line in &lines {
            out.line(line)?;
        }
        out.line("")?;
    }
    ensure!(number > 0, "expected chapters with text, found none");
    Ok(())
}

/// The paths of the chapters in reading order.
fn spine(archive: &mut Archive<'_>, package: &str) -> Result<Vec<String>> {
    let (mut items, mut order) = (HashMap::new(), Vec::new());
    walk(&archive.text(package)?, |event| {
        match event {
            XmlEvent::Start("item", attributes) => {
                items.extend(attributes.get("id").zip(attributes.get("href")));
            }
            XmlEvent::Start("itemref", attributes) => order.extend(attributes.get("idref")),
            _ => {}
        }
        Ok(())
    })?;
    Ok(order.iter().filter_map(|id| items.get(id)).map(|link| resolve(package, link)).collect())
}

/// The paths of encrypted entries. Fonts of books without DRM are often obfuscated, and are among them.
fn encrypted(archive: &mut Archive<'_>) -> Result<HashSet<String>> {
    let mut paths = HashSet::new();
    let list = "META-INF/encryption.xml";
    if archive.has(list) {
        walk(&archive.text(list)?, |event| {
            if let XmlEvent::Start("CipherReference", attributes) = event {
                paths.extend(attributes.get("URI").map(|link| resolve("", &link)));
            }
            Ok(())
        })?;
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::test_files::{epub, zip};

    fn of(files: &[(&str, String)]) -> Result<crate::documents::builder::Extracted> {
        let bytes = zip(&files.iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>());
        let mut out = TextBuilder::default();
        extract(&mut Archive::new(&bytes)?, &mut out)?;
        Ok(out.finish())
    }

    #[test]
    fn chapters_follow_the_spine() {
        let files = epub(&[("b", "<h1>The Mill</h1><p>Mara.</p>"), ("a", "<p>Second.</p>")]);
        let book = of(&files).unwrap();
        assert_eq!(book.text, "The Mill\n\nMara.\n\nSecond.\n");
        let starts: Vec<_> = book.parts.into_iter().map(|start| (start.line, start.part)).collect();
        let second = Part::Chapter(2, "a".into());
        assert_eq!(starts, [(1, Part::Chapter(1, "The Mill".into())), (5, second)]);
    }

    #[test]
    fn encrypted_books_are_refused() {
        let mut files = epub(&[("a", "<p>x</p>")]);
        let list = "<encryption><CipherReference URI='OEBPS/a.xhtml'/></encryption>";
        files.push(("META-INF/encryption.xml", list.into()));
        let e = of(&files).unwrap_err().to_string();
        assert!(e.ends_with("OEBPS/a.xhtml is encrypted (DRM)"), "{e}");
    }
}

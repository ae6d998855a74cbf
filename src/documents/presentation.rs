//! Extracts the text of PowerPoint presentations (PPTX) by slide, with tables as lines with tabs and the speaker's notes.

use super::archive::Archive;
use super::builder::TextBuilder;
use super::place::Part;
use super::relations::Relations;
use super::xml::{XmlEvent, walk};
use anyhow::Result;

/// Appends the slides of the presentation whose main part is `main`, in the order of the presentation.
pub(super) fn extract(archive: &mut Archive<'_>, main: &str, out: &mut TextBuilder) -> Result<()> {
    let relations = Relations::of(archive, main)?;
    let mut slides = Vec::new();
    walk(&archive.text(main)?, |event| {
        if let XmlEvent::Start("sldId", attributes) = event {
            // `id` is a number without prefix, `r:id` the relation.
            slides.extend(attributes.prefixed("id").and_then(|id| relations.by_id(&id)));
        }
        Ok(())
    })?;
    for (number, path) in (1..).zip(slides) {
        out.start(Part::Slide(number));
        slide(&archive.text(&path)?, out)?;
        if let Some(notes) = Relations::of(archive, &path)?.by_type("/notesSlide") {
            slide(&archive.text(&notes)?, out)?;
        }
        out.line("")?;
    }
    Ok(())
}

/// Appends the paragraphs of a slide. The number of the slide is left out.
fn slide(xml: &str, out: &mut TextBuilder) -> Result<()> {
    let (mut paragraph, mut row, mut cell): (String, Vec<String>, Option<String>) = Default::default();
    let (mut in_text, mut in_field) = (false, false);
    walk(xml, |event| {
        match event {
            XmlEvent::Start("t", _) => in_text = true,
            XmlEvent::End("t") => in_text = false,
            XmlEvent::Start("fld", attributes) => {
                in_field = attributes.get("type").is_some_and(|kind| kind == "slidenum");
            }
            XmlEvent::End("fld") => in_field = false,
            XmlEvent::Start("br", _) => paragraph.push(if cell.is_some() { ' ' } else { '\n' }),
            XmlEvent::Text(text) if in_text && !in_field => paragraph.push_str(text),
            XmlEvent::Start("tc", _) => cell = Some(String::new()),
            XmlEvent::End("tc") => row.extend(cell.take()),
            XmlEvent::End("tr") => out.line(&std::mem::take(&mut row).join("\t"))?,
            XmlEvent::End("p") => {
                let text = std::mem::take(&mut paragraph);
                match &mut cell {
                    Some(cell) => {
                        cell.push_str(if cell.is_empty() { "" } else { " " });
                        cell.push_str(text.trim());
                    }
                    None if text.trim().is_empty() => {}
                    None => out.line(text.trim_end())?,
                }
            }
            _ => {}
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_tables_of_a_slide() {
        let xml = "<p:sld><a:p><a:r><a:t>Mara</a:t></a:r><a:br/><a:r><a:t>Velt</a:t></a:r></a:p><a:p/>\
            <a:tr><a:tc><a:p><a:t>a</a:t></a:p></a:tc><a:tc><a:p><a:t>b</a:t></a:p></a:tc></a:tr>\
            <a:p><a:fld type='slidenum'><a:t>7</a:t></a:fld></a:p></p:sld>";
        let mut out = TextBuilder::default();
        slide(xml, &mut out).unwrap();
        assert_eq!(out.finish().text, "Mara\nVelt\na\tb\n");
    }
}

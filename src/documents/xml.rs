//! Walks the elements and texts of an XML document. Entities of a DTD are not expanded.

use anyhow::{Context as _, Result};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// An event of a document, with names without their prefix.
pub(super) enum XmlEvent<'a> {
    Start(&'a str, Attributes<'a>),
    End(&'a str),
    Text(&'a str),
}

/// The attributes of a start tag.
pub(super) struct Attributes<'a>(&'a BytesStart<'a>);

impl Attributes<'_> {
    /// The value of an attribute by its name without prefix.
    pub fn get(&self, name: &str) -> Option<String> {
        let mut all = self.0.attributes();
        let found = all.with_checks(false).flatten().find(|a| a.key.local_name().as_ref() == name)?;
        Some(unescaped(&found.value))
    }

    /// The value of an attribute that has a prefix, as `r:id`.
    pub fn prefixed(&self, name: &str) -> Option<String> {
        let mut all = self.0.attributes();
        let is_found = |key: &str| key.split_once(':').is_some_and(|(_, local)| local == name);
        let found = all.with_checks(false).flatten().find(|a| is_found(a.key.as_ref()))?;
        Some(unescaped(&found.value))
    }
}

/// Calls `on` for all events in order; an empty element gives a start and an end.
///
/// # Errors
/// XML that is not well-formed, and errors of `on`.
pub(super) fn walk(text: &str, mut on: impl FnMut(XmlEvent<'_>) -> Result<()>) -> Result<()> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().allow_dangling_amp = true;
    loop {
        let event = reader.read_event();
        let event = event.with_context(|| format!("byte {}: expected XML", reader.error_position()))?;
        match &event {
            Event::Start(tag) => on(XmlEvent::Start(tag.local_name().as_ref(), Attributes(tag)))?,
            Event::Empty(tag) => {
                on(XmlEvent::Start(tag.local_name().as_ref(), Attributes(tag)))?;
                on(XmlEvent::End(tag.local_name().as_ref()))?;
            }
            Event::End(tag) => on(XmlEvent::End(tag.local_name().as_ref()))?,
            Event::Text(text) => on(XmlEvent::Text(&text.xml10_content()))?,
            Event::CData(text) => on(XmlEvent::Text(&text.xml10_content()))?,
            Event::GeneralRef(name) => {
                let reference: &str = name;
                on(XmlEvent::Text(&unescaped(&format!("&{reference};"))))?;
            }
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

/// Replaces character references and the five predefined entities; others stay.
fn unescaped(text: &str) -> String {
    match quick_xml::escape::unescape(text) {
        Ok(text) => text.into_owned(),
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_names_without_prefix_and_texts_without_entities() {
        let mut seen = String::new();
        let text = "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x 'y'>]>\
            <w:a r:id='1 &lt; 2'>b &amp; c&#x41;&x;<d/><![CDATA[<e>]]></w:a>";
        let walked = walk(text, |event| {
            seen += &match event {
                XmlEvent::Start(name, attributes) => format!("[{name} {:?}]", attributes.get("id")),
                XmlEvent::End(name) => format!("[/{name}]"),
                XmlEvent::Text(text) => text.to_owned(),
            };
            Ok(())
        });
        walked.unwrap();
        assert_eq!(seen, "[a Some(\"1 < 2\")]b & cA&x;[d None][/d]<e>[/a]");
        let open = walk("<a><b></a>", |_| Ok(())).unwrap_err();
        assert!(open.to_string().contains("expected XML"), "{open}");
    }
}

//! The relations of a part of an Office document to other parts.

use super::archive::{Archive, resolve};
use super::xml::{XmlEvent, walk};
use anyhow::Result;

/// The relations of one part.
pub(super) struct Relations(Vec<PartRelation>);

struct PartRelation {
    id: String,
    kind: String,
    path: String,
}

impl Relations {
    /// The relations of the part `of`, or of the document for an empty path.
    pub fn of(archive: &mut Archive<'_>, of: &str) -> Result<Relations> {
        let (folder, name) = of.rsplit_once('/').map_or(("", of), |(folder, name)| (folder, name));
        let slash = if folder.is_empty() { "" } else { "/" };
        let path = format!("{folder}{slash}_rels/{name}.rels");
        let mut all = Vec::new();
        if archive.has(&path) {
            walk(&archive.text(&path)?, |event| {
                if let XmlEvent::Start("Relationship", attributes) = event {
                    let get = |name: &str| attributes.get(name).unwrap_or_default();
                    all.push(PartRelation {
                        id: get("Id"),
                        kind: get("Type"),
                        path: resolve(of, &get("Target")),
                    });
                }
                Ok(())
            })?;
        }
        Ok(Relations(all))
    }

    pub fn by_id(&self, id: &str) -> Option<String> {
        self.0.iter().find(|relation| relation.id == id).map(|relation| relation.path.clone())
    }

    /// The part whose type ends with `kind`, as `/officeDocument`.
    pub fn by_type(&self, kind: &str) -> Option<String> {
        self.all_by_type(kind).next().map(str::to_owned)
    }

    /// The parts whose type ends with `kind`, in the order of the relations.
    pub fn all_by_type(&self, kind: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |relation| relation.kind.ends_with(kind)).map(|relation| &*relation.path)
    }
}

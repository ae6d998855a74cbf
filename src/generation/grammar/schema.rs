//! Bounds on a JSON schema, with its references resolved: counts, depth, and the size to which alternatives and
//! references multiply. It does not validate the schema. Next: [`super::lark`].

use super::bounds::{
    EXPANDED_SCHEMAS, Excess, PATTERN_PROPERTIES, PROPERTIES_OF_OBJECT, REFERENCE_CHAIN, REFERENCES,
    SCHEMA_DEPTH, TYPES, Totals, within,
};
use super::regex;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// Keywords that hold one schema (or, for `items`, several), several by name, and several in a list.
const ONE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
const NAMED: [&str; 2] = ["properties", "patternProperties"];
const LISTED: [&str; 5] = ["items", "prefixItems", "allOf", "anyOf", "oneOf"];
/// Keywords whose schemas the library intersects with the keywords beside them.
const COMBINED: [&str; 6] = ["const", "enum", "allOf", "anyOf", "oneOf", "$ref"];
/// Annotations: keywords that constrain no value.
const ANNOTATIONS: [&str; 16] = [
    "$anchor",
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "contentMediaType",
    "contentEncoding",
    "x-guidance",
];

/// Checks a schema and adds it to the totals.
pub fn check(schema: &Value, totals: &mut Totals) -> Result<(), Excess> {
    if let Some(Value::Object(options)) = schema.get("x-guidance") {
        let texts = options.values().filter_map(Value::as_str);
        texts.into_iter().try_for_each(|text| regex::check(text, totals).map(drop))?;
    }
    count(schema, totals)?;
    let mut expansion = Expansion { root: schema, known: HashMap::new(), total: 0 };
    let all = expansion.of(schema, false, 0)?.schemas;
    expansion.add(all)
}

/// The target of a reference as the library finds it: a path from the root, without escapes.
fn resolve<'v>(root: &'v Value, reference: &str) -> Option<&'v Value> {
    if matches!(reference, "#" | "#/") {
        return Some(root);
    }
    let step = |at: &'v Value, name: &str| match at {
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        other => other.get(name),
    };
    reference.strip_prefix("#/")?.split('/').try_fold(root, step)
}

/// The schemas that a keyword holds.
fn held<'v>(keyword: &str, value: &'v Value) -> Vec<&'v Value> {
    match value {
        Value::Array(list) if LISTED.contains(&keyword) => list.iter().collect(),
        Value::Object(named) if NAMED.contains(&keyword) => named.values().collect(),
        one if ONE.contains(&keyword) => vec![one],
        _ => Vec::new(),
    }
}

fn length(value: Option<&Value>) -> usize {
    value.map_or(0, |v| v.as_array().map_or(v.as_object().map_or(0, Map::len), Vec::len))
}

/// Counts what the schema holds, each reference once, as deep as it goes: the walk does not recurse.
fn count(root: &Value, totals: &mut Totals) -> Result<(), Excess> {
    enum Visit<'v> {
        Schema(&'v Value),
        Reference(&'v str),
    }
    let (mut followed, mut longest) = (HashSet::new(), 0);
    let mut open = vec![(Visit::Schema(root), 0)];
    while let Some((visit, chain)) = open.pop() {
        // References to parts of one another make a walk of a small text long.
        if totals.schemas > 32 * super::bounds::SCHEMAS {
            break;
        }
        match visit {
            Visit::Reference(reference) if followed.insert(reference) => {
                longest = longest.max(chain);
                open.extend(resolve(root, reference).map(|target| (Visit::Schema(target), chain)));
            }
            Visit::Reference(_) => {}
            Visit::Schema(Value::Object(fields)) => {
                totals.schemas += 1;
                count_fields(fields, totals)?;
                let reference = fields.get("$ref").and_then(Value::as_str);
                open.extend(reference.map(|reference| (Visit::Reference(reference), chain + 1)));
                let schemas =
                    fields.iter().rev().flat_map(|(keyword, value)| held(keyword, value).into_iter().rev());
                open.extend(schemas.map(|schema| (Visit::Schema(schema), chain)));
            }
            Visit::Schema(_) => totals.schemas += 1,
        }
    }
    within("references in a chain", REFERENCE_CHAIN, longest)?;
    within("references", REFERENCES, followed.len())?;
    totals.check()
}

/// Counts the names, values and patterns of one schema.
fn count_fields(fields: &Map<String, Value>, totals: &mut Totals) -> Result<(), Excess> {
    let none = Map::new();
    let named = |keyword: &str| fields.get(keyword).and_then(Value::as_object).unwrap_or(&none);
    let (properties, patterns) = (named("properties"), named("patternProperties"));
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: Vec<&str> =
        required.filter_map(Value::as_str).filter(|r| !properties.contains_key(*r)).collect();
    let count = properties.len() + required.len();
    within("properties in an object", PROPERTIES_OF_OBJECT, count)?;
    within("patternProperties in an object", PATTERN_PROPERTIES, patterns.len())?;
    within("types in a list", TYPES, length(fields.get("type")))?;
    totals.properties += count;
    totals.literal_bytes +=
        properties.keys().map(String::len).chain(required.iter().map(|r| r.len())).sum::<usize>();
    patterns.keys().try_for_each(|pattern| regex::check(pattern, totals).map(drop))?;
    if let Some(pattern) = fields.get("pattern").and_then(Value::as_str) {
        regex::check(pattern, totals)?;
    }
    let listed = fields.get("enum").and_then(Value::as_array).into_iter().flatten();
    listed.chain(fields.get("const")).for_each(|value| count_values(value, totals));
    Ok(())
}

fn count_values(value: &Value, totals: &mut Totals) {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        totals.values += 1;
        match value {
            Value::String(text) => totals.literal_bytes += text.len(),
            Value::Array(list) => open.extend(list),
            Value::Object(fields) => {
                totals.literal_bytes += fields.keys().map(String::len).sum::<usize>();
                open.extend(fields.values());
            }
            _ => {}
        }
    }
}

/// Schemas that the library makes of one, and the alternatives at its top.
#[derive(Clone, Copy)]
struct Size {
    schemas: usize,
    branches: usize,
}

impl Size {
    const ONE: Size = Size { schemas: 1, branches: 1 };

    /// One of both, or both beside each other.
    fn or(self, other: Size) -> Size {
        Size {
            schemas: self.schemas.saturating_add(other.schemas),
            branches: self.branches.saturating_add(other.branches),
        }
    }

    /// Both at once: each alternative of one is intersected with each of the other.
    fn and(self, other: Size) -> Size {
        let ours = self.schemas.saturating_mul(other.branches);
        let theirs = other.schemas.saturating_mul(self.branches);
        Size { schemas: ours.saturating_add(theirs), branches: self.branches.saturating_mul(other.branches) }
    }
}

/// An upper bound on what the library makes of a schema. A reference alone stays a reference; one that is intersected
/// is copied, with all that it leads to.
struct Expansion<'v> {
    root: &'v Value,
    /// By reference and whether it is copied; None while its target is being walked.
    known: HashMap<(&'v str, bool), Option<Size>>,
    total: usize,
}

impl<'v> Expansion<'v> {
    fn add(&mut self, schemas: usize) -> Result<(), Excess> {
        self.total = self.total.saturating_add(schemas);
        within("schemas once alternatives and references are expanded", EXPANDED_SCHEMAS, self.total)
    }

    fn of(&mut self, schema: &'v Value, copied: bool, depth: usize) -> Result<Size, Excess> {
        within("schemas within one another, references included", SCHEMA_DEPTH, depth)?;
        let Value::Object(fields) = schema else { return Ok(Size::ONE) };
        let constrains = |k: &&String| !ANNOTATIONS.contains(&k.as_str());
        let beside = fields.keys().filter(constrains).any(|k| !COMBINED.contains(&k.as_str()));
        let combined = COMBINED.iter().filter(|k| fields.contains_key(**k) && **k != "allOf").count();
        let parts = usize::from(beside) + combined + length(fields.get("allOf"));
        let copied = copied || parts > 1;
        let mut all = if beside { self.beside(fields, copied, depth)? } else { Size::ONE };
        for keyword in COMBINED {
            let Some(value) = fields.get(keyword) else { continue };
            let list = value.as_array().map_or(&[][..], Vec::as_slice);
            let nothing = Size { schemas: 1, branches: 0 };
            let sizes = |walk: &mut Self| {
                list.iter().map(|s| walk.of(s, copied, depth + 1)).collect::<Result<Vec<_>, _>>()
            };
            let size = match keyword {
                "allOf" => sizes(self)?.into_iter().fold(Size::ONE, Size::and),
                "anyOf" | "oneOf" => sizes(self)?.into_iter().fold(nothing, Size::or),
                "$ref" => value.as_str().map_or(Ok(Size::ONE), |r| self.reference(r, copied, depth + 1))?,
                _ => {
                    let mut values = Totals::default();
                    count_values(value, &mut values);
                    Size { schemas: values.values, branches: list.len().max(1) }
                }
            };
            all = if parts > 1 { all.and(size) } else { size };
        }
        within("schemas once alternatives and references are expanded", EXPANDED_SCHEMAS, all.schemas)?;
        Ok(all)
    }

    /// Of the keywords that are not combined: each of the types makes a schema, all six where none is said.
    fn beside(&mut self, fields: &'v Map<String, Value>, copied: bool, depth: usize) -> Result<Size, Excess> {
        let types = fields.get("type").map_or(6, |types| types.as_array().map_or(1, Vec::len));
        let mut size = types;
        for (keyword, value) in fields.iter().filter(|(k, _)| !COMBINED.contains(&k.as_str())) {
            // Each property that a pattern matches is intersected with the pattern's schema.
            let patterned = keyword == "patternProperties"
                || fields.contains_key("patternProperties") && keyword == "properties";
            let times = if keyword == "patternProperties" { 1 + length(fields.get("properties")) } else { 1 };
            for schema in held(keyword, value) {
                let one = self.of(schema, copied || patterned, depth + 1)?;
                size = size.saturating_add(one.schemas.saturating_mul(times));
            }
        }
        Ok(Size { schemas: size, branches: types })
    }

    fn reference(&mut self, reference: &'v str, copied: bool, depth: usize) -> Result<Size, Excess> {
        for copy in [false, true] {
            if (copy && !copied) || self.known.contains_key(&(reference, copy)) {
                continue;
            }
            self.known.insert((reference, copy), None);
            let target = resolve(self.root, reference);
            let size = target.map_or(Ok(Size::ONE), |target| self.of(target, copy, depth))?;
            self.known.insert((reference, copy), Some(size));
            if !copy {
                self.add(size.schemas)?;
            }
        }
        let known = self.known.get(&(reference, true)).copied().flatten();
        Ok(known.filter(|_| copied).unwrap_or(Size::ONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(schema: &Value) -> String {
        let counted = super::super::count_schema(schema, &mut Totals::default());
        counted.map_or_else(|e| e.to_string(), |()| "fine".into())
    }

    /// Definitions `d0` to `dn`, each made of the name of the next, and the last an integer.
    fn chain(n: usize, link: impl Fn(String) -> Value) -> Value {
        let mut defs = Map::new();
        (0..n).for_each(|i| drop(defs.insert(format!("d{i}"), link(format!("#/$defs/d{}", i + 1)))));
        defs.insert(format!("d{n}"), json!({ "type": "integer" }));
        json!({ "$ref": "#/$defs/d0", "$defs": defs })
    }

    #[test]
    fn hostile_schemas_are_refused() {
        let objects = |n: usize| (0..n).map(|i| (format!("p{i}"), json!({}))).collect::<Map<_, _>>();
        let any = |n: usize| json!({ "anyOf": (0..n).map(|i| json!({ "const": i })).collect::<Vec<_>>() });
        for (schema, expected) in [
            (chain(565, |to| json!({ "$ref": to })), "expected at most 512 references in a chain, found 566"),
            (
                chain(600, |to| json!({ "properties": { "a": { "$ref": to } } })),
                "expected at most 512 references in a chain, found 601",
            ),
            (
                json!({ "type": "object", "properties": objects(4531) }),
                "expected at most 2048 properties in an object, found 4531",
            ),
            (
                json!({ "required": (0..5000).map(|i| format!("r{i}")).collect::<Vec<_>>() }),
                "expected at most 2048 properties in an object, found 5000",
            ),
            (json!({ "type": vec!["object"; 17] }), "expected at most 16 types in a list, found 17"),
            (
                json!({ "enum": (0..40_000).collect::<Vec<_>>() }),
                "expected at most 32768 values in enum and const, found 40000",
            ),
            (
                json!({ "pattern": "(".repeat(300) }),
                "expected at most 100 levels of brackets in a regular expression, found 300",
            ),
        ] {
            assert_eq!(said(&schema), expected);
        }
        // Small texts that the library expands without a bound.
        for schema in [
            json!({ "allOf": [any(200), any(200), any(200)] }),
            chain(30, |to| {
                json!({ "type": "object", "properties": {
                "a": { "type": "object", "$ref": to }, "b": { "type": "object", "$ref": to } } })
            }),
        ] {
            let found = said(&schema);
            assert!(found.starts_with("expected at most 131072 schemas once alternatives"), "{found}");
        }
    }

    #[test]
    fn ordinary_schemas_pass() {
        let tree = json!({
            "$defs": { "node": { "type": "object", "properties": {
                "value": { "type": ["string", "null"], "enum": ["a", "b", null] },
                "next": { "anyOf": [{ "$ref": "#/$defs/node" }, { "type": "null" }], "title": "Next" },
                "all": { "type": "array", "items": { "$ref": "#/$defs/node" } }
            } } },
            "allOf": [{ "$ref": "#/$defs/node" }, { "properties": { "more": { "$ref": "#" } } }]
        });
        for schema in [
            tree,
            json!({}),
            json!(true),
            json!(3),
            chain(511, |to| json!({ "properties": { "a": { "items": { "$ref": to } } } })),
        ] {
            assert_eq!(said(&schema), "fine", "{schema}");
        }
    }
}

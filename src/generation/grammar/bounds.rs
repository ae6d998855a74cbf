//! Bounds on what a client sends as schema, grammar or regular expression, counted over one request.
//!
//! The grammar library recurses over what it compiles and expands references and alternatives before it checks its own
//! limits: every bound is checked before the library sees the text. Scanners: [`super::schema`], [`super::lark`],
//! [`super::regex`].

use std::fmt;

/// Subschemas in all schemas of a request.
pub(super) const SCHEMAS: usize = 32_768;
/// Properties of a request, and of one object.
pub(super) const PROPERTIES: usize = 16_384;
pub(super) const PROPERTIES_OF_OBJECT: usize = 2_048;
/// Patterns of property names of one object: each pair of them is checked for overlap.
pub(super) const PATTERN_PROPERTIES: usize = 32;
/// Values in `enum` and `const`.
pub(super) const VALUES: usize = 32_768;
/// Bytes of property names, of strings in `enum` and `const` and of literals.
pub(super) const LITERAL_BYTES: usize = 2 << 20;
/// Different `$ref` of a schema, and how many of them lead from one to the next.
pub(super) const REFERENCES: usize = 4_096;
pub(super) const REFERENCE_CHAIN: usize = 512;
/// Schemas within schemas, through references too.
pub(super) const SCHEMA_DEPTH: usize = 2_560;
/// Subschemas after `allOf`, `anyOf`, `oneOf` and references beside other keywords are multiplied out.
pub(super) const EXPANDED_SCHEMAS: usize = 131_072;
/// Types that one `type` lists.
pub(super) const TYPES: usize = 16;

/// Bytes of a Lark grammar without the schemas in it.
pub(super) const LARK_BYTES: usize = 512 << 10;
/// Rules and terminals, alternatives, and operands of a Lark grammar.
pub(super) const RULES: usize = 4_096;
pub(super) const ALTERNATIVES: usize = 16_384;
pub(super) const OPERANDS: usize = 65_536;
/// Operands of one Lark rule: the library's work grows with the square of those that may be empty.
pub(super) const OPERANDS_OF_RULE: usize = 8_192;
/// Open brackets in a Lark rule. The library's parser stops at 30 groups; conditions have no limit of their own.
pub(super) const LARK_NESTING: usize = 64;
/// Brackets of a Lark grammar: the library recurses over those of all rules that refer to one another.
pub(super) const BRACKETS: usize = 16_384;
/// Values in the JSON of a Lark grammar, keywords that constrain nothing included: each takes some hundred bytes.
pub(super) const JSON_VALUES: usize = 262_144;
/// Bytes of a `%regex` substring literal.
pub(super) const SUBSTRING_BYTES: usize = 64 << 10;

/// Bytes of a regular expression, and of all of a request.
pub(super) const REGEX_BYTES: usize = 32 << 10;
pub(super) const ALL_REGEX_BYTES: usize = 512 << 10;
/// Open brackets in a regular expression.
pub(super) const REGEX_NESTING: usize = 100;
/// Quantifiers and empty alternatives of a regular expression or Lark terminal, with those of the terminals that it uses,
/// and of all of a request. One derivative of n factors that may be empty holds n^2 / 2 factors: measured with `(\w*b)?`,
/// 1,000 quantifiers take 27 MiB and 0.3 s, 4,000 take 640 MiB and 5 s.
pub(super) const QUANTIFIERS: usize = 1_000;
pub(super) const ALL_QUANTIFIERS: usize = 4_000;
/// What counted repetitions within one another multiply to.
pub(super) const REPETITIONS: usize = 1_000_000;

/// Stack for a walk over a schema, which recurses to [`SCHEMA_DEPTH`].
pub(super) const SCAN_STACK_BYTES: usize = 32 << 20;

/// A bound that is exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    most: usize,
    what: &'static str,
    found: usize,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected at most {} {}, found {}", self.most, self.what, self.found)
    }
}

impl std::error::Error for Excess {}

/// `found`, if it is at most `most`.
pub(super) fn within(what: &'static str, most: usize, found: usize) -> Result<(), Excess> {
    if found <= most { Ok(()) } else { Err(Excess { most, what, found }) }
}

/// What the grammars of one request add up to.
#[derive(Debug, Default)]
pub struct Totals {
    pub(super) schemas: usize,
    pub(super) properties: usize,
    pub(super) values: usize,
    pub(super) literal_bytes: usize,
    pub(super) regex_bytes: usize,
    pub(super) quantifiers: usize,
}

impl Totals {
    /// Checks the totals against the bounds of one request.
    pub fn check(&self) -> Result<(), Excess> {
        within("schemas", SCHEMAS, self.schemas)?;
        within("properties", PROPERTIES, self.properties)?;
        within("values in enum and const", VALUES, self.values)?;
        within("bytes of names and literals", LITERAL_BYTES, self.literal_bytes)?;
        within("bytes of regular expressions", ALL_REGEX_BYTES, self.regex_bytes)?;
        within("quantifiers in regular expressions", ALL_QUANTIFIERS, self.quantifiers)
    }
}

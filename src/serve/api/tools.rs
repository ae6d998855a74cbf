//! Types for tools and response formats in requests.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Tool {
    #[serde(rename = "type")]
    pub kind: String,
    #[schema(value_type = Option<FunctionSpec>)]
    pub function: Option<Value>,
}

/// A function that may be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionSpec {
    /// Name of letters, digits, `_`, `-` and `.`
    pub name: String,
    /// JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Constrain calls to match the schema.
    pub strict: Option<bool>,
}

/// Controls which tools are called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}"
)]
pub enum ToolChoice {
    Mode(String),
    Named(NamedTool),
}

/// A tool that must be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct NamedTool {
    #[serde(rename = "type")]
    pub kind: String,
    pub function: FunctionName,
}

/// A function by its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    pub name: String,
}

/// Names by which other engines take the format of a reply.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct GuidedDecoding {
    /// A JSON schema, as an object or as text.
    #[schema(value_type = Option<Object>)]
    pub guided_json: Option<Value>,
    /// A regular expression that the whole text matches.
    pub guided_regex: Option<String>,
    /// A JSON schema, as llama.cpp's server takes it.
    #[schema(value_type = Option<Object>)]
    pub json_schema: Option<Value>,
    /// A grammar in GBNF, as llama.cpp's server takes it; an empty one allows any text.
    pub grammar: Option<String>,
}

/// Required format of a reply.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// text, json_object, json_schema or grammar
    #[serde(rename = "type")]
    pub kind: String,
    /// Schema for the type json_schema.
    pub json_schema: Option<JsonSchema>,
    /// Schema for the type json_schema or json_object, as llama.cpp's server takes it.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Grammar for the type grammar.
    pub grammar: Option<String>,
    /// Syntax of the grammar: lark (llguidance's variant, the default), gbnf or regex.
    pub syntax: Option<String>,
}

/// A JSON schema, which is always enforced, strict or not.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct JsonSchema {
    /// The schema; by default any object.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

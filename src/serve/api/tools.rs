//! Tools that a reply may call, and the form that it is to have.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A tool.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Tool {
    /// `function`; others are refused.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    #[schema(value_type = Option<Function>)]
    pub function: Option<Value>,
}

/// A function that may be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Function {
    /// Its name: letters, digits, `_`, `-` and `.`
    pub name: String,
    /// A JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Calls match the schema, whatever the model would write.
    pub strict: Option<bool>,
}

/// Whether tools are called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}"
)]
pub enum ToolChoice {
    /// none, auto or required
    Mode(String),
    /// This one.
    Named(NamedTool),
}

/// A tool that is to be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct NamedTool {
    /// `function`; others are refused.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its function.
    pub function: FunctionName,
}

/// A function by its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    /// The name.
    pub name: String,
}

/// The form that a reply is to have.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// text, json_object, json_schema or grammar
    #[serde(rename = "type")]
    pub kind: String,
    /// For json_schema: the schema.
    pub json_schema: Option<JsonSchema>,
    /// For grammar: the grammar.
    pub grammar: Option<String>,
    /// For grammar: lark (llguidance's variant) or regex; lark where absent.
    pub syntax: Option<String>,
}

/// A JSON schema, which the reply matches whether it is called strict or not.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct JsonSchema {
    /// The schema; any object where absent.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

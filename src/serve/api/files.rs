//! Types of `/v1/files`, and the annotations by which replies cite files.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An uploaded file and its state.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FileObject {
    pub id: String,
    pub object: &'static str,
    /// Size of the uploaded file.
    pub bytes: u64,
    /// Unix time of the upload, in seconds.
    pub created_at: u64,
    pub filename: String,
    pub purpose: String,
    /// processed, or error if the file has no text that can be read
    pub status: &'static str,
    /// The reason of the error in one line.
    #[schema(required)]
    pub status_details: Option<String>,
    /// text, html, pdf, docx, pptx, xlsx, epub or zip
    pub format: String,
    /// Tokens of a prompt that ends with the file; null while no model is loaded here.
    #[schema(required)]
    pub tokens: Option<usize>,
    /// How many of these tokens the prefix cache holds.
    pub tokens_read: usize,
    /// Whether a question prefills its own tokens only.
    pub ready: bool,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FileList {
    pub object: &'static str,
    pub data: Vec<FileObject>,
    #[schema(required)]
    pub first_id: Option<String>,
    #[schema(required)]
    pub last_id: Option<String>,
    /// Whether more files follow the last one.
    pub has_more: bool,
}

/// The form of an upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation: the body is read as a stream")]
pub struct FileUpload {
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
    /// user_data, assistants or another purpose; it is only returned
    pub purpose: Option<String>,
}

/// Which files a list has.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct FileQuery {
    /// Maximum number of files, 1 to 10,000.
    pub limit: Option<usize>,
    /// Id of the last file of the list before.
    pub after: Option<String>,
    /// By time of the upload: asc or desc, the default.
    pub order: Option<String>,
    pub purpose: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FileDeleted {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}

/// The text of a file as the model reads it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FileText {
    pub id: String,
    pub object: &'static str,
    pub filename: String,
    pub text: String,
    /// Pages, chapters, slides, paragraphs or rows, in the order of the text; none of plain text.
    pub places: Vec<TextPlace>,
}

/// The start of a part of a text, which ends where the next one starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TextPlace {
    /// Unicode characters before the part.
    pub start: usize,
    /// The part in words of the format, such as `p. 13`.
    pub place: String,
}

/// An event of a file that is being prefilled.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum FileReadEvent {
    #[serde(rename = "file.reading")]
    Reading {
        file_id: String,
        /// Tokens in the state so far, cached ones included.
        tokens_read: usize,
        tokens: usize,
        tokens_per_second: f64,
        /// Absent before the first measurement.
        #[serde(skip_serializing_if = "Option::is_none")]
        seconds_left: Option<f64>,
    },
    #[serde(rename = "file.ready")]
    Ready {
        file_id: String,
        tokens: usize,
        seconds: f64,
        /// Tokens that were restored from the prefix cache.
        reused: usize,
    },
    #[serde(rename = "error")]
    Failed { code: Option<&'static str>, message: String },
}

/// A file of a message: the id of an uploaded one, or its bytes.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct FilePart {
    /// Id of an uploaded file.
    pub file_id: Option<String>,
    /// Name of the file in `file_data`.
    pub filename: Option<String>,
    /// The file in Base64, with or without `data:TYPE;base64,`.
    pub file_data: Option<String>,
}

/// A quotation of a reply and its place in a file. Offsets count Unicode characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileCitation {
    /// Always `file_citation`, as in OpenAI's interface.
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[schema(required)]
    pub file_id: Option<String>,
    #[schema(required)]
    pub filename: Option<String>,
    /// The end of the quotation in the reply.
    pub index: usize,
    pub quote: String,
    /// The place in words of the file's format, such as `p. 13` or `line 7`.
    #[schema(required)]
    pub place: Option<String>,
    /// The quotation in the reply.
    pub start_index: usize,
    pub end_index: usize,
    /// The same words in the text of the file; null if they are in no file.
    #[schema(required)]
    pub text_start: Option<usize>,
    #[schema(required)]
    pub text_end: Option<usize>,
    /// Whether the quotation is in one of the files.
    pub verified: bool,
}

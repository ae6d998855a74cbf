//! Moves the files of a chat request to the start of its prompt, in the layout of [`crate::document_qa`]: instructions, files,
//! then what the client sent, so that all questions about the same files share their prefix.

use super::set::{AttachedFiles, FileSource};
use super::store::file_id;
use super::upload::file_name;
use crate::document_qa::{INSTRUCTIONS, QUOTE, SEPARATOR, joined};
use crate::serve::api::chat::{ChatMessage, ChatRequest, Content, ContentPart, Role};
use crate::serve::api::files::FilePart;
use crate::serve::app::App;
use crate::serve::errors::ApiError;
use crate::serve::tenant::Owner;
use crate::serve::tools;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Maximum number of files of a request.
const MAX_FILES: usize = 64;

/// Takes the files out of a request and puts their text before the conversation; `None` if it has none. System messages at
/// the start move behind the files. Unless the reply has a format or may call tools, each question asks for quotes.
pub fn attach(app: &App, owner: Owner, request: &mut ChatRequest) -> Result<AttachedFiles, ApiError> {
    let parts = take_files(&mut request.messages)?;
    if parts.is_empty() {
        return Ok(None);
    }
    if parts.len() > MAX_FILES {
        let why = format!("expected at most {MAX_FILES} files, found {}", parts.len());
        return Err(ApiError::invalid("file", why));
    }
    let sources =
        parts.into_iter().map(|part| source(app, owner, part)).collect::<Result<Vec<FileSource>, _>>()?;
    let files = app.file_sets.get(&app.files, owner, &sources)?;
    let has_tools = request.tools.as_ref().is_some_and(|tools| !tools.is_empty());
    let has_format = tools::required_format(request.response_format.as_ref(), &request.constraint)?.is_some();
    let suffix = if has_tools || has_format { "" } else { QUOTE };
    let messages = std::mem::take(&mut request.messages);
    request.messages = with_documents(messages, &joined(&files.documents), suffix)?;
    Ok(Some(files))
}

/// Removes the parts of all messages that are files.
fn take_files(messages: &mut [ChatMessage]) -> Result<Vec<FilePart>, ApiError> {
    let mut files = Vec::new();
    for (i, message) in messages.iter_mut().enumerate() {
        let Some(Content::Parts(parts)) = &mut message.content else { continue };
        let before = files.len();
        let mut kept: Vec<ContentPart> = Vec::new();
        for part in std::mem::take(parts) {
            match (part.kind.as_str(), part.file) {
                ("file", Some(file)) => files.push(file),
                (_, file) => kept.push(ContentPart { kind: part.kind, text: part.text, file }),
            }
        }
        *parts = kept;
        if files.len() > before && message.role != Role::User {
            let why = "expected files in messages of the user only";
            return Err(ApiError::invalid(&format!("messages[{i}].content"), why));
        }
    }
    Ok(files)
}

/// Finds an uploaded file, or decodes one in the request.
fn source(app: &App, owner: Owner, part: FilePart) -> Result<FileSource, ApiError> {
    match (part.file_id, part.file_data) {
        (Some(id), None) => app.files.find(owner, &id).map(FileSource::Stored),
        (None, Some(data)) => {
            let name = file_name(Some(part.filename.as_deref().unwrap_or("file")))?;
            let data = match data.strip_prefix("data:") {
                Some(rest) => rest.split_once(";base64,").map(|(_, data)| data),
                None => Some(&*data),
            };
            let bytes = data.and_then(|data| STANDARD.decode(data.trim()).ok());
            let why = "expected Base64, with or without data:TYPE;base64,";
            let bytes = bytes.ok_or_else(|| ApiError::invalid("file_data", why))?;
            let id = file_id(owner, &name, blake3::hash(&bytes));
            Ok(FileSource::Inline { id, name, bytes })
        }
        _ => Err(ApiError::invalid("file", "expected either file_id or file_data")),
    }
}

/// Returns the messages with documents before the first message of the user.
fn with_documents(
    messages: Vec<ChatMessage>,
    documents: &str,
    suffix: &str,
) -> Result<Vec<ChatMessage>, ApiError> {
    let is_system = |message: &&ChatMessage| matches!(message.role, Role::System | Role::Developer);
    let instructions = messages.iter().take_while(is_system).count();
    let mut before = documents.to_owned();
    let mut out = vec![message(Role::System, INSTRUCTIONS.to_owned())];
    let mut is_first = true;
    for (i, found) in messages.into_iter().enumerate() {
        if i < instructions {
            before.extend([SEPARATOR, text(&found.content, i)?.trim_end()]);
        } else if found.role == Role::User {
            let question = text(&found.content, i)?;
            let suffix = if question.trim().is_empty() { "" } else { suffix };
            let start = if is_first { format!("{before}{SEPARATOR}") } else { String::new() };
            is_first = false;
            let content = Some(Content::Text(format!("{start}{question}{suffix}")));
            out.push(ChatMessage { content, ..found });
        } else {
            out.push(found);
        }
    }
    if is_first {
        return Err(ApiError::invalid("messages", "expected a message of the user beside the files"));
    }
    Ok(out)
}

fn message(role: Role, text: String) -> ChatMessage {
    let content = Some(Content::Text(text));
    ChatMessage { role, content, name: None, tool_calls: None, tool_call_id: None, reasoning_content: None }
}

/// The text of a message.
fn text(content: &Option<Content>, index: usize) -> Result<String, ApiError> {
    match content {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text.clone()),
        Some(Content::Parts(parts)) => crate::serve::api::chat::join(parts)
            .map_err(|(place, why)| ApiError::invalid(&format!("messages[{index}].{place}"), why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(messages: &[(Role, &str)], suffix: &str) -> Vec<(Role, String)> {
        let messages = messages.iter().map(|(role, text)| message(*role, (*text).to_owned())).collect();
        let out = with_documents(messages, "The text.", suffix).unwrap();
        out.into_iter().map(|m| (m.role, text(&m.content, 0).unwrap())).collect()
    }

    #[test]
    fn documents_precede_the_conversation() {
        let (system, user) = (Role::System, Role::User);
        let instructions = (system, INSTRUCTIONS.to_owned());
        assert_eq!(
            texts(&[(user, "Why?")], QUOTE),
            [instructions.clone(), (user, "The text.\n\nWhy? Quote the text.".into())]
        );
        let turns =
            [(Role::Developer, "Be brief."), (user, "Why?"), (Role::Assistant, "So."), (user, "When?")];
        let expected = [
            instructions,
            (user, "The text.\n\nBe brief.\n\nWhy?".into()),
            (Role::Assistant, "So.".into()),
            (user, "When?".into()),
        ];
        assert_eq!(texts(&turns, ""), expected);
        assert!(with_documents(Vec::new(), "x", "").is_err());
    }
}

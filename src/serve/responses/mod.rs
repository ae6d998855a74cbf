//! `/v1/responses`: chat in the form of items and typed events. [`request`] converts requests; this module encodes responses.

mod request;

use super::api::responses::{
    Incomplete, OutputDetails, OutputItem, OutputText, ResponseInput, ResponseObject, ResponseRequest,
    ResponseUsage,
};
use super::app::App;
use super::body::RequestBody;
use super::chat;
use super::errors::ApiError;
use super::events::RequestEvents;
use super::fields::{self, Interface};
use super::files::citations::citations;
use super::files::input::attach;
use super::files::set::AttachedFiles;
use super::logprobs::new_id;
use super::reply::{ParsedEvent, TrackedReply};
use super::sse::{Outbox, StreamEncoder, respond};
use super::submit::{PreparedChat, submit_chat};
use super::tenant::Tenant;
use super::trace::MissCell;
use super::usage::{ResponseMeta, timings, usage};
use crate::generation::generate::Stats;
use crate::generation::markup::ReplyEvent;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Generates the next items of a conversation
#[utoipa::path(
    post,
    path = "/v1/responses",
    request_body = ResponseRequest,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (ResponseObject = "application/json"),
            (crate::serve::api::schemas::ServerSentEvent = "text/event-stream"),
        )),
        super::api::schemas::Refusals,
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let shared = app.clone();
    let prepared =
        app.intake.run(body.cost(), move |cancelled| prepare(&shared, &body, tenant, cancelled)).await;
    let (request, prepared, echo, files) = prepared??;
    let events = submit_chat(&app, prepared, tenant).await?;
    let stream = request.stream.unwrap_or(false);
    let encoder = ResponseEncoder {
        meta: ResponseMeta::new(&app, "resp"),
        request,
        echo,
        files,
        tracked: TrackedReply::new(events.prompt_tokens),
        output: Vec::new(),
        events: 0,
        reasoning_tokens: 0,
        miss: events.miss.clone(),
    };
    if stream {
        return Ok(respond(events, encoder));
    }
    encoder.collect(events).await.map(|answer| Json(answer).into_response())
}

/// Request fields that the response repeats, kept as JSON text: parsed values take several times the memory.
struct Echo {
    metadata: Box<RawValue>,
    tool_choice: Box<RawValue>,
    tools: Box<RawValue>,
}

impl Echo {
    /// Takes these fields out of a request and frees the fields that are no longer needed.
    fn take(request: &mut ResponseRequest) -> Result<Self, ApiError> {
        request.input = ResponseInput::Text(String::new());
        request.text = None;
        let tool_choice = request.tool_choice.take().unwrap_or_else(|| json!("auto"));
        Ok(Echo {
            metadata: to_raw_value(&request.metadata.take().unwrap_or_default())
                .map_err(ApiError::internal)?,
            tool_choice: to_raw_value(&tool_choice).map_err(ApiError::internal)?,
            tools: to_raw_value(&request.tools.take().unwrap_or_default()).map_err(ApiError::internal)?,
        })
    }
}

fn prepare(
    app: &App,
    body: &RequestBody,
    tenant: Tenant,
    cancelled: &AtomicBool,
) -> Result<(ResponseRequest, PreparedChat, Echo, AttachedFiles), ApiError> {
    fields::check(Interface::Responses, body, &app.notices)?;
    let mut request: ResponseRequest = body.part()?;
    let (mut chat_request, generation) = request::chat(&request)?;
    let files = attach(app, tenant.owner, &mut chat_request)?;
    let about = (tenant, files.as_deref());
    let prepared = chat::prepare_chat(app, &mut chat_request, &generation, about, cancelled)?;
    let echo = Echo::take(&mut request)?;
    Ok((request, prepared, echo, files))
}

/// A response that is being generated, and the encoder of its events.
struct ResponseEncoder {
    meta: ResponseMeta,
    request: ResponseRequest,
    echo: Echo,
    /// The files of the prompt.
    files: AttachedFiles,
    tracked: TrackedReply,
    /// Items of the response; the last one may be incomplete.
    output: Vec<OutputItem>,
    events: usize,
    reasoning_tokens: usize,
    miss: MissCell,
}

impl ResponseEncoder {
    async fn collect(mut self, mut events: RequestEvents) -> Result<ResponseObject, ApiError> {
        let mut discarded = Outbox::default();
        while let Some(event) = events.next().await {
            let (index, event) = event?;
            self.on_event(index, event, &mut discarded);
            discarded.clear();
        }
        Ok(self.response())
    }

    fn response(&self) -> ResponseObject {
        let r = &self.request;
        let cut = self.tracked.is_cut();
        let status = match &self.tracked.stats {
            None => "in_progress",
            Some(_) if cut => "incomplete",
            Some(_) => "completed",
        };
        ResponseObject {
            id: self.meta.id.clone(),
            object: "response",
            created_at: self.meta.created,
            status,
            error: Value::Null,
            incomplete_details: cut.then_some(Incomplete { reason: "max_output_tokens" }),
            instructions: r.instructions.clone(),
            max_output_tokens: r.max_output_tokens,
            metadata: self.echo.metadata.clone(),
            model: self.meta.model.clone(),
            output: self.output.clone(),
            parallel_tool_calls: r.parallel_tool_calls.unwrap_or(true),
            previous_response_id: None,
            store: false,
            temperature: r.temperature,
            tool_choice: self.echo.tool_choice.clone(),
            tools: self.echo.tools.clone(),
            top_p: r.top_p,
            truncation: "disabled",
            usage: self.tracked.stats.as_ref().map(|stats| self.usage(stats)),
            timings: self.tracked.stats.as_ref().map(|stats| timings(stats, &self.miss)),
        }
    }

    fn usage(&self, stats: &Stats) -> ResponseUsage {
        let u = usage(self.tracked.prompt().0, 1, std::iter::once(stats));
        ResponseUsage {
            input_tokens: u.prompt_tokens,
            input_tokens_details: u.prompt_tokens_details,
            output_tokens: u.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: self.reasoning_tokens },
            total_tokens: u.total_tokens,
        }
    }

    /// Sends an event with its type and sequence number.
    fn event(&mut self, kind: &str, mut fields: Value, out: &mut Outbox) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.events.into();
        self.events += 1;
        out.named(kind, &fields);
    }

    fn response_event(&mut self, kind: &str, out: &mut Outbox) {
        let response = self.response();
        self.event(kind, json!({ "response": response }), out);
    }

    fn on_reply_event(&mut self, event: ReplyEvent, out: &mut Outbox) {
        match event {
            ReplyEvent::Text(text) => self.add_text("output_text", &text, out),
            ReplyEvent::Reasoning(text) => self.add_text("reasoning_text", &text, out),
            ReplyEvent::ToolCallBegin { id, name } => self.begin_call(id, name, out),
            ReplyEvent::ToolCallArguments(more) => self.arguments(&more, out),
            ReplyEvent::ToolCallEnd => {}
        }
    }

    /// Appends text to the current item, or to a new item if the kind differs.
    fn add_text(&mut self, kind: &'static str, more: &str, out: &mut Outbox) {
        if self.output.last().and_then(open_text).is_none_or(|text| text.kind != kind) {
            self.close(out);
            let text = OutputText { kind, text: String::new(), annotations: vec![], logprobs: vec![] };
            self.output.push(if kind == "output_text" {
                let (id, content) = (new_id("msg"), Vec::new());
                OutputItem::Message { id, status: "in_progress", role: "assistant", content }
            } else {
                OutputItem::Reasoning { id: new_id("rs"), summary: vec![], content: vec![] }
            });
            let (item, output_index) = (json!(self.output.last()), self.output.len() - 1);
            let fields = json!({ "output_index": output_index, "item": item });
            self.event("response.output_item.added", fields, out);
            let mut fields = self.position();
            fields["part"] = json!(text);
            self.content().push(text);
            self.event("response.content_part.added", fields, out);
        }
        self.content().iter_mut().for_each(|text| text.text.push_str(more));
        let mut fields = self.position();
        fields["delta"] = more.into();
        fields["logprobs"] = json!([]);
        self.event(&format!("response.{kind}.delta"), fields, out);
    }

    /// The content parts of the current text item.
    fn content(&mut self) -> &mut Vec<OutputText> {
        match self.output.last_mut() {
            Some(OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. }) => content,
            _ => unreachable!("a text's item was just opened"),
        }
    }

    /// The fields that locate the current text.
    fn position(&self) -> Value {
        let id = match self.output.last() {
            Some(OutputItem::Message { id, .. } | OutputItem::Reasoning { id, .. }) => id.as_str(),
            _ => "",
        };
        json!({ "item_id": id, "output_index": self.output.len() - 1, "content_index": 0 })
    }

    fn close(&mut self, out: &mut Outbox) {
        self.close_call(out);
        self.annotate(out);
        let Some(text) = self.output.last().and_then(open_text).cloned() else { return };
        let mut fields = self.position();
        fields["text"] = text.text.as_str().into();
        fields["logprobs"] = json!([]);
        self.event(&format!("response.{}.done", text.kind), fields, out);
        let mut fields = self.position();
        fields["part"] = json!(text);
        self.event("response.content_part.done", fields, out);
        let cut = self.tracked.is_cut();
        if let Some(OutputItem::Message { status, .. }) = self.output.last_mut() {
            *status = if cut { "incomplete" } else { "completed" };
        }
        self.item_done(out);
    }

    /// Adds the quotations of a complete text of a message, if there are files.
    fn annotate(&mut self, out: &mut Outbox) {
        let text = self.output.last().and_then(open_text).filter(|text| text.kind == "output_text");
        let Some((files, text)) = self.files.as_ref().zip(text) else { return };
        let annotations = citations(files, &text.text);
        for (index, annotation) in annotations.iter().enumerate() {
            let mut fields = self.position();
            fields["annotation_index"] = index.into();
            fields["annotation"] = json!(annotation);
            self.event("response.output_text.annotation.added", fields, out);
        }
        self.content().iter_mut().for_each(|text| text.annotations.clone_from(&annotations));
    }

    fn item_done(&mut self, out: &mut Outbox) {
        let fields = json!({ "output_index": self.output.len() - 1, "item": self.output.last() });
        self.event("response.output_item.done", fields, out);
    }

    fn begin_call(&mut self, call_id: String, name: String, out: &mut Outbox) {
        self.close(out);
        self.output.push(OutputItem::FunctionCall {
            id: new_id("fc"),
            call_id,
            name,
            arguments: String::new(),
            status: "in_progress",
        });
        let fields = json!({ "output_index": self.output.len() - 1, "item": self.output.last() });
        self.event("response.output_item.added", fields, out);
    }

    /// Appends arguments to the current call.
    fn arguments(&mut self, more: &str, out: &mut Outbox) {
        let output_index = self.output.len().saturating_sub(1);
        let Some(OutputItem::FunctionCall { id, arguments, .. }) = self.output.last_mut() else { return };
        arguments.push_str(more);
        let fields = json!({ "item_id": id, "output_index": output_index, "delta": more });
        self.event("response.function_call_arguments.delta", fields, out);
    }

    /// Completes the current function call, if any.
    fn close_call(&mut self, out: &mut Outbox) {
        let (output_index, cut) = (self.output.len().saturating_sub(1), self.tracked.is_cut());
        let Some(OutputItem::FunctionCall { id, name, arguments, status, .. }) = self.output.last_mut()
        else {
            return;
        };
        if *status == "in_progress" {
            *status = if cut { "incomplete" } else { "completed" };
            let fields =
                json!({ "item_id": id, "output_index": output_index, "name": name, "arguments": arguments });
            self.event("response.function_call_arguments.done", fields, out);
            self.item_done(out);
        }
    }
}

/// Returns the text of a message or reasoning item.
fn open_text(item: &OutputItem) -> Option<&OutputText> {
    match item {
        OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => content.last(),
        OutputItem::FunctionCall { .. } => None,
    }
}

impl StreamEncoder for ResponseEncoder {
    fn begin(&mut self, out: &mut Outbox) {
        self.response_event("response.created", out);
        self.response_event("response.in_progress", out);
    }

    fn on_event(&mut self, _: usize, event: ParsedEvent, out: &mut Outbox) {
        self.tracked.record(&event);
        let events = event.into_events();
        self.reasoning_tokens += usize::from(events.iter().any(|e| matches!(e, ReplyEvent::Reasoning(_))));
        events.into_iter().for_each(|event| self.on_reply_event(event, out));
        if self.tracked.stats.is_some() {
            self.close(out);
        }
    }

    fn end(&mut self, out: &mut Outbox) {
        let response = self.response();
        self.response_event(&format!("response.{}", response.status), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        let d = &error.detail;
        let fields = json!({ "code": d.code.unwrap_or(d.kind), "message": d.message, "param": d.param });
        self.event("error", fields, out);
    }
}

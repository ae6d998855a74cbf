//! `/v1/responses`: the chat in the form of items and events. What it means is [`request`]'s; here is how the answer
//! is told.

mod request;

use super::api::chat::ToolCall;
use super::api::responses::{
    Incomplete, Input, OutputDetails, OutputItem, OutputText, ResponseObject, ResponseRequest, ResponseUsage,
};
use super::app::{Answers, App, Ask};
use super::body::Body;
use super::errors::ApiError;
use super::markup::{Markup, Piece};
use super::outcome::{Head, failure, usage};
use super::owner::Owner;
use super::sse::{Outbox, Teller, respond};
use super::token::new_id;
use super::{chat, prepare};
use crate::generation::decoder::FinishReason;
use crate::generation::generate::Stats;
use crate::scheduler::Update;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Answers with the items that come next.
#[utoipa::path(
    post,
    path = "/v1/responses",
    request_body = ResponseRequest,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (ResponseObject = "application/json"),
            (crate::serve::api::schemas::Event = "text/event-stream"),
        )),
        super::api::schemas::Refusals,
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(owner): Extension<Owner>,
    body: Body,
) -> Result<Response, ApiError> {
    let preparing = app.clone();
    let prepared = app.intake.run(body.cost(), move |gone| prepare(&preparing, &body, owner, gone)).await;
    let (request, ask, markup, echo) = prepared??;
    let stream = request.stream.unwrap_or(false);
    let telling = Telling {
        head: Head::new(&app, "resp"),
        request,
        echo,
        prompt_tokens: ask.prompt.len(),
        markup,
        output: Vec::new(),
        events: 0,
        reasoning_tokens: 0,
        stats: None,
    };
    let answers = app.start(vec![ask], owner.0)?;
    if stream {
        return Ok(respond(answers, telling));
    }
    telling.whole(answers).await.map(|answer| Json(answer).into_response())
}

/// Fields that the answer repeats as they were given: as text, which takes a fraction of their values' memory while the
/// reply is made.
struct Echo {
    metadata: Box<RawValue>,
    tool_choice: Box<RawValue>,
    tools: Box<RawValue>,
}

impl Echo {
    /// Takes them out of a request, with what else is of no use after it was prepared.
    fn take(request: &mut ResponseRequest) -> Result<Self, ApiError> {
        request.input = Input::Text(String::new());
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

type Prepared = (ResponseRequest, Ask, Markup, Echo);

fn prepare(app: &App, body: &Body, owner: Owner, gone: &AtomicBool) -> Result<Prepared, ApiError> {
    let mut request: ResponseRequest = body.part()?;
    prepare::refuse_undone(body)?;
    let (mut meant, how) = request::chat(&request)?;
    let (ask, markup) = chat::plan(app, &mut meant, &how, owner, gone)?;
    let echo = Echo::take(&mut request)?;
    Ok((request, ask, markup, echo))
}

/// An answer on its way.
struct Telling {
    head: Head,
    request: ResponseRequest,
    echo: Echo,
    prompt_tokens: usize,
    markup: Markup,
    /// The last item may be under way.
    output: Vec<OutputItem>,
    /// Events told.
    events: usize,
    reasoning_tokens: usize,
    stats: Option<Stats>,
}

impl Telling {
    async fn whole(mut self, mut answers: Answers) -> Result<ResponseObject, ApiError> {
        let mut nobody = Outbox::default();
        while let Some(update) = answers.next().await {
            let (index, update) = update?;
            self.hear(index, update, &mut nobody)?;
            nobody.clear();
        }
        Ok(self.response())
    }

    fn response(&self) -> ResponseObject {
        let r = &self.request;
        let cut = self.cut();
        let status = match &self.stats {
            None => "in_progress",
            Some(_) if cut => "incomplete",
            Some(_) => "completed",
        };
        ResponseObject {
            id: self.head.id.clone(),
            object: "response",
            created_at: self.head.created,
            status,
            error: Value::Null,
            incomplete_details: cut.then_some(Incomplete { reason: "max_output_tokens" }),
            instructions: r.instructions.clone(),
            max_output_tokens: r.max_output_tokens,
            metadata: self.echo.metadata.clone(),
            model: self.head.model.clone(),
            output: self.output.clone(),
            parallel_tool_calls: r.parallel_tool_calls.unwrap_or(true),
            previous_response_id: None,
            store: false,
            temperature: r.temperature,
            tool_choice: self.echo.tool_choice.clone(),
            tools: self.echo.tools.clone(),
            top_p: r.top_p,
            truncation: "disabled",
            usage: self.stats.as_ref().map(|stats| self.usage(stats)),
        }
    }

    /// Whether the limit on tokens ended it.
    fn cut(&self) -> bool {
        self.stats.as_ref().is_some_and(|s| s.ended == FinishReason::Length)
    }

    fn usage(&self, stats: &Stats) -> ResponseUsage {
        let u = usage(self.prompt_tokens, 1, std::iter::once(stats));
        ResponseUsage {
            input_tokens: u.prompt_tokens,
            input_tokens_details: u.prompt_tokens_details,
            output_tokens: u.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: self.reasoning_tokens },
            total_tokens: u.total_tokens,
        }
    }

    /// Tells an event: its fields, its kind and its number.
    fn event(&mut self, kind: &str, mut fields: Value, out: &mut Outbox) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.events.into();
        self.events += 1;
        out.named(kind, &fields);
    }

    fn tell_response(&mut self, kind: &str, out: &mut Outbox) {
        let response = self.response();
        self.event(kind, json!({ "response": response }), out);
    }

    fn take(&mut self, piece: Piece, out: &mut Outbox) {
        match piece {
            Piece::Text(text) => self.add("output_text", &text, out),
            Piece::Reasoning(text) => self.add("reasoning_text", &text, out),
            Piece::Call(call) => self.call(call, out),
            Piece::Arguments(more) => self.arguments(&more, out),
        }
    }

    /// More text of a kind, in the item under way if it is of that kind.
    fn add(&mut self, kind: &'static str, more: &str, out: &mut Outbox) {
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
            let mut fields = self.place();
            fields["part"] = json!(text);
            self.content().push(text);
            self.event("response.content_part.added", fields, out);
        }
        self.content().iter_mut().for_each(|text| text.text.push_str(more));
        let mut fields = self.place();
        fields["delta"] = more.into();
        fields["logprobs"] = json!([]);
        self.event(&format!("response.{kind}.delta"), fields, out);
    }

    /// The texts of the item under way: one.
    fn content(&mut self) -> &mut Vec<OutputText> {
        match self.output.last_mut() {
            Some(OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. }) => content,
            _ => unreachable!("a text's item was just opened"),
        }
    }

    /// Where the text under way is.
    fn place(&self) -> Value {
        let id = match self.output.last() {
            Some(OutputItem::Message { id, .. } | OutputItem::Reasoning { id, .. }) => id.as_str(),
            _ => "",
        };
        json!({ "item_id": id, "output_index": self.output.len() - 1, "content_index": 0 })
    }

    /// Ends the item under way.
    fn close(&mut self, out: &mut Outbox) {
        self.close_call(out);
        let Some(text) = self.output.last().and_then(open_text).cloned() else { return };
        let mut fields = self.place();
        fields["text"] = text.text.as_str().into();
        fields["logprobs"] = json!([]);
        self.event(&format!("response.{}.done", text.kind), fields, out);
        let mut fields = self.place();
        fields["part"] = json!(text);
        self.event("response.content_part.done", fields, out);
        let cut = self.cut();
        if let Some(OutputItem::Message { status, .. }) = self.output.last_mut() {
            *status = if cut { "incomplete" } else { "completed" };
        }
        self.item_done(out);
    }

    fn item_done(&mut self, out: &mut Outbox) {
        let fields = json!({ "output_index": self.output.len() - 1, "item": self.output.last() });
        self.event("response.output_item.done", fields, out);
    }

    fn call(&mut self, call: ToolCall, out: &mut Outbox) {
        self.close(out);
        self.output.push(OutputItem::FunctionCall {
            id: new_id("fc"),
            call_id: call.id,
            name: call.function.name,
            arguments: String::new(),
            status: "in_progress",
        });
        let fields = json!({ "output_index": self.output.len() - 1, "item": self.output.last() });
        self.event("response.output_item.added", fields, out);
        if !call.function.arguments.is_empty() {
            self.arguments(&call.function.arguments, out);
        }
    }

    /// More arguments of the call under way.
    fn arguments(&mut self, more: &str, out: &mut Outbox) {
        let output_index = self.output.len().saturating_sub(1);
        let Some(OutputItem::FunctionCall { id, arguments, .. }) = self.output.last_mut() else { return };
        arguments.push_str(more);
        let fields = json!({ "item_id": id, "output_index": output_index, "delta": more });
        self.event("response.function_call_arguments.delta", fields, out);
    }

    /// Ends the call under way.
    fn close_call(&mut self, out: &mut Outbox) {
        let (output_index, cut) = (self.output.len().saturating_sub(1), self.cut());
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

/// The text of an item that more may be added to.
fn open_text(item: &OutputItem) -> Option<&OutputText> {
    match item {
        OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => content.last(),
        OutputItem::FunctionCall { .. } => None,
    }
}

impl Teller for Telling {
    fn begin(&mut self, out: &mut Outbox) {
        self.tell_response("response.created", out);
        self.tell_response("response.in_progress", out);
    }

    fn hear(&mut self, _: usize, update: Update, out: &mut Outbox) -> Result<(), ApiError> {
        let pieces = match update {
            Update::Read { .. } => return Ok(()),
            Update::Chosen { text, .. } => self.markup.push(&text),
            Update::Done(stats) => {
                failure(&stats)?;
                self.stats = Some(stats);
                self.markup.finish()
            }
        };
        self.reasoning_tokens += usize::from(pieces.iter().any(|p| matches!(p, Piece::Reasoning(_))));
        pieces.into_iter().for_each(|piece| self.take(piece, out));
        if self.stats.is_some() {
            self.close(out);
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Outbox) {
        let response = self.response();
        self.tell_response(&format!("response.{}", response.status), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        let d = &error.detail;
        let fields = json!({ "code": d.code.unwrap_or(d.kind), "message": d.message, "param": d.param });
        self.event("error", fields, out);
    }

    fn says_done(&self) -> bool {
        false
    }
}

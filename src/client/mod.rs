//! Models that reply to conversations, behind the trait [`ChatModel`]: [`local_model`] runs an engine in this process,
//! [`remote_model`] sends the conversation to an OpenAI-style [`endpoint`].

pub mod chat_model;
pub mod endpoint;
pub mod local_model;
pub mod remote_model;

pub use chat_model::{ChatModel, ModelEvent, ModelInfo, PromptMessage, ReplyOutcome, ReplyRequest};
pub use endpoint::EndpointArgs;
pub use local_model::LocalModel;
pub use remote_model::RemoteModel;

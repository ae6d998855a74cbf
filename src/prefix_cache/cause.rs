//! The causes of cache misses, which [`super::miss`] finds.

/// The cause for which tokens of a prompt were prefilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MissCause {
    /// No recent prompt is similar.
    New,
    /// The prompt continues an earlier one: only new tokens were prefilled.
    Continued,
    Tools,
    /// The system message at the start changed.
    System,
    /// A block of text moved from one message to another.
    Reminder,
    /// The messages agree, and the text of the template or its variables do not.
    Template,
    /// Messages were removed between others.
    Trimmed,
    /// A message differs from the one that was sent before.
    Message,
    /// The same text in other tokens.
    Tokenization,
    /// The text of a prompt without messages changed.
    Text,
    /// The tokens agree, but their snapshot was evicted.
    Evicted,
    /// The tokens agree, but a snapshot exists only at an earlier length.
    Interval,
    /// The prompt is cached for another model, or for another version of this program.
    Model,
    /// The prompt is cached with another data type of the KV cache.
    CacheType,
}

impl MissCause {
    /// The name in logs, responses and metrics.
    pub fn name(self) -> &'static str {
        match self {
            MissCause::New => "new",
            MissCause::Continued => "continued",
            MissCause::Tools => "tools",
            MissCause::System => "system",
            MissCause::Reminder => "reminder",
            MissCause::Template => "template",
            MissCause::Trimmed => "trimmed",
            MissCause::Message => "message",
            MissCause::Tokenization => "tokenization",
            MissCause::Text => "text",
            MissCause::Evicted => "evicted",
            MissCause::Interval => "interval",
            MissCause::Model => "model",
            MissCause::CacheType => "cache_type",
        }
    }
}

//! The command-line options of an upstream server.

use crate::client::endpoint::{Endpoint, EndpointSettings};
use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;

/// Where users set the upstream server, for messages.
const SETTINGS: EndpointSettings =
    EndpointSettings { url: "--upstream", model: "--upstream-model", key: "KIMI_UPSTREAM_KEY" };

/// Options that select an upstream server.
#[derive(Clone, Debug, clap::Args)]
pub struct UpstreamArgs {
    /// Forward chats to this OpenAI-style server (vLLM, SGLang, llama.cpp, ...) instead of loading a model
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    pub upstream: Option<String>,
    /// Model of the upstream server (default: the only one that it lists)
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub upstream_model: Option<String>,
    /// API key for the upstream server. Other users can see it in the process list; KIMI_UPSTREAM_KEY hides it
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    pub upstream_key: Option<String>,
    /// Seconds without data from the upstream server after which a request fails
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub upstream_timeout: u64,
}

impl UpstreamArgs {
    /// Options for a server at `url`.
    pub fn at(url: &str) -> Self {
        UpstreamArgs {
            upstream: Some(url.to_owned()),
            upstream_model: None,
            upstream_key: None,
            upstream_timeout: 600,
        }
    }

    /// Returns the endpoint of the upstream server, if there is one.
    pub fn endpoint(&self) -> Result<Option<Endpoint>> {
        let endpoint = |url: &String| {
            Endpoint::with_settings(SETTINGS, url, self.upstream_key.clone(), self.upstream_timeout)
        };
        self.upstream.as_ref().map(endpoint).transpose()
    }
}

//! The models that an endpoint lists, and token counts of prompts.

use super::Endpoint;
use super::errors::{EndpointError, EndpointFault, truncate};
use anyhow::{Result, bail};
use serde_json::Value;
use std::time::Duration;

/// Maximum bytes of the list of models.
const MAX_MODELS_BYTES: u64 = 4 << 20;

/// Maximum time for the list at the start of a command.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum bytes of a token count.
const MAX_COUNT_BYTES: u64 = 4096;

/// A model that an endpoint lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedModel {
    pub id: String,
    /// `owned_by`, by which engines give their name.
    pub owner: String,
    /// Context length in tokens, if the endpoint reports it.
    pub context: Option<u64>,
}

impl Endpoint {
    /// Returns the model's context length, if the endpoint reports it. Fails if the endpoint lacks the model.
    pub fn context(&self) -> Result<Option<u64>> {
        let Some(models) = self.list(self.text_timeout)? else { return Ok(None) };
        self.find(models).map(|model| model.context)
    }

    /// Selects the model of this name, or the only one that the endpoint lists.
    ///
    /// # Errors
    /// The endpoint does not answer, lacks the model, or lists no or several models and there is no name.
    pub fn select(&mut self, name: Option<&str>) -> Result<ListedModel> {
        let option = self.settings.model;
        let models = self.list(self.text_timeout.min(LIST_TIMEOUT))?;
        let model = match (name, models) {
            (Some(name), models) => {
                name.clone_into(&mut self.model);
                self.find(models.unwrap_or_default())?
            }
            (None, Some(mut models)) if models.len() == 1 => models.remove(0),
            (None, Some(models)) if !models.is_empty() => {
                bail!("{}: expected {option} with one of {}", self.base, ids(&models))
            }
            (None, _) => bail!("{}: lists no models, set {option}", self.base),
        };
        self.model.clone_from(&model.id);
        self.owner.clone_from(&model.owner);
        Ok(model)
    }

    /// Lists the endpoint's models. The list is empty if the endpoint has none, which may still support chat completions.
    pub fn models(&self) -> Result<Vec<ListedModel>> {
        Ok(self.list(self.text_timeout)?.unwrap_or_default())
    }

    /// Returns the status that a `kimi serve` at this address reports, such as `ready` or `loading`; `None` for no server
    /// and for other servers.
    pub fn kimi_status(&self) -> Option<String> {
        let request =
            self.authorized(self.agent.get(format!("{}/health", self.base.trim_end_matches("/v1"))));
        let request = request.config().timeout_global(Some(self.text_timeout)).build();
        let mut response = request.call().ok()?;
        let body = response.body_mut().with_config().limit(MAX_COUNT_BYTES).read_to_string().ok()?;
        let status: Value = serde_json::from_str(&body).ok()?;
        Some(status["status"].as_str()?.to_owned())
    }

    /// Returns the selected model of a list; an empty list has every model.
    fn find(&self, models: Vec<ListedModel>) -> Result<ListedModel> {
        let unknown = || ListedModel { id: self.model.clone(), ..ListedModel::default() };
        if models.is_empty() {
            return Ok(unknown());
        }
        let all = ids(&models);
        match models.into_iter().find(|model| model.id == self.model) {
            Some(model) => Ok(model),
            None => bail!("{}: expected the model {:?}, found {all}", self.base, self.model),
        }
    }

    /// Returns the models, or None if the endpoint has no list: it may support chat completions without one.
    pub fn list(&self, timeout: Duration) -> Result<Option<Vec<ListedModel>>, EndpointError> {
        let request = self.authorized(self.agent.get(format!("{}/models", self.base)));
        let request = request.config().timeout_global(Some(timeout)).build();
        let late = |e| self.failed_within(e, timeout);
        let mut response = request.call().map_err(late)?;
        if response.status() == 404 {
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(EndpointError::of_response(self, &mut response));
        }
        let body = response.body_mut().with_config().limit(MAX_MODELS_BYTES);
        let text = body.read_to_string().map_err(late)?;
        let list: Value = serde_json::from_str(&text).map_err(|e| {
            let message = format!("{}/models: expected a JSON list of models: {e}", self.base);
            EndpointError::new(EndpointFault::Response, message)
        })?;
        let models = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(Some(models.iter().filter_map(ListedModel::parse).collect()))
    }
}

impl Endpoint {
    /// Counts the tokens of a request of Anthropic's interface. None if the endpoint cannot.
    pub fn count_tokens(&self, body: &str) -> Result<Option<usize>, EndpointError> {
        let request = self.agent.post(format!("{}/messages/count_tokens", self.base));
        let request = self.authorized(request.content_type("application/json"));
        let request = request.config().timeout_global(Some(self.text_timeout)).build();
        let mut response = request.send(body).map_err(|e| self.failed(e))?;
        if [404, 405, 501].contains(&response.status().as_u16()) {
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(EndpointError::of_response(self, &mut response));
        }
        let body = response.body_mut().with_config().limit(MAX_COUNT_BYTES);
        let text = body.read_to_string().map_err(|e| self.failed(e))?;
        let count: Value = serde_json::from_str(&text).unwrap_or_default();
        let count = count["input_tokens"].as_u64().and_then(|count| usize::try_from(count).ok());
        let missing = || {
            let message = format!("{}/messages/count_tokens: expected input_tokens, found none", self.base);
            EndpointError::new(EndpointFault::Response, message)
        };
        count.map(Some).ok_or_else(missing)
    }
}

impl ListedModel {
    fn parse(model: &Value) -> Option<Self> {
        // The names in vLLM, kimi and llama.cpp.
        let places = ["/max_model_len", "/context_length", "/meta/n_ctx"];
        Some(ListedModel {
            id: model["id"].as_str()?.to_owned(),
            owner: model["owned_by"].as_str().unwrap_or_default().to_owned(),
            context: places.iter().find_map(|place| model.pointer(place)?.as_u64()),
        })
    }
}

fn ids(models: &[ListedModel]) -> String {
    let ids: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    truncate(&ids.join(", "))
}

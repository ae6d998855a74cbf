//! Selects the architecture of a file by `general.architecture`.
//!
//! This is the one place that lists the architectures: an architecture reads its hyperparameters and loads its mixers, and
//! everything else is [`crate::hybrid`]'s. Next: [`crate::kimi_linear`], [`crate::ling`].

use crate::gguf::{Error, Metadata, Value, read::Gguf};
use crate::hybrid::Model;
use crate::hybrid::config::Config;
use crate::{kimi_linear, ling};
use kernels::backend::Backend;

/// Architectures that run, as `general.architecture` names them.
pub const ARCHITECTURES: [&str; 2] = [kimi_linear::ARCHITECTURE, ling::ARCHITECTURE];

impl Config {
    /// Reads the hyperparameters of an opened file. Errors name the key, the expected and the found value.
    pub fn from_gguf(file: &Gguf) -> Result<Config, Error> {
        Config::from_metadata(&path_of(file), &file.metadata)
    }

    /// Reads the hyperparameters from metadata; `path` is used in messages.
    ///
    /// # Errors
    /// A missing or invalid key.
    pub fn from_metadata(path: &str, metadata: &Metadata) -> Result<Config, Error> {
        match metadata.get("general.architecture") {
            Some(Value::String(name)) if name == ling::ARCHITECTURE => {
                Ok(ling::Ling::from_metadata(path, metadata)?.config)
            }
            Some(Value::String(name)) if name == kimi_linear::ARCHITECTURE => {
                kimi_linear::config(path, metadata)
            }
            other => {
                let expected = ARCHITECTURES.join(" or ");
                Err(Error::bad(path, "general.architecture", expected, Value::describe(other)))
            }
        }
    }
}

impl<B: Backend> Model<B> {
    /// Loads the weights of a file to the backend. A model that loads also runs.
    ///
    /// # Errors
    /// Sizes above the backend's limits, or a tensor whose shape or format differs from what the metadata implies.
    pub fn load(b: &B, file: &Gguf) -> Result<Self, Error> {
        let config = Config::from_gguf(file)?;
        if config.architecture == ling::ARCHITECTURE {
            let ling = ling::Ling::from_metadata(&path_of(file), &file.metadata)?;
            return Model::load_with(b, file, config, ling.output(file), |from, layer| {
                ling.mixer(from, layer)
            });
        }
        let c = config.clone();
        Model::load_with(b, file, config, "output.weight", |from, layer| kimi_linear::mixer(from, &c, layer))
    }
}

fn path_of(file: &Gguf) -> String {
    file.paths().first().map(|p| p.display().to_string()).unwrap_or_default()
}

//! Selects the architecture of a file by `general.architecture`.
//!
//! This is the one place that lists the architectures: an architecture reads its hyperparameters and loads its mixers, and
//! everything else is [`crate::hybrid`]'s. Next: [`crate::kimi_linear`], [`crate::ling`].

use crate::gguf::{Error, Metadata, Value, read::Gguf};
use crate::hybrid::Model;
use crate::hybrid::config::Config;
use crate::kimi_linear;
use crate::ling::{self, Ling};
use crate::text_spec::TextSpec;
use kernels::backend::Backend;

/// Architectures that run, as `general.architecture` names them.
pub const ARCHITECTURES: [&str; 2] = [kimi_linear::ARCHITECTURE, ling::ARCHITECTURE];

/// The text specs of their vocabularies and chat templates; the first is the default.
pub(crate) static TEXT_SPECS: [TextSpec; 2] = [kimi_linear::TEXT, ling::TEXT];

/// The hyperparameters of a file by its architecture.
enum Architecture {
    KimiLinear(Config),
    Ling(Ling),
}

impl Architecture {
    fn from_metadata(path: &str, metadata: &Metadata) -> Result<Architecture, Error> {
        match metadata.get("general.architecture") {
            Some(Value::String(name)) if name == kimi_linear::ARCHITECTURE => {
                Ok(Architecture::KimiLinear(kimi_linear::config(path, metadata)?))
            }
            Some(Value::String(name)) if name == ling::ARCHITECTURE => {
                Ok(Architecture::Ling(Ling::from_metadata(path, metadata)?))
            }
            other => {
                let expected = ARCHITECTURES.join(" or ");
                Err(Error::bad(path, "general.architecture", expected, Value::describe(other)))
            }
        }
    }

    fn into_config(self) -> Config {
        match self {
            Architecture::KimiLinear(config) => config,
            Architecture::Ling(ling) => ling.config,
        }
    }
}

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
        Ok(Architecture::from_metadata(path, metadata)?.into_config())
    }
}

impl<B: Backend> Model<B> {
    /// Loads the weights of a file to the backend. A model that loads also runs.
    ///
    /// # Errors
    /// Sizes above the backend's limits, or a tensor whose shape or format differs from what the metadata implies.
    pub fn load(b: &B, file: &Gguf) -> Result<Self, Error> {
        load(b, file, None)
    }

    /// Loads one layer between the embedding and the output of the first [`LAYER_VOCAB`](crate::hybrid::LAYER_VOCAB)
    /// tokens, for checks of a device.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_layer(b: &B, file: &Gguf, layer: usize) -> Result<Self, Error> {
        load(b, file, Some(layer))
    }
}

fn load<B: Backend>(b: &B, file: &Gguf, only: Option<usize>) -> Result<Model<B>, Error> {
    match Architecture::from_metadata(&path_of(file), &file.metadata)? {
        Architecture::KimiLinear(config) => {
            Model::load_with(b, file, &config, "output.weight", only, |from, kind| {
                kimi_linear::mixer(from, &config, kind)
            })
        }
        Architecture::Ling(ling) => {
            Model::load_with(b, file, &ling.config, ling.output(file), only, |from, kind| {
                ling.mixer(from, kind)
            })
        }
    }
}

fn path_of(file: &Gguf) -> String {
    file.paths().first().map(|p| p.display().to_string()).unwrap_or_default()
}

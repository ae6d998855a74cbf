//! Defines Kimi Linear (arXiv 2510.26692): its hyperparameters and the mixers of its layers.
//!
//! Three Kimi Delta Attention layers alternate with one NoPE MLA layer; the first layers have an MLP, all others a mixture
//! of experts. The graph around the mixers is [`crate::hybrid`]'s. Next: [`kda`], then [`mla`]; [`text`].

pub mod kda;
pub mod mla;
mod text;

pub(crate) use text::TEXT;

use crate::gguf::{Error, Metadata};
use crate::hybrid::Mixer;
use crate::hybrid::config::{Config, MixerKind};
use crate::hybrid::keys::Keys;
use crate::hybrid::weights::Loader;
use kernels::backend::Backend;

/// The value of `general.architecture`, and the prefix of its keys.
pub const ARCHITECTURE: &str = "kimi-linear";

/// Reads the hyperparameters of a file; `path` is used in messages.
pub(crate) fn config(path: &str, metadata: &Metadata) -> Result<Config, Error> {
    let keys = Keys { path, metadata, architecture: ARCHITECTURE };
    let kda_heads = match keys.get("kda.head_count") {
        None => keys.count("attention.head_count")?,
        Some(_) => keys.count("kda.head_count")?,
    };
    let shared_hidden = match keys.count_or("expert_shared_count", 0)? {
        0 => 0,
        shared => shared * keys.expert_hidden()?,
    };
    keys.config(keys.block_count()?, kda_heads, shared_hidden)
}

/// Loads the mixer of a layer of this kind.
pub(crate) fn mixer<B: Backend>(
    from: &Loader<'_, B>,
    c: &Config,
    kind: MixerKind,
) -> Result<Mixer<B>, Error> {
    Ok(match kind {
        MixerKind::Kda => Mixer::Kda(Box::new(kda::Kda::load(from, c)?)),
        MixerKind::Mla => Mixer::Mla(Box::new(mla::Mla::load(from, c)?)),
    })
}

//! The compatibility key of cached states: model, data types, prompt layout, and numerics up to the rounding of the
//! device. Next: [`super::fingerprint`].

use super::Sizes;
use super::file::{Id, id_of};
use super::fingerprint::Fingerprint;
use super::state_dtype::StateType;
use crate::io::log::Log;
use kernels::backend::{Backend, CacheFormat};
use std::sync::OnceLock;

/// How prompts are laid out, which the attention path of a token depends on: snapshots of one layout are not used by
/// another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptLayout {
    /// One conversation or one text.
    #[default]
    One,
    /// Documents followed by a question.
    Ask,
}

/// The key of a model's snapshots, computed once the model's fingerprint is known.
#[derive(Debug)]
pub struct CacheKey {
    fingerprint: Fingerprint,
    settings: String,
    id: OnceLock<Id>,
}

impl CacheKey {
    /// The chat template is not part of the key, because snapshots are found by token ids. The version is, because
    /// another build may round differently.
    pub fn new<B: Backend>(
        fingerprint: Fingerprint,
        cache: CacheFormat,
        sizes: Sizes,
        (state, layout): (StateType, PromptLayout),
    ) -> CacheKey {
        let (version, backend) = (env!("CARGO_PKG_VERSION"), B::NUMERICS_VERSION);
        let settings = format!("{version} {backend} {cache:?} {sizes:?} {state:?} {layout:?}");
        CacheKey { fingerprint, settings, id: OnceLock::new() }
    }

    /// Adds the ids that open a reply if they differ from those of the model file's template: the attention path of a
    /// token depends on them.
    pub fn with_reply_prefix(mut self, reply_prefix_ids: Option<&[u32]>) -> CacheKey {
        if let Some(ids) = reply_prefix_ids {
            self.settings.push_str(&format!(" {ids:?}"));
        }
        self
    }

    /// Creates a fixed key of synthetic states, for measurements.
    pub fn known(id: Id) -> CacheKey {
        CacheKey { fingerprint: Fingerprint::default(), settings: String::new(), id: OnceLock::from(id) }
    }

    /// Returns whether [`CacheKey::get`] is cheap or, if `worth` is set, worth its time: see [`Fingerprint::for_lookup`].
    pub fn is_ready(&self, worth: bool, log: &Log) -> bool {
        self.id.get().is_some() || self.fingerprint.for_lookup(worth, log).is_some()
    }

    /// Returns the key of the same model with another data type of the KV cache.
    pub fn with_cache(&self, own: (CacheFormat, Sizes), other: (CacheFormat, Sizes), log: &Log) -> Id {
        let [own, other] = [own, other].map(|(cache, sizes)| format!(" {cache:?} {sizes:?} "));
        self.hash(&self.settings.replacen(&own, &other, 1), log)
    }

    fn hash(&self, settings: &str, log: &Log) -> Id {
        let mut hash = blake3::Hasher::new();
        hash.update(settings.as_bytes()).update(&self.fingerprint.get(log).to_le_bytes());
        id_of(&hash)
    }

    /// Returns the key. Reads the whole model if its fingerprint is unknown.
    pub fn get(&self, log: &Log) -> Id {
        *self.id.get_or_init(|| self.hash(&self.settings, log))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kernels::cpu::Cpu;
    use kernels::quant::Format;
    use kernels::reference::Reference;
    use models::gguf::read::Gguf;
    use models::gguf::write::Layout;
    use models::gguf::{Metadata, Value};
    use std::path::Path;

    /// A model file with one tensor and this name.
    fn file(name: &str, bytes: &[u8]) -> Gguf {
        let metadata = Metadata(vec![("general.name".into(), Value::String(name.into()))]);
        let layout = Layout::new(metadata, vec![("x".into(), Format::F32, vec![bytes.len() as u64 / 4])]);
        let whole = [layout.unwrap().header(), bytes].concat();
        Gguf::from_bytes("x", Bytes::from(whole)).unwrap()
    }

    fn key<B: Backend>(file: &Gguf, cache: CacheFormat, state: StateType, layout: PromptLayout) -> Id {
        let sizes = Sizes { recurrent: 1, row: 2, logits: 3 };
        let fingerprint = Fingerprint::new(file, Path::new("/"));
        let log: Log = Box::new(|_| ());
        CacheKey::new::<B>(fingerprint, cache, sizes, (state, layout)).get(&log)
    }

    #[test]
    fn models_formats_readers_and_backends_count() {
        let zeros = vec![0; 40_000];
        let mut changed = zeros.clone();
        changed[39_999] = 1;
        let model = file("a", &zeros);
        let keys = [
            key::<Cpu>(&model, CacheFormat::F16, StateType::F32, PromptLayout::One),
            key::<Cpu>(&model, CacheFormat::Q8_0, StateType::F32, PromptLayout::One),
            key::<Cpu>(&model, CacheFormat::F16, StateType::F16, PromptLayout::One),
            key::<Cpu>(&model, CacheFormat::F16, StateType::F32, PromptLayout::Ask),
            key::<Reference>(&model, CacheFormat::F16, StateType::F32, PromptLayout::One),
            key::<Cpu>(&file("b", &zeros), CacheFormat::F16, StateType::F32, PromptLayout::One),
            key::<Cpu>(&file("a", &changed), CacheFormat::F16, StateType::F32, PromptLayout::One),
            key::<Cpu>(&file("a", &zeros[..39_996]), CacheFormat::F16, StateType::F32, PromptLayout::One),
        ];
        let unlike: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(unlike.len(), keys.len());
        let opened = |ids: Option<&[u32]>| CacheKey::known(7).with_reply_prefix(ids).settings;
        assert_eq!(opened(None), "");
        assert_ne!(opened(Some(&[1])), opened(Some(&[2])));
        let again = key::<Cpu>(&file("a", &zeros), CacheFormat::F16, StateType::F32, PromptLayout::One);
        assert_eq!(again, keys[0]);
    }
}

//! The compatibility keys of cached states, one for each prompt layout: model, data types, and numerics up to the rounding of
//! the device. Next: [`super::fingerprint`].

use super::Sizes;
use super::file::{Id, id_of};
use super::fingerprint::Fingerprint;
use super::namespace::PromptLayout;
use super::state_dtype::StateType;
use crate::io::log::Log;
use kernels::backend::{Backend, CacheFormat};
use std::sync::OnceLock;

/// The keys of a model's snapshots, computed once the model's fingerprint is known.
#[derive(Debug)]
pub struct CacheKey {
    fingerprint: Fingerprint,
    settings: String,
    /// The part of the settings after the layout.
    reply_prefix: String,
    /// The keys of the layouts in the order of the enum.
    ids: [OnceLock<Id>; 2],
}

impl CacheKey {
    /// The chat template is not part of the key, because snapshots are found by token ids. The version is, because
    /// another build may round differently.
    pub fn new<B: Backend>(
        fingerprint: Fingerprint,
        cache: CacheFormat,
        sizes: Sizes,
        state: StateType,
    ) -> CacheKey {
        let (version, backend) = (env!("CARGO_PKG_VERSION"), B::NUMERICS_VERSION);
        let settings = format!("{version} {backend} {cache:?} {sizes:?} {state:?}");
        CacheKey { fingerprint, settings, reply_prefix: String::new(), ids: Default::default() }
    }

    /// Adds the ids that open a reply if they differ from those of the model file's template: the attention path of a
    /// token depends on them.
    pub fn with_reply_prefix(mut self, reply_prefix_ids: Option<&[u32]>) -> CacheKey {
        if let Some(ids) = reply_prefix_ids {
            self.reply_prefix = format!(" {ids:?}");
        }
        self
    }

    /// Creates a fixed key of synthetic states, for measurements.
    pub fn known(id: Id) -> CacheKey {
        CacheKey {
            fingerprint: Fingerprint::default(),
            settings: String::new(),
            reply_prefix: String::new(),
            ids: [OnceLock::from(id), OnceLock::from(!id)],
        }
    }

    /// Returns whether [`CacheKey::get`] is cheap or, if `worth` is set, worth its time: see [`Fingerprint::for_lookup`].
    pub fn is_ready(&self, worth: bool, log: &Log) -> bool {
        self.ids.iter().any(|id| id.get().is_some()) || self.fingerprint.for_lookup(worth, log).is_some()
    }

    /// Returns the key of the same model and layout with another data type of the KV cache.
    pub fn with_cache(
        &self,
        layout: PromptLayout,
        own: (CacheFormat, Sizes),
        other: (CacheFormat, Sizes),
        log: &Log,
    ) -> Id {
        let [own, other] = [own, other].map(|(cache, sizes)| format!(" {cache:?} {sizes:?} "));
        self.hash(&self.settings.replacen(&own, &other, 1), layout, log)
    }

    fn hash(&self, settings: &str, layout: PromptLayout, log: &Log) -> Id {
        let settings = format!("{settings} {layout:?}{}", self.reply_prefix);
        let mut hash = blake3::Hasher::new();
        hash.update(settings.as_bytes()).update(&self.fingerprint.get(log).to_le_bytes());
        id_of(&hash)
    }

    /// Returns the key of a layout. Reads the whole model if its fingerprint is unknown.
    pub fn get(&self, layout: PromptLayout, log: &Log) -> Id {
        *self.ids[layout as usize].get_or_init(|| self.hash(&self.settings, layout, log))
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
        CacheKey::new::<B>(fingerprint, cache, sizes, state).get(layout, &log)
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
        let opened = |ids: Option<&[u32]>| CacheKey::known(7).with_reply_prefix(ids).reply_prefix;
        assert_eq!(opened(None), "");
        assert_ne!(opened(Some(&[1])), opened(Some(&[2])));
        let again = key::<Cpu>(&file("a", &zeros), CacheFormat::F16, StateType::F32, PromptLayout::One);
        assert_eq!(again, keys[0]);
    }
}

//! What states may be used with: the same model, formats and reader, arithmetic that differs by the device's rounding at
//! most. Next: [`super::disk`].

use super::Sizes;
use super::file::Id;
use super::state_type::StateType;
use crate::form::Reader;
use kernels::backend::{Backend, CacheFormat};
use models::gguf::read::Gguf;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Bytes hashed of each tensor: one page of memory.
const SAMPLE: usize = 4096;

/// The key of snapshots of a model. The prompt's template needs no place in it: token ids are compared, and they
/// are what a template makes. The version is there because another build may round otherwise.
pub fn key<B: Backend>(
    file: &Gguf,
    cache: CacheFormat,
    sizes: Sizes,
    (state, reader): (StateType, Reader),
) -> Id {
    let version = env!("CARGO_PKG_VERSION");
    let text =
        format!("{version} {} {cache:?} {sizes:?} {state:?} {reader:?} {:032x}", B::NAME, fingerprint(file));
    xxh3_128(text.as_bytes())
}

/// The key where replies begin with these ids and not as the model file's own template begins them: the attention path
/// of a token depends on that.
pub fn with_opening(key: Id, opening: Option<&[u32]>) -> Id {
    opening.map_or(key, |ids| xxh3_128(format!("{key:032x} {ids:?}").as_bytes()))
}

/// Tells models apart without reading them: the header with all names, shapes and hyperparameters, the size, and a
/// page from the middle of each tensor. Another training changes every tensor it touches, and with it nearly
/// every page; 610 pages of the real model are read in a tenth of a second where all of it takes half a minute.
/// What escapes is a tensor changed in a part that leaves out its middle: nobody's way of making a model.
fn fingerprint(file: &Gguf) -> Id {
    let mut hash = Xxh3::new();
    file.headers().for_each(|header| hash.update(header));
    hash.update(&file.file_bytes().to_le_bytes());
    for tensor in &file.tensors {
        let bytes = file.bytes(tensor);
        let middle = bytes.len() / 2 / SAMPLE * SAMPLE;
        hash.update(&bytes[middle..bytes.len().min(middle + SAMPLE)]);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::quant::Format;
    use models::gguf::write::{Layout, Writer};
    use models::gguf::{Metadata, Value};

    /// A file of one tensor and its name.
    fn file(name: &str, bytes: &[u8]) -> Gguf {
        let dir = tempfile::tempdir().unwrap();
        let metadata = Metadata(vec![("general.name".into(), Value::String(name.into()))]);
        let layout = Layout::new(metadata, vec![("x".into(), Format::F32, vec![bytes.len() as u64 / 4])]);
        let mut writer = Writer::create(dir.path().join("x"), layout.unwrap()).unwrap();
        writer.write(bytes).unwrap();
        writer.finish().unwrap();
        Gguf::open(dir.path().join("x")).unwrap()
    }

    #[test]
    fn models_differ_by_name_and_by_weights() {
        let zeros = vec![0; 40_000];
        let mut changed = zeros.clone();
        changed[20_000] = 1;
        let one = fingerprint(&file("a", &zeros));
        assert_eq!(one, fingerprint(&file("a", &zeros)));
        assert_ne!(one, fingerprint(&file("b", &zeros)));
        assert_ne!(one, fingerprint(&file("a", &changed)));
        assert_ne!(one, fingerprint(&file("a", &zeros[..39_996])));
    }

    #[test]
    fn the_formats_and_the_backend_count() {
        let sizes = Sizes { recurrent: 1, row: 2, logits: 3 };
        let file = file("a", &[0; 64]);
        let one = key::<kernels::cpu::Cpu>(&file, CacheFormat::F16, sizes, (StateType::F32, Reader::One));
        assert_ne!(
            one,
            key::<kernels::cpu::Cpu>(&file, CacheFormat::Q8_0, sizes, (StateType::F32, Reader::One))
        );
        assert_ne!(
            one,
            key::<kernels::cpu::Cpu>(&file, CacheFormat::F16, sizes, (StateType::F16, Reader::One))
        );
        assert_ne!(
            one,
            key::<kernels::cpu::Cpu>(&file, CacheFormat::F16, sizes, (StateType::F32, Reader::Ask))
        );
        assert_ne!(
            one,
            key::<kernels::reference::Reference>(
                &file,
                CacheFormat::F16,
                sizes,
                (StateType::F32, Reader::One)
            )
        );
        assert_eq!(
            one,
            key::<kernels::cpu::Cpu>(&file, CacheFormat::F16, sizes, (StateType::F32, Reader::One))
        );
    }
}

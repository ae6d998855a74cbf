//! Reads and writes the GGUF form: F32 tensors `NAME.in_sum2` (columns x matrices) and `NAME.counts` (1 x matrices).
//!
//! Tensors of other names are ignored, as llama.cpp does; recent versions also write `NAME.in_sum`.

use super::{Imatrix, ImatrixEntry};
use crate::error::{Error, Result};
use kernels::quant::Format;
use models::gguf::read::Gguf;
use models::gguf::write::{Layout, Writer};
use models::gguf::{Array, Metadata, TensorInfo, Value};
use std::collections::BTreeMap;
use std::path::Path;

const TYPE: &str = "general.type";
const IMATRIX: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const TENSORS: &str = "kimi.sensitivity.tensors";
const SENSITIVITIES: &str = "kimi.sensitivity.values";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

pub(super) fn read(listing: &str, file: &Gguf) -> Result<Imatrix> {
    let kind = file.metadata.str(TYPE).unwrap_or("none");
    if kind != IMATRIX {
        return Err(Error::bad(listing, TYPE, IMATRIX, kind));
    }
    let datasets = match file.metadata.get(DATASETS) {
        Some(Value::Array(Array::String(names))) => names.clone(),
        _ => Vec::new(),
    };
    let number = |key: &str| file.metadata.get(key).and_then(Value::as_u64);
    let (chunk_count, chunk_size) = (number(CHUNK_COUNT), number(CHUNK_SIZE));
    let mut imatrix = Imatrix {
        listing: listing.to_owned(),
        datasets,
        chunk_count,
        chunk_size,
        entries: BTreeMap::new(),
        sensitivities: sensitivities(listing, &file.metadata)?,
    };
    let mut pairs: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    for tensor in &file.tensors {
        for (i, suffix) in [SUMS, COUNTS].into_iter().enumerate() {
            if let Some(name) = tensor.name.strip_suffix(suffix) {
                pairs.entry(name).or_default()[i] = Some(tensor);
            }
        }
    }
    if pairs.is_empty() {
        let expected = format!("tensors NAME{SUMS} and NAME{COUNTS}");
        return Err(Error::bad(imatrix.listing, "tensors", expected, "none"));
    }
    for (name, [sums, counts]) in pairs {
        let values = |tensor: Option<&TensorInfo>, suffix: &str| match tensor {
            Some(tensor) => floats(&imatrix.listing, file, tensor),
            None => Err(Error::bad(&imatrix.listing, format!("{name}{suffix}"), "a tensor", "none")),
        };
        let entry = ImatrixEntry { sums: values(sums, SUMS)?, counts: values(counts, COUNTS)? };
        imatrix.add(name, entry)?;
    }
    Ok(imatrix)
}

fn sensitivities(listing: &str, metadata: &Metadata) -> Result<BTreeMap<String, f32>> {
    let (names, values) = match (metadata.get(TENSORS), metadata.get(SENSITIVITIES)) {
        (None, None) => return Ok(BTreeMap::new()),
        (Some(Value::Array(Array::String(names))), Some(Value::Array(Array::F32(values))))
            if names.len() == values.len() =>
        {
            (names, values)
        }
        _ => {
            return Err(Error::bad(
                listing,
                SENSITIVITIES,
                format!("a number for each of {TENSORS}"),
                "others",
            ));
        }
    };
    match values.iter().position(|x| !x.is_finite() || *x < 0.0) {
        Some(at) => {
            let found = format!("{} at {at}", values[at]);
            Err(Error::bad(listing, SENSITIVITIES, "finite numbers of at least 0", found))
        }
        None => Ok(names.iter().cloned().zip(values.iter().copied()).collect()),
    }
}

fn floats(listing: &str, file: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>> {
    if tensor.format != Format::F32 {
        return Err(Error::bad(listing, &tensor.name, "F32", tensor.format.name()));
    }
    Ok(file.bytes(tensor).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

pub(super) fn write(imatrix: &Imatrix, path: &Path) -> Result<()> {
    let mut metadata = Metadata::default();
    metadata.set(TYPE, Value::String(IMATRIX.to_owned()));
    metadata.set(DATASETS, Value::Array(Array::String(imatrix.datasets.clone())));
    let numbers = [(CHUNK_COUNT, imatrix.chunk_count), (CHUNK_SIZE, imatrix.chunk_size)];
    for (key, number) in numbers {
        if let Some(number) = number {
            metadata.set(key, Value::U32(u32::try_from(number).unwrap_or(u32::MAX)));
        }
    }
    if !imatrix.sensitivities.is_empty() {
        let names = imatrix.sensitivities.keys().cloned().collect();
        let values = imatrix.sensitivities.values().copied().collect();
        metadata.set(TENSORS, Value::Array(Array::String(names)));
        metadata.set(SENSITIVITIES, Value::Array(Array::F32(values)));
    }
    let mut tensors = Vec::new();
    for (name, entry) in &imatrix.entries {
        let matrices = entry.counts.len() as u64;
        let cols = entry.sums.len() as u64 / matrices;
        tensors.push((format!("{name}{SUMS}"), Format::F32, vec![cols, matrices]));
        tensors.push((format!("{name}{COUNTS}"), Format::F32, vec![1, matrices]));
    }
    let mut writer = Writer::create(path, Layout::new(metadata, tensors)?)?;
    for values in imatrix.entries.values().flat_map(|entry| [&entry.sums, &entry.counts]) {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&bytes)?;
    }
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Imatrix {
        let entry =
            |sums: &[f32], counts: &[f32]| ImatrixEntry { sums: sums.to_vec(), counts: counts.to_vec() };
        Imatrix {
            listing: "x".into(),
            datasets: vec!["a text".into()],
            chunk_count: Some(3),
            chunk_size: Some(512),
            entries: BTreeMap::from([
                ("blk.0.attn_q.weight".into(), entry(&[1.0, 2.5], &[1536.0])),
                ("blk.1.ffn_up_exps.weight".into(), entry(&[1.0, 2.0, 0.0, 0.0], &[7.0, 0.0])),
            ]),
            sensitivities: BTreeMap::from([("output.weight".into(), 0.25)]),
        }
    }

    #[test]
    fn a_written_file_reads_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        sample().write(&path).unwrap();
        let read = Imatrix::open(&path).unwrap();
        assert_eq!(Imatrix { listing: "x".into(), ..read }, sample());
        let file = Gguf::open(&path).unwrap();
        let shapes: Vec<_> = file.tensors.iter().map(|t| (&*t.name, &t.shape[..])).collect();
        assert_eq!(shapes[2], ("blk.1.ffn_up_exps.weight.in_sum2", &[2, 2][..]));
        assert_eq!(shapes[3], ("blk.1.ffn_up_exps.weight.counts", &[1, 2][..]));
        let keys: Vec<_> = file.metadata.0.iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, [TYPE, DATASETS, CHUNK_COUNT, CHUNK_SIZE, TENSORS, SENSITIVITIES]);
    }

    #[test]
    fn sensitivities_are_checked() {
        let refused = |values: Vec<f32>, message: &str| {
            let mut metadata = Metadata::default();
            metadata.set(TENSORS, Value::Array(Array::String(vec!["a".into()])));
            metadata.set(SENSITIVITIES, Value::Array(Array::F32(values)));
            let error = sensitivities("x", &metadata).unwrap_err().to_string();
            assert_eq!(error, format!("x: {SENSITIVITIES}: expected {message}"));
        };
        refused(vec![], "a number for each of kimi.sensitivity.tensors, found others");
        refused(vec![f32::NAN], "finite numbers of at least 0, found NaN at 0");
        refused(vec![-1.0], "finite numbers of at least 0, found -1 at 0");
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |kind: &str, tensors: &[(&str, Format)], message: &str| {
            let mut metadata = Metadata::default();
            metadata.set(TYPE, Value::String(kind.to_owned()));
            let tensors = tensors.iter().map(|(name, format)| ((*name).to_owned(), *format, vec![2]));
            let layout = Layout::new(metadata, tensors.collect()).unwrap();
            let mut bytes = layout.header().to_vec();
            bytes.resize(layout.total_bytes() as usize, 0);
            let error = Imatrix::from_bytes("x", bytes.into()).unwrap_err().to_string();
            assert_eq!(error, message);
        };
        refused("model", &[], "x: general.type: expected imatrix, found model");
        let none = "x: tensors: expected tensors NAME.in_sum2 and NAME.counts, found none";
        refused(IMATRIX, &[("a.in_sum", Format::F32)], none);
        refused(IMATRIX, &[("a.in_sum2", Format::F32)], "x: a.counts: expected a tensor, found none");
        let half = [("a.counts", Format::F32), ("a.in_sum2", Format::F16)];
        refused(IMATRIX, &half, "x: a.in_sum2: expected F32, found F16");
    }
}

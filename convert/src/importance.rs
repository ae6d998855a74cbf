//! Holds an importance matrix: how much errors of each column of a tensor count when it is quantized.
//!
//! It knows no file format. Next: `chunks`, which passes the numbers to the quantizers.

use crate::error::{Error, Result};
use crate::plan::Planned;
use models::gguf::{Metadata, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The mean square of the activations that each column of a tensor is multiplied with.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    /// Name of the file, for messages.
    pub listing: String,
    /// Name of the text that it was computed from.
    pub dataset: Option<String>,
    /// Number of chunks of that text.
    pub chunks: Option<u64>,
    /// By the tensor's GGUF name: finite numbers of at least 0, one per column; for stacked experts, those of each expert
    /// in turn.
    pub tensors: BTreeMap<String, Vec<f32>>,
    /// For stacked experts, the tokens that reached each expert.
    pub tokens: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// Checks that the tensors of a plan have a number per column, or none at all.
    ///
    /// # Errors
    /// Another number of columns, or numbers for a tensor that the plan lacks.
    pub fn check(&self, plan: &[Planned]) -> Result<()> {
        let names: BTreeSet<String> = plan.iter().flat_map(|planned| names_of(&planned.name)).collect();
        if let Some(name) = self.tensors.keys().find(|name| !names.contains(*name)) {
            return Err(Error::bad(&self.listing, name, "a tensor of this model", "none of that name"));
        }
        for planned in plan {
            let Some(values) = self.values(&planned.name) else { continue };
            let (cols, matrices) = (planned.shape[0], planned.shape.iter().skip(2).product::<u64>());
            if ![cols, cols * matrices].contains(&(values.len() as u64)) {
                let expected = format!("{} numbers", cols * matrices);
                return Err(Error::bad(&self.listing, &planned.name, expected, values.len()));
            }
        }
        Ok(())
    }

    fn values(&self, name: &str) -> Option<&Vec<f32>> {
        let other = || names_of(name).iter().find_map(|name| self.tensors.get(name));
        self.tensors.get(name).or_else(other)
    }

    /// Adds llama.cpp's keys about the matrix that a file was quantized with.
    pub(crate) fn set_keys(&self, metadata: &mut Metadata) {
        let text = |s: &str| Value::String(s.to_owned());
        metadata.set("quantize.imatrix.file", text(&self.listing));
        if let Some(dataset) = &self.dataset {
            metadata.set("quantize.imatrix.dataset", text(dataset));
        }
        let numbers = [("entries", Some(self.tensors.len() as u64)), ("chunks", self.chunks)];
        for (key, number) in numbers {
            let Some(number) = number.and_then(|n| u32::try_from(n).ok()) else { continue };
            metadata.set(&format!("quantize.imatrix.{key}_count"), Value::U32(number));
        }
    }

    /// The numbers for a row of an output tensor, if it has any.
    pub(crate) fn of_row(&self, planned: &Planned, row: usize) -> Option<&[f32]> {
        let rows = planned.shape.get(1).map_or(1, |rows| *rows as usize);
        self.of_matrix(&planned.name, planned.shape[0] as usize, row / rows).0
    }

    /// The numbers for a matrix of a tensor with `cols` columns, if it has any, and the part of the tokens that reached it: of
    /// stacked experts, the parts have a sum of 1, and each counts at least one token.
    pub fn of_matrix(&self, name: &str, cols: usize, matrix: usize) -> (Option<&[f32]>, f32) {
        let values = self.values(name).and_then(|values| {
            let matrix = if values.len() == cols { 0 } else { matrix };
            // An expert that no token reached has zeros, by which its weights would become zeros too.
            values.get(matrix * cols..(matrix + 1) * cols).filter(|values| values.iter().any(|v| *v > 0.0))
        });
        let share = self.tokens.get(name).and_then(|tokens| {
            let all: f32 = tokens.iter().map(|n| n.max(1.0)).sum();
            tokens.get(matrix).map(|n| n.max(1.0) / all)
        });
        (values, share.unwrap_or(1.0))
    }

    /// A hash of all names and numbers (FNV-1a), which identifies the matrix when a conversion is resumed.
    pub(crate) fn fingerprint(&self) -> u64 {
        let add = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        self.tensors.iter().fold(0xcbf2_9ce4_8422_2325, |hash, (name, values)| {
            let hash = name.bytes().fold(hash, |hash, byte| add(hash, byte.into()));
            values.iter().fold(add(hash, values.len() as u64), |hash, v| add(hash, v.to_bits().into()))
        })
    }
}

/// The names that the entry of a tensor may have: files hold the projections of q, k and v, whose input is the same, apart
/// or joint.
fn names_of(name: &str) -> Vec<String> {
    let (joint, apart) = (".attn_qkv.weight", [".attn_q.weight", ".attn_k.weight", ".attn_v.weight"]);
    let other = |from: &str, to: &str| name.strip_suffix(from).map(|layer| format!("{layer}{to}"));
    let others = apart.iter().flat_map(|part| [other(part, joint), other(joint, part)]);
    std::iter::once(name.to_owned()).chain(others.flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::quant::Format;

    fn stack() -> Planned {
        let (name, shape) = ("blk.1.ffn_up_exps.weight".to_owned(), vec![2, 3, 4]);
        Planned { name, shape, format: Format::F32, parts: vec![], bytes: 96 }
    }

    fn with(values: usize) -> Importance {
        let values = (0..values).map(|i| i as f32).collect();
        Importance {
            listing: "i.gguf".into(),
            tensors: [(stack().name, values)].into(),
            ..Importance::default()
        }
    }

    #[test]
    fn rows_have_the_numbers_of_their_expert_or_shared_ones() {
        let (each, shared) = (with(8), with(2));
        assert_eq!(each.of_row(&stack(), 2), Some(&[0.0, 1.0][..]));
        assert_eq!(each.of_row(&stack(), 9), Some(&[6.0, 7.0][..]));
        assert_eq!(shared.of_row(&stack(), 9), Some(&[0.0, 1.0][..]));
        assert_eq!(Importance::default().of_row(&stack(), 0), None);
        let unreached = [(stack().name, vec![1.0, 2.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0])].into();
        let unreached = Importance { tensors: unreached, ..with(0) };
        assert_eq!(unreached.of_row(&stack(), 3), None);
        assert_eq!(unreached.of_row(&stack(), 6), Some(&[1.0, 2.0][..]));
        assert_ne!(each.fingerprint(), shared.fingerprint());
    }

    #[test]
    fn other_numbers_of_columns_are_refused() {
        assert!(with(8).check(&[stack()]).is_ok() && with(2).check(&[stack()]).is_ok());
        let message = with(7).check(&[stack()]).unwrap_err().to_string();
        assert_eq!(message, "i.gguf: blk.1.ffn_up_exps.weight: expected 8 numbers, found 7");
    }

    #[test]
    fn entries_of_another_model_are_refused() {
        let other = Planned { name: "blk.1.ffn_up.weight".to_owned(), ..stack() };
        let message = with(8).check(&[other]).unwrap_err().to_string();
        let expected =
            "i.gguf: blk.1.ffn_up_exps.weight: expected a tensor of this model, found none of that name";
        assert_eq!(message, expected);
    }

    #[test]
    fn projections_share_the_numbers_of_a_joint_one() {
        let plan = |part: &str| Planned { name: format!("blk.1.attn_{part}.weight"), ..stack() };
        let of = |part: &str| Importance { tensors: [(plan(part).name, vec![1.0, 2.0])].into(), ..with(0) };
        for (found, planned) in [("qkv", ["q", "k", "v"]), ("q", ["q", "qkv", "qkv"])] {
            for planned in planned {
                of(found).check(&[plan(planned)]).unwrap();
                assert_eq!(of(found).of_row(&plan(planned), 0), Some(&[1.0, 2.0][..]), "{found} {planned}");
            }
        }
        assert_eq!(of("k").of_row(&plan("q"), 0), None);
    }

    #[test]
    fn files_name_their_matrix_as_those_of_llama_quantize_do() {
        let mut metadata = Metadata::default();
        Importance { dataset: Some("text".into()), chunks: Some(7), ..with(8) }.set_keys(&mut metadata);
        let expected = [
            ("file", Value::String("i.gguf".into())),
            ("dataset", Value::String("text".into())),
            ("entries_count", Value::U32(1)),
            ("chunks_count", Value::U32(7)),
        ];
        assert_eq!(metadata.0, expected.map(|(key, value)| (format!("quantize.imatrix.{key}"), value)));
    }
}

//! Holds an importance matrix: how much errors of each column of a tensor count when it is quantized.
//!
//! It knows no file format. Next: `chunks`, which passes the numbers to the quantizers.

use crate::error::{Error, Result};
use crate::plan::Planned;
use std::collections::BTreeMap;

/// The mean square of the activations that each column of a tensor is multiplied with.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    /// Name of the file, for messages.
    pub listing: String,
    /// By the tensor's GGUF name: finite numbers of at least 0, one per column; for stacked experts, those of each expert
    /// in turn.
    pub tensors: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// Checks that the tensors of a plan have a number per column, or none at all.
    ///
    /// # Errors
    /// Another number of columns.
    pub fn check(&self, plan: &[Planned]) -> Result<()> {
        for planned in plan {
            let Some(values) = self.tensors.get(&planned.name) else { continue };
            let (cols, matrices) = (planned.shape[0], planned.shape.iter().skip(2).product::<u64>());
            if ![cols, cols * matrices].contains(&(values.len() as u64)) {
                let expected = format!("{} numbers", cols * matrices);
                return Err(Error::bad(&self.listing, &planned.name, expected, values.len()));
            }
        }
        Ok(())
    }

    /// The numbers for a row of an output tensor, if it has any. An expert that no token reached has zeros, by which its
    /// weights would become zeros too: it counts as one without numbers.
    pub(crate) fn of_row(&self, planned: &Planned, row: usize) -> Option<&[f32]> {
        let values = self.tensors.get(&planned.name)?;
        let cols = planned.shape[0] as usize;
        let matrix = if values.len() == cols { 0 } else { row / planned.shape[1] as usize };
        values.get(matrix * cols..(matrix + 1) * cols).filter(|values| values.iter().any(|v| *v > 0.0))
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
        Importance { listing: "i.gguf".into(), tensors: [(stack().name, values)].into() }
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
}

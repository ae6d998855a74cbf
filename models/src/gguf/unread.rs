//! Describes tensors of types that this project does not read: `kimi inspect` shows them, every other command refuses them.

use kernels::quant::unsupported::unsupported;

/// A tensor of a type without a [`kernels::quant::Format`]. Its place in the file is not checked.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadTensor {
    /// Name of the tensor in the file.
    pub name: String,
    /// ggml's id of its type.
    pub type_id: u32,
    /// ggml's `ne`: 1 to 4 dimensions, fastest first.
    pub shape: Vec<u64>,
}

impl UnreadTensor {
    /// The type by ggml's name, or by its number.
    pub fn type_name(&self) -> String {
        unsupported(self.type_id).map_or(format!("type {}", self.type_id), |t| t.name.to_owned())
    }

    /// Size in bytes; None for types of unknown block size, and for rows that are not whole blocks.
    pub fn bytes(&self) -> Option<u64> {
        let [len, bytes] = unsupported(self.type_id)?.block?;
        let weights = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
        let is_whole = self.shape.first()?.is_multiple_of(len);
        is_whole.then(|| (weights / len).checked_mul(bytes)).flatten()
    }
}

/// Describes a type that is not read, in errors: its name, its number, and the reason.
pub(super) fn describe(id: u32) -> String {
    match unsupported(id) {
        Some(t) => format!("{} (type {id}): {}", t.name, t.why),
        None => format!("type {id}, which is newer than this program or damage"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names() {
        let tensor =
            |type_id, shape: &[u64]| UnreadTensor { name: "t".into(), type_id, shape: shape.to_vec() };
        assert_eq!(tensor(35, &[512, 3]).bytes(), Some(6 * 66));
        assert_eq!(tensor(40, &[128]).bytes(), Some(72));
        assert_eq!(tensor(35, &[100]).bytes(), None);
        assert_eq!((tensor(99, &[1]).bytes(), tensor(99, &[1]).type_name()), (None, "type 99".into()));
        assert_eq!(tensor(24, &[u64::MAX, 2]).bytes(), None);
    }
}

//! Reads the input as an importance matrix in either form. Means of an accepted one must be finite and at least 0, and as many as
//! the sums.

use convert::Imatrix;

/// Tests one input, and panics if a property does not hold.
pub fn run(bytes: &[u8]) {
    let Ok(imatrix) = Imatrix::from_bytes("fuzz", bytes.to_vec().into()) else { return };
    let sums: usize = imatrix.entries.values().map(|entry| entry.sums.len()).sum();
    assert!(4 * sums <= bytes.len(), "{sums} sums in {} bytes", bytes.len());
    let (importance, unreached) = imatrix.importance();
    assert!(unreached.experts <= unreached.of && unreached.stacks <= imatrix.entries.len());
    for (name, entry) in &imatrix.entries {
        let means = &importance.tensors[name];
        assert_eq!(means.len(), entry.sums.len());
        assert!(means.iter().all(|x| x.is_finite() && *x >= 0.0), "{name}: {means:?}");
    }
}

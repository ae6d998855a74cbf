//! Casts bytes to blocks. Blocks have alignment 1 and no padding, so any bytes of the right length are valid.

use bytemuck::Pod;

/// Bytes as a slice of blocks.
///
/// # Panics
/// If the length is not whole blocks.
#[inline(always)]
pub(super) fn many<B: Pod>(bytes: &[u8]) -> &[B] {
    const { assert!(align_of::<B>() == 1) };
    bytemuck::cast_slice(bytes)
}

/// Bytes as a mutable slice of blocks.
#[inline(always)]
pub(super) fn many_mut<B: Pod>(bytes: &mut [u8]) -> &mut [B] {
    const { assert!(align_of::<B>() == 1) };
    bytemuck::cast_slice_mut(bytes)
}

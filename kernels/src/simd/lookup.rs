//! Defines tables that [`Isa::lookup_fours`] reads, and indices into tables that need no check.
//!
//! A vector of indices is reduced modulo the length of the table at once; a check or a mask for each of 32 lookups would
//! cost as much as the lookups. This module knows no format. Next: `x86_lookup`, lookups in registers.

use super::Isa;

/// Sixteen numbers below N, a power of two.
#[derive(Clone, Copy, Default)]
pub struct Indices<const N: usize>([[u8; 2]; 16]);

impl<const N: usize> Indices<N> {
    /// Sixteen 16-bit words, little endian, modulo N.
    #[inline(always)]
    pub fn new<I: Isa>(isa: I, words: I::Bytes) -> Self {
        const { assert!(N.is_power_of_two() && N <= 1 << 16) };
        let [low, high] = ((N - 1) as u16).to_le_bytes();
        let mut out = [0; 32];
        isa.store_bytes(isa.and(words, isa.broadcast_u32([low, high, low, high])), &mut out);
        Indices(bytemuck::cast(out))
    }

    /// The indices as they lie in memory, little endian.
    #[inline(always)]
    pub fn words(&self) -> &[u8; 32] {
        bytemuck::cast_ref(&self.0)
    }

    /// The entry of `table` with the number `self[i]`.
    #[inline(always)]
    pub fn of<T: Copy>(&self, table: &[T; N], i: usize) -> T {
        let n = u16::from_le_bytes(self.0[i]) as usize;
        // SAFETY: `new` alone makes indices, and they are below N.
        unsafe { *table.get_unchecked(n) }
    }
}

/// Entries of four bytes, also in half the space: the numbers of their bytes among at most sixteen values.
pub struct Fours<const N: usize> {
    /// The four bytes of each entry, the first lowest.
    pub entries: [u32; N],
    /// Four bits for each byte of an entry, the first lowest.
    pub nibbles: [u16; N],
    /// The value that four bits stand for.
    pub values: [i8; 16],
}

impl<const N: usize> Fours<N> {
    /// The table with these nibbles and values.
    pub const fn new(nibbles: [u16; N], values: [i8; 16]) -> Self {
        let mut entries = [0; N];
        let mut i = 0;
        while i < 4 * N {
            let value = values[(nibbles[i / 4] >> (i % 4 * 4) & 15) as usize];
            entries[i / 4] |= (value.cast_unsigned() as u32) << (i % 4 * 8);
            i += 1;
        }
        Fours { entries, nibbles, values }
    }
}

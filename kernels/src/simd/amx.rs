//! Implements [`MatrixSimd`] with the tile registers of AMX-INT8 (Xeon, Sapphire Rapids and later).
//!
//! A tile has up to 16 rows of 64 bytes; `tdpb*` multiplies tokens (one per row) with a panel (one weight row per column
//! of four bytes) in 16 cycles. Rust has no stable intrinsics for it. Tiles are configured per thread while a [`Tiles`]
//! exists and released after it, so that other code pays nothing for their state.

use super::panel::{MatrixSimd, MatrixTokens, PanelSimd, PanelSums};
use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Proof token of AMX-TILE and AMX-INT8, which the operating system lets this process use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

impl Amx {
    /// Checks the processor and requests the tile state from the operating system, once per process.
    pub(super) fn detect() -> Option<Amx> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        FOUND.get_or_init(|| supported() && permitted()).then_some(Amx(()))
    }
}

/// Whether the processor has AMX-INT8 with eight tiles of sixteen rows of 64 bytes (palette 1).
fn supported() -> bool {
    /// CPUID leaf 7, edx: AMX-TILE and AMX-INT8.
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    if __cpuid(0).eax < 0x1d || __cpuid_count(7, 0).edx & TILE_AND_INT8 != TILE_AND_INT8 {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    let (row_bytes, tiles, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    row_bytes >= 64 && tiles >= 8 && rows >= 16
}

/// Requests permission for the tile state, 8 KiB per thread that Linux saves only for programs that ask.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    /// Requests a state component: `ARCH_REQ_XCOMP_PERM` of <asm/prctl.h>.
    const REQUEST: libc::c_int = 0x1023;
    /// `XFEATURE_XTILE_DATA`: the number of the state component.
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call reads its two numbers and no memory; it changes what XSAVE stores, which the kernel sizes.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The 64 bytes that `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles configured for a number of tokens, on this thread until it is dropped:
///
/// ```text
/// 0, 1  sums    [tokens][16] i32
/// 2     tokens  [tokens][64] bytes
/// 3, 4  panel   [64 / 4][16][4] bytes
/// 5     tokens  [tokens][32] bytes
/// 6     panel   [32 / 4][16][4] bytes
/// ```
pub struct Tiles {
    tokens: usize,
    /// Keeps the value on the thread that configured the tiles.
    thread: PhantomData<*const ()>,
}

thread_local! {
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

impl Tiles {
    /// Configures tiles of `tokens` rows, 1..=16.
    ///
    /// # Panics
    /// If the thread has configured tiles.
    pub(super) fn new(_: Amx, tokens: usize) -> Tiles {
        assert!((1..=16).contains(&tokens), "{tokens} tokens in a tile");
        assert!(!CONFIGURED.replace(true), "one configuration per thread at a time");
        let rows = tokens as u8;
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let tiles = [(rows, 64), (rows, 64), (rows, 64), (16, 64), (16, 64), (rows, 32), (8, 64)];
        for (tile, (rows, bytes)) in tiles.into_iter().enumerate() {
            (config.rows[tile], config.row_bytes[tile]) = (rows, bytes);
        }
        // SAFETY: `Amx` proves the instruction; it reads the 64 bytes of a valid configuration of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
        Tiles { tokens, thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the value proves AMX; no tile is in use after it.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        CONFIGURED.set(false);
    }
}

impl<P: PanelSimd<Bytes = __m512i, Ints = __m512i>> MatrixSimd<P> for Tiles {
    #[inline(always)]
    fn scaled(&self, w: __m512i, scale: __m512i) -> [__m512i; 2] {
        // SAFETY: panels of such vectors prove AVX-512 F and BW.
        unsafe {
            // The products of even and of odd bytes, in words.
            let even = _mm512_and_si512(scale, _mm512_set1_epi32(0xff));
            let even = _mm512_or_si512(even, _mm512_slli_epi32::<16>(even));
            let odd = _mm512_maddubs_epi16(w, _mm512_slli_epi16::<8>(even));
            let even = _mm512_maddubs_epi16(w, even);
            // Bits of the first operand where the mask is set, else of the second.
            let mask = _mm512_set1_epi16(0xff);
            let low = _mm512_ternarylogic_epi32::<0xe4>(even, _mm512_slli_epi16::<8>(odd), mask);
            let high = _mm512_ternarylogic_epi32::<0xe4>(_mm512_srli_epi16::<8>(even), odd, mask);
            [low, high]
        }
    }
    #[inline(always)]
    fn dot_256(&self, x: MatrixTokens<'_>, w: [&[__m512i; 64]; 2], sums: &mut [PanelSums; 2]) {
        let (x, step) = x.rows::<256>(self.tokens);
        // SAFETY: the value proves configured tiles. They read 256 bytes of each token, which `rows` checks, and the
        // 4 KiB of each panel, and write 16 rows of 64 bytes or fewer to each half of the sums.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm2, [{x} + {step}]",
                "tileloadd tmm3, [{low} + {line}]",
                "tdpbsud tmm0, tmm2, tmm3",
                "tileloadd tmm4, [{high} + {line}]",
                "tdpbssd tmm1, tmm2, tmm4",
                "tileloadd tmm2, [{x} + {step} + 64]",
                "tileloadd tmm3, [{low} + {line} + 1024]",
                "tdpbsud tmm0, tmm2, tmm3",
                "tileloadd tmm4, [{high} + {line} + 1024]",
                "tdpbssd tmm1, tmm2, tmm4",
                "tileloadd tmm2, [{x} + {step} + 128]",
                "tileloadd tmm3, [{low} + {line} + 2048]",
                "tdpbsud tmm0, tmm2, tmm3",
                "tileloadd tmm4, [{high} + {line} + 2048]",
                "tdpbssd tmm1, tmm2, tmm4",
                "tileloadd tmm2, [{x} + {step} + 192]",
                "tileloadd tmm3, [{low} + {line} + 3072]",
                "tdpbsud tmm0, tmm2, tmm3",
                "tileloadd tmm4, [{high} + {line} + 3072]",
                "tdpbssd tmm1, tmm2, tmm4",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                x = in(reg) x, step = in(reg) step, line = in(reg) 64_usize,
                low = in(reg) w[0], high = in(reg) w[1], sums = in(reg) sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                options(nostack, preserves_flags),
            );
        }
    }
    #[inline(always)]
    fn dot_32(&self, x: MatrixTokens<'_>, w: &[__m512i; 8], sums: &mut PanelSums) {
        let (x, step) = x.rows::<32>(self.tokens);
        // SAFETY: the value proves configured tiles. They read 32 bytes of each token, which `rows` checks, and the 512
        // bytes of the panel, and write 16 rows of 64 bytes or fewer.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm5, [{x} + {step}]",
                "tileloadd tmm6, [{w} + {line}]",
                "tdpbssd tmm0, tmm5, tmm6",
                "tilestored [{sums} + {line}], tmm0",
                x = in(reg) x, step = in(reg) step, line = in(reg) 64_usize, w = in(reg) w, sums = in(reg) sums,
                out("tmm0") _, out("tmm5") _, out("tmm6") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

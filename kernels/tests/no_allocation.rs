//! Checks that the ops of the CPU backend allocate nothing for a decoded token after a first token of the same shape.

mod common;

use common::{Numbers, vector};
use kernels::backend::{Backend, CacheFormat, Decay, DeltaRule, GatedMlp, Routing, Span};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::simd::SimdLevel;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with a count of allocations.
struct AllocationCounter;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it is the system's allocator in all that it gives and takes.
unsafe impl GlobalAlloc for AllocationCounter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: AllocationCounter = AllocationCounter;

#[test]
fn a_decoded_token_allocates_nothing() {
    let (b, mut n) = (Cpu::new(2, SimdLevel::detect()), Numbers(1));
    let mut weight = |format, shape| b.weight(n.weight(format, shape)).unwrap();
    let embed = weight(Format::Q4_K, [1, 50, 256]);
    let w = [
        weight(Format::Q4_K, [1, 256, 256]),
        weight(Format::Q8_0, [1, 256, 256]),
        weight(Format::F32, [1, 4, 256]),
    ];
    let row_weight = weight(Format::F16, [1, 64, 256]);
    let heads = weight(Format::Q8_0, [4, 64, 64]);
    let taps = weight(Format::F32, [1, 256, 4]);
    let [norm, bias, a] = [256, 16, 4].map(|n| b.weight(vector(&vec![-0.5; n])).unwrap());
    let router = weight(Format::F32, [1, 16, 256]);
    let [gate, up, down] = [0; 3].map(|_| weight(Format::Q4_K, [16, 256, 256]));
    let how = Routing { top_k: 4, groups: 1, top_groups: 1, normalize: true, scale: 1.0 };
    let mut conv = b.tensor(3, 256, &[0.0; 768]);
    let mut s = b.tensor(256, 64, &[0.0; 256 * 64]);
    let mut cache = b.cache(CacheFormat::Q8_0, 64);
    let mut token = |id: u32| {
        let mut x = b.embed(&embed, &[id]);
        let [q, k, beta] = b.matmuls([&w[0], &w[1], &w[2]], &b.rms_norm(&x, &norm, 1e-5));
        let k = b.short_conv(&mut [Span { rows: 0..1, state: &mut conv }], &k, &taps);
        let (q, k) = (b.l2_norm(q, 64, 1e-6, 0.1), b.l2_norm(k, 64, 1e-6, 1.0));
        let g = b.kda_decay(b.matmul(&w[0], &x), &a, &norm, Decay::Softplus);
        let beta = b.sigmoid(beta);
        let inputs = DeltaRule { q: &q, k: &k, v: &x, g: &g, beta: &beta };
        let o = b.delta_rule(&mut [Span { rows: 0..1, state: &mut s }], inputs);
        b.add(&mut x, &b.matmul(&w[1], &b.matmul_heads(&heads, &o)));
        let row = b.matmul(&row_weight, &x);
        b.append(&mut [Span { rows: 0..1, state: &mut cache }], &row);
        let o = b.latent_attention(&mut [Span { rows: 0..1, state: &mut cache }], &x, 64, 0.1);
        let routed = b.route(&b.matmul(&router, &o), &bias, how);
        b.add(
            &mut x,
            &b.experts(GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY }, &o, &routed),
        );
    };
    // A worker allocates its scratch when it first takes part, which may be late: wait for a stretch without allocations.
    let quiet = |_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..20).for_each(&mut token);
        ALLOCATIONS.load(Ordering::Relaxed) == before
    };
    assert!((0..50).any(quiet), "every stretch of 20 tokens allocated");
}

//! NumPy's `default_rng(seed)`: PCG64 seeded by a `SeedSequence`, `uniform`, and `normal` by the 256-level ziggurat.
//!
//! The numbers are NumPy's to the last bit that a float32 keeps, so that `tests/reference/gen_tiny.py` and
//! [`super::random_checkpoint`] write the same weights. `tests/shapes.rs` compares the two.

/// Where the ziggurat's tail begins.
const TAIL_START: f64 = 3.654_152_885_361_009;
/// The area of each of the 256 levels.
const LEVEL_AREA: f64 = 0.004_928_673_233_974_654_6;
/// NumPy draws the magnitude as an integer of 52 bits.
const MAGNITUDES: f64 = (1u64 << 52) as f64;

/// The generator, with its ziggurat.
pub struct NumpyGenerator {
    state: u128,
    increment: u128,
    levels: Ziggurat,
}

impl NumpyGenerator {
    /// Seeds the generator as `numpy.random.default_rng(seed)` does.
    pub fn new(seed: u32) -> NumpyGenerator {
        let [state_high, state_low, stream_high, stream_low] = seed_sequence(seed);
        let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let increment = wide(stream_high, stream_low) << 1 | 1;
        let mut generator = NumpyGenerator { state: 0, increment, levels: Ziggurat::new() };
        generator.step();
        generator.state = generator.state.wrapping_add(wide(state_high, state_low));
        generator.step();
        generator
    }

    fn step(&mut self) {
        const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    /// Advances the state and applies PCG's XSL-RR output function.
    fn next_u64(&mut self) -> u64 {
        self.step();
        ((self.state >> 64) as u64 ^ self.state as u64).rotate_right((self.state >> 122) as u32)
    }

    fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform draw from `low..high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.next_f64()
    }

    /// A draw from a normal distribution.
    pub fn normal(&mut self, mean: f64, deviation: f64) -> f64 {
        mean + deviation * self.standard_normal()
    }

    fn standard_normal(&mut self) -> f64 {
        loop {
            let bits = self.next_u64();
            let (level, bits) = ((bits & 0xff) as usize, bits >> 8);
            let magnitude = bits >> 1 & ((1 << 52) - 1);
            let x = magnitude as f64 * self.levels.width[level];
            let x = if bits & 1 == 1 { -x } else { x };
            if magnitude < self.levels.inside[level] {
                return x;
            }
            if level == 0 {
                return self.tail(magnitude);
            }
            let [below, above] = [self.levels.height[level], self.levels.height[level - 1]];
            if (above - below) * self.next_f64() + below < (-0.5 * x * x).exp() {
                return x;
            }
        }
    }

    fn tail(&mut self, magnitude: u64) -> f64 {
        loop {
            let x = -(-self.next_f64()).ln_1p() / TAIL_START;
            let y = -(-self.next_f64()).ln_1p();
            if y + y > x * x {
                let x = TAIL_START + x;
                return if magnitude >> 8 & 1 == 1 { -x } else { x };
            }
        }
    }
}

/// Per level: the largest magnitude that needs no further test, the width per unit of magnitude, the density.
struct Ziggurat {
    inside: [u64; 256],
    width: [f64; 256],
    height: [f64; 256],
}

impl Ziggurat {
    /// The tables of Marsaglia and Tsang, "The Ziggurat Method for Generating Random Variables" (2000).
    fn new() -> Ziggurat {
        let density = |x: f64| (-0.5 * x * x).exp();
        let (mut inside, mut width, mut height) = ([0; 256], [0.0; 256], [1.0; 256]);
        let base = LEVEL_AREA / density(TAIL_START);
        inside[0] = (TAIL_START / base * MAGNITUDES) as u64;
        width[0] = base / MAGNITUDES;
        let mut x = TAIL_START;
        for level in (1..256).rev() {
            width[level] = x / MAGNITUDES;
            height[level] = density(x);
            if level > 1 {
                let next = (-2.0 * (LEVEL_AREA / x + density(x)).ln()).sqrt();
                inside[level] = (next / x * MAGNITUDES) as u64;
                x = next;
            }
        }
        Ziggurat { inside, width, height }
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`: a pool of four words, mixed with each other.
fn seed_sequence(seed: u32) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |word: u32| {
        let word = word ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let word = word.wrapping_mul(constant);
        word ^ word >> 16
    };
    let mut pool = [seed, 0, 0, 0].map(&mut hash);
    for from in 0..4 {
        for to in (0..4).filter(|to| *to != from) {
            let mixed = pool[to].wrapping_mul(0xca01_f9dd);
            let mixed = mixed.wrapping_sub(hash(pool[from]).wrapping_mul(0x4973_f715));
            pool[to] = mixed ^ mixed >> 16;
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut word = |i: usize| {
        let word = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let word = word.wrapping_mul(constant);
        u64::from(word ^ word >> 16)
    };
    [0, 2, 4, 6].map(|i| word(i) | word(i + 1) << 32)
}

//! The data type of KDA states and convolution inputs on disk: f32, or f16 in half the space.

use half::f16;
use std::borrow::Cow;

/// The data type of states on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum StateType {
    /// Exact, 4 bytes per value
    #[default]
    F32,
    /// 2 bytes per value; restored states are close, not equal
    F16,
}

impl StateType {
    /// Converts a size of f32 values to its size on disk.
    pub fn bytes(self, exact: u64) -> u64 {
        match self {
            StateType::F32 => exact,
            StateType::F16 => exact / 2,
        }
    }

    /// Encodes little-endian f32 values. Values beyond the f16 range (65,504) are clamped.
    pub fn pack(self, exact: Vec<u8>) -> Vec<u8> {
        let near =
            |x: &[u8; 4]| f16::from_f32(f32::from_le_bytes(*x).clamp(-f16::MAX.to_f32(), f16::MAX.to_f32()));
        match self {
            StateType::F32 => exact,
            StateType::F16 => exact.as_chunks().0.iter().flat_map(|x| near(x).to_le_bytes()).collect(),
        }
    }

    /// Decodes the values that [`StateType::pack`] encoded.
    pub fn unpack(self, kept: &[u8]) -> Cow<'_, [u8]> {
        let wide = |x: &[u8; 2]| f16::from_le_bytes(*x).to_f32().to_le_bytes();
        match self {
            StateType::F32 => kept.into(),
            StateType::F16 => kept.as_chunks().0.iter().flat_map(wide).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_states_are_close_and_clamped() {
        let values = [0.0, -0.0, 1.0, -3.3, 1e-4, 7e4, f32::NEG_INFINITY];
        let bytes: Vec<u8> = values.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        let kept = StateType::F16.pack(bytes.clone());
        assert_eq!(kept.len() as u64, StateType::F16.bytes(bytes.len() as u64));
        let back = StateType::F16.unpack(&kept);
        let back: Vec<f32> = back.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        for (x, back) in values.iter().zip(&back[..5]) {
            assert!((x - back).abs() <= x.abs() / 2048.0, "{x} came back as {back}");
        }
        assert_eq!(back[5..], [65504.0, -65504.0]);
        assert_eq!(StateType::F32.unpack(&StateType::F32.pack(bytes.clone())), bytes);
    }
}

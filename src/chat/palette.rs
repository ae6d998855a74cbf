//! The dark and the light colors in 24-bit RGB, and the nearest of xterm's 256 colors.
//!
//! A test computes the contrast of all text by WCAG 2.2. It knows neither roles nor the terminal.

/// The colors of a theme.
pub struct Palette {
    pub text: u32,
    pub background: u32,
    /// The background of a selected row.
    pub selection: u32,
    /// The background of the quote in the text of its file.
    pub highlight: u32,
    pub dim: u32,
    pub accent: u32,
    pub heading: u32,
    pub code: u32,
    pub error: u32,
    pub string: u32,
    pub number: u32,
    pub unverified: u32,
    pub link: u32,
    pub frame: u32,
}

pub const DARK: Palette = Palette {
    text: 0xe6_ed_f3,
    background: 0x0d_11_17,
    selection: 0x1c_2a_3f,
    highlight: 0x5f_4b_00,
    dim: 0x9a_a3_ad,
    accent: 0x6c_b6_ff,
    heading: 0xd2_a8_ff,
    code: 0x96_d0_ff,
    error: 0xff_7b_72,
    string: 0x8d_db_8c,
    number: 0xf2_cc_60,
    unverified: 0xff_a6_57,
    link: 0x58_a6_ff,
    frame: 0x6e_76_81,
};

pub const LIGHT: Palette = Palette {
    text: 0x1f_23_28,
    background: 0xff_ff_ff,
    selection: 0xe3_ed_fb,
    highlight: 0xff_e5_8a,
    dim: 0x59_63_6e,
    accent: 0x05_50_ae,
    heading: 0x66_39_ba,
    code: 0x0a_46_8f,
    error: 0xc1_1c_26,
    string: 0x11_63_29,
    number: 0x8a_33_00,
    unverified: 0x9a_36_00,
    link: 0x09_5c_c4,
    frame: 0x81_8b_98,
};

/// The levels of a channel in xterm's cube of colors 16 to 231.
const LEVELS: [u32; 6] = [0, 95, 135, 175, 215, 255];

/// The index of the nearest color of xterm's cube (16 to 231) or its grays (232 to 255). The first sixteen colors are not
/// fixed.
pub fn nearest(rgb: u32) -> u8 {
    let [_, r, g, b] = rgb.to_be_bytes().map(u32::from);
    let level = |c: u32| (0..6).min_by_key(|at| LEVELS[*at as usize].abs_diff(c)).unwrap_or(0);
    let cube = 16 + 36 * level(r) + 6 * level(g) + level(b);
    let gray = 232 + ((r + g + b) / 3).saturating_sub(3).min(235) / 10;
    let distance = |index: u32| {
        let [_, x, y, z] = rgb_of(index as u8).to_be_bytes().map(u32::from);
        x.abs_diff(r).pow(2) + y.abs_diff(g).pow(2) + z.abs_diff(b).pow(2)
    };
    (if distance(gray) < distance(cube) { gray } else { cube }) as u8
}

/// The RGB value of one of xterm's colors from 16 on.
pub fn rgb_of(index: u8) -> u32 {
    match u32::from(index) {
        index @ 232.. => (8 + 10 * (index - 232)) * 0x01_01_01,
        index => {
            let cube = index.saturating_sub(16);
            let level = |at: u32| LEVELS[(at % 6) as usize];
            level(cube / 36) << 16 | level(cube / 6) << 8 | level(cube)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::theme::{TextRole, rgb};

    /// The relative luminance of WCAG 2.2.
    fn luminance(rgb: u32) -> f64 {
        let [_, r, g, b] = rgb
            .to_be_bytes()
            .map(|c| f64::from(c) / 255.0)
            .map(|c| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    }

    fn contrast(a: u32, b: u32) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn the_contrast_is_that_of_wcag() {
        assert!((contrast(0, 0xff_ff_ff) - 21.0).abs() < 1e-9);
        assert!((contrast(0x76_76_76, 0xff_ff_ff) - 4.54).abs() < 0.01);
        assert!((contrast(0xff_00_00, 0xff_ff_ff) - 4.0).abs() < 0.01);
    }

    #[test]
    fn all_text_meets_wcag_aa_in_24_bit_and_in_256_colors() {
        for (name, palette) in [("dark", &DARK), ("light", &LIGHT)] {
            for (depth, shown) in
                [("24 bit", (|rgb| rgb) as fn(u32) -> u32), ("256", |rgb| rgb_of(nearest(rgb)))]
            {
                for role in TextRole::ALL {
                    // Frames are graphics: 3:1 is enough.
                    let least = if role == TextRole::Frame { 3.0 } else { 4.5 };
                    let grounds = match role {
                        TextRole::Highlight => vec![palette.highlight],
                        TextRole::Frame => vec![palette.background],
                        _ => vec![palette.background, palette.selection],
                    };
                    for ground in grounds {
                        let ratio = contrast(shown(rgb(palette, role)), shown(ground));
                        assert!(ratio >= least, "{name}, {depth}: {role:?} on {ground:06x}: {ratio:.2}");
                    }
                }
            }
        }
    }

    #[test]
    fn colors_are_mapped_to_the_nearest_of_256() {
        for index in 16..=255 {
            assert_eq!(rgb_of(nearest(rgb_of(index))), rgb_of(index), "{index}");
        }
        assert_eq!([0, 0xff_ff_ff, 0x0d_11_17, 0x6c_b6_ff].map(nearest), [16, 231, 233, 75]);
    }
}

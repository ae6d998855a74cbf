//! Text roles and the colors that display them: none, the terminal's sixteen colors, or 24-bit colors.
//!
//! Laid-out text carries roles only, so that a change of theme needs no new layout. Next: [`super::view`].

use ratatui::style::{Color, Modifier, Style};

/// The role of a piece of text, from which its color follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextRole {
    #[default]
    Plain,
    /// Text of less importance, such as notes of the program.
    Dim,
    /// Marks of the program, such as the prompt and bullets.
    Accent,
    Heading,
    /// Inline code in a sentence.
    Code,
    Error,
    Keyword,
    /// A string literal, or an added line of a diff.
    Text,
    Comment,
    /// A number or another constant.
    Number,
    Function,
    Type,
    Link,
}

/// A role with text attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextStyle {
    pub role: TextRole,
    pub bold: bool,
    pub italic: bool,
    pub underline: bool,
    pub strike: bool,
}

impl From<TextRole> for TextStyle {
    fn from(role: TextRole) -> Self {
        TextStyle { role, ..Default::default() }
    }
}

/// A run of text in one style.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StyledSpan {
    pub text: String,
    pub style: TextStyle,
}

impl StyledSpan {
    pub fn new(text: impl Into<String>, style: impl Into<TextStyle>) -> Self {
        StyledSpan { text: text.into(), style: style.into() }
    }
}

/// How many colors are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Bold, underline and reverse only.
    None,
    /// The sixteen colors of the terminal's own theme.
    Sixteen,
    /// Exact colors in 24-bit RGB.
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    pub depth: Depth,
    /// Use colors for a light background.
    pub light: bool,
}

impl Theme {
    /// Chooses colors from the environment variables `NO_COLOR`, `COLORTERM` and `COLORFGBG`.
    pub fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        let exact = set("COLORTERM").is_some_and(|v| v == "truecolor" || v == "24bit");
        let depth = match (set("NO_COLOR"), exact) {
            (Some(_), _) => Depth::None,
            (None, true) => Depth::Exact,
            (None, false) => Depth::Sixteen,
        };
        // `foreground;background`; light terminals have background 7 or 15.
        let background = set("COLORFGBG").and_then(|v| v.rsplit(';').next()?.parse::<u8>().ok());
        Theme { depth, light: matches!(background, Some(7 | 15)) }
    }

    /// The ratatui style that displays a text style.
    pub fn style(self, text: TextStyle) -> Style {
        let mut style = Style::new();
        let mut modifier = Modifier::empty();
        modifier.set(Modifier::BOLD, text.bold || text.role == TextRole::Heading);
        modifier.set(Modifier::ITALIC, text.italic);
        modifier.set(Modifier::UNDERLINED, text.underline || text.role == TextRole::Link);
        modifier.set(Modifier::CROSSED_OUT, text.strike);
        match self.depth {
            Depth::None => {
                modifier.set(
                    Modifier::BOLD,
                    text.bold || matches!(text.role, TextRole::Heading | TextRole::Error | TextRole::Accent),
                );
                modifier.set(Modifier::DIM, matches!(text.role, TextRole::Dim | TextRole::Comment));
            }
            Depth::Sixteen => style.fg = sixteen(text.role, self.light),
            Depth::Exact => style.fg = exact(text.role, self.light),
        }
        style.add_modifier(modifier)
    }
}

fn sixteen(role: TextRole, light: bool) -> Option<Color> {
    Some(match role {
        TextRole::Plain => return None,
        TextRole::Dim | TextRole::Comment => Color::DarkGray,
        TextRole::Accent => Color::Blue,
        TextRole::Heading | TextRole::Keyword => Color::Magenta,
        TextRole::Code | TextRole::Type if light => Color::Blue,
        TextRole::Code | TextRole::Type => Color::Cyan,
        TextRole::Error => Color::Red,
        TextRole::Text => Color::Green,
        // Yellow on white is illegible.
        TextRole::Number if light => Color::Red,
        TextRole::Number => Color::Yellow,
        TextRole::Function | TextRole::Link => Color::Blue,
    })
}

fn exact(role: TextRole, light: bool) -> Option<Color> {
    let (on_dark, on_light) = match role {
        TextRole::Plain => return None,
        TextRole::Dim => (0x8b949e, 0x6e7781),
        TextRole::Comment => (0x8b949e, 0x6e7781),
        TextRole::Accent => (0x6cb6ff, 0x0550ae),
        TextRole::Heading => (0xd2a8ff, 0x6639ba),
        TextRole::Code => (0x96d0ff, 0x0550ae),
        TextRole::Error => (0xff7b72, 0xcf222e),
        TextRole::Keyword => (0xff7b72, 0xcf222e),
        TextRole::Text => (0xa5d6a7, 0x116329),
        TextRole::Number => (0xf2cc60, 0x953800),
        TextRole::Function => (0xd2a8ff, 0x6639ba),
        TextRole::Type => (0x79c0ff, 0x0550ae),
        TextRole::Link => (0x58a6ff, 0x0969da),
    };
    Some(Color::from_u32(if light { on_light } else { on_dark }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(variables: &[(&str, &str)]) -> Theme {
        Theme::detect(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn colors_follow_the_environment() {
        assert_eq!(detected(&[]), Theme { depth: Depth::Sixteen, light: false });
        assert_eq!(detected(&[("COLORTERM", "truecolor")]).depth, Depth::Exact);
        assert_eq!(detected(&[("COLORTERM", "truecolor"), ("NO_COLOR", "1")]).depth, Depth::None);
        assert_eq!(detected(&[("NO_COLOR", "")]).depth, Depth::Sixteen);
        assert!(detected(&[("COLORFGBG", "0;15")]).light);
        assert!(!detected(&[("COLORFGBG", "15;0")]).light);
    }

    #[test]
    fn errors_are_bold_without_colors() {
        let theme = Theme { depth: Depth::None, light: false };
        let all = [
            TextRole::Plain,
            TextRole::Dim,
            TextRole::Accent,
            TextRole::Error,
            TextRole::Keyword,
            TextRole::Link,
        ];
        assert!(all.iter().all(|role| theme.style((*role).into()).fg.is_none()));
        assert!(theme.style(TextRole::Error.into()).add_modifier.contains(Modifier::BOLD));
    }
}

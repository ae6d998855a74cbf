//! What text means, and the colours that says it in: none, the terminal's own sixteen, or exact ones.
//!
//! Laid-out text carries meanings only, so another theme needs no new layout. Next: [`super::view`].

use ratatui::style::{Color, Modifier, Style};

/// What a piece of text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ink {
    /// Ordinary text.
    #[default]
    Plain,
    /// Less important than its surroundings.
    Dim,
    /// The program's own marks.
    Accent,
    /// A heading.
    Heading,
    /// Code among words.
    Code,
    /// Something went wrong.
    Error,
    /// A word of the language.
    Keyword,
    /// A string.
    Text,
    /// A comment.
    Comment,
    /// A number or other constant.
    Number,
    /// A function's name.
    Function,
    /// A type's name.
    Type,
    /// A link, or what a line adds.
    Link,
}

/// Ink and how it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What it is.
    pub ink: Ink,
    /// Bold.
    pub bold: bool,
    /// Italic.
    pub italic: bool,
    /// Underlined.
    pub underline: bool,
    /// Struck through.
    pub strike: bool,
}

impl From<Ink> for Look {
    fn from(ink: Ink) -> Self {
        Look { ink, ..Default::default() }
    }
}

/// Text in one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The text.
    pub text: String,
    /// Its look.
    pub look: Look,
}

impl Span {
    /// Text in a look.
    pub fn new(text: impl Into<String>, look: impl Into<Look>) -> Self {
        Span { text: text.into(), look: look.into() }
    }
}

/// How many colours a terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// None wanted: bold, underline and reverse only.
    None,
    /// The sixteen that the terminal's own theme defines.
    Sixteen,
    /// Any.
    Exact,
}

/// A way to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Colours there are.
    pub depth: Depth,
    /// Dark text on a light ground.
    pub light: bool,
}

impl Theme {
    /// What the variables of the environment say: `NO_COLOR`, `COLORTERM`, `COLORFGBG`.
    pub fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        let exact = set("COLORTERM").is_some_and(|v| v == "truecolor" || v == "24bit");
        let depth = match (set("NO_COLOR"), exact) {
            (Some(_), _) => Depth::None,
            (None, true) => Depth::Exact,
            (None, false) => Depth::Sixteen,
        };
        // Foreground;background, the last of them 7 or 15 on light terminals.
        let ground = set("COLORFGBG").and_then(|v| v.rsplit(';').next()?.parse::<u8>().ok());
        Theme { depth, light: matches!(ground, Some(7 | 15)) }
    }

    /// How a look is drawn.
    pub fn style(self, look: Look) -> Style {
        let mut style = Style::new();
        let mut modifier = Modifier::empty();
        modifier.set(Modifier::BOLD, look.bold || look.ink == Ink::Heading);
        modifier.set(Modifier::ITALIC, look.italic);
        modifier.set(Modifier::UNDERLINED, look.underline || look.ink == Ink::Link);
        modifier.set(Modifier::CROSSED_OUT, look.strike);
        match self.depth {
            Depth::None => {
                modifier.set(
                    Modifier::BOLD,
                    look.bold || matches!(look.ink, Ink::Heading | Ink::Error | Ink::Accent),
                );
                modifier.set(Modifier::DIM, matches!(look.ink, Ink::Dim | Ink::Comment));
            }
            Depth::Sixteen => style.fg = sixteen(look.ink, self.light),
            Depth::Exact => style.fg = exact(look.ink, self.light),
        }
        style.add_modifier(modifier)
    }
}

fn sixteen(ink: Ink, light: bool) -> Option<Color> {
    Some(match ink {
        Ink::Plain => return None,
        Ink::Dim | Ink::Comment => Color::DarkGray,
        Ink::Accent => Color::Blue,
        Ink::Heading | Ink::Keyword => Color::Magenta,
        Ink::Code | Ink::Type if light => Color::Blue,
        Ink::Code | Ink::Type => Color::Cyan,
        Ink::Error => Color::Red,
        Ink::Text => Color::Green,
        // Yellow on white cannot be read.
        Ink::Number if light => Color::Red,
        Ink::Number => Color::Yellow,
        Ink::Function | Ink::Link => Color::Blue,
    })
}

fn exact(ink: Ink, light: bool) -> Option<Color> {
    let (on_dark, on_light) = match ink {
        Ink::Plain => return None,
        Ink::Dim => (0x8b949e, 0x6e7781),
        Ink::Comment => (0x8b949e, 0x6e7781),
        Ink::Accent => (0x6cb6ff, 0x0550ae),
        Ink::Heading => (0xd2a8ff, 0x6639ba),
        Ink::Code => (0x96d0ff, 0x0550ae),
        Ink::Error => (0xff7b72, 0xcf222e),
        Ink::Keyword => (0xff7b72, 0xcf222e),
        Ink::Text => (0xa5d6a7, 0x116329),
        Ink::Number => (0xf2cc60, 0x953800),
        Ink::Function => (0xd2a8ff, 0x6639ba),
        Ink::Type => (0x79c0ff, 0x0550ae),
        Ink::Link => (0x58a6ff, 0x0969da),
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
    fn the_environment_decides() {
        assert_eq!(detected(&[]), Theme { depth: Depth::Sixteen, light: false });
        assert_eq!(detected(&[("COLORTERM", "truecolor")]).depth, Depth::Exact);
        assert_eq!(detected(&[("COLORTERM", "truecolor"), ("NO_COLOR", "1")]).depth, Depth::None);
        assert_eq!(detected(&[("NO_COLOR", "")]).depth, Depth::Sixteen);
        assert!(detected(&[("COLORFGBG", "0;15")]).light);
        assert!(!detected(&[("COLORFGBG", "15;0")]).light);
    }

    #[test]
    fn without_colours_nothing_is_coloured_and_errors_still_stand_out() {
        let theme = Theme { depth: Depth::None, light: false };
        let all = [Ink::Plain, Ink::Dim, Ink::Accent, Ink::Error, Ink::Keyword, Ink::Link];
        assert!(all.iter().all(|ink| theme.style((*ink).into()).fg.is_none()));
        assert!(theme.style(Ink::Error.into()).add_modifier.contains(Modifier::BOLD));
    }
}

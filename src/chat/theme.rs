//! Text roles and the styles that display them: attributes only, the terminal's sixteen colors, 256 colors, or 24-bit
//! colors.
//!
//! Laid-out text carries roles only, so that a change of theme needs no new layout. With 256 and 24-bit colors the theme
//! also sets the background, so that the contrast does not depend on the terminal's own. Next: [`super::palette`].

use super::palette::{self, Palette};
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
    /// The user's name, and the bar beside the user's messages.
    User,
    /// The name of the model above its replies.
    Model,
    /// Frames of code, tables and panels, and rules.
    Frame,
    /// The marks of a quote that the files have.
    Verified,
    /// The marks of a quote that no file has.
    Unverified,
    /// The quote in the text of its file.
    Highlight,
}

impl TextRole {
    /// All roles, for tests of a palette.
    #[cfg(test)]
    pub const ALL: [TextRole; 19] = [
        TextRole::Plain,
        TextRole::Dim,
        TextRole::Accent,
        TextRole::Heading,
        TextRole::Code,
        TextRole::Error,
        TextRole::Keyword,
        TextRole::Text,
        TextRole::Comment,
        TextRole::Number,
        TextRole::Function,
        TextRole::Type,
        TextRole::Link,
        TextRole::User,
        TextRole::Model,
        TextRole::Frame,
        TextRole::Verified,
        TextRole::Unverified,
        TextRole::Highlight,
    ];
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
    /// Bold, dim, underline and reverse only.
    None,
    /// The sixteen colors of the terminal's own theme.
    Sixteen,
    /// The fixed colors 16 to 255 of xterm's palette.
    Indexed,
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
    /// Chooses colors from the environment variables `NO_COLOR`, `COLORTERM`, `TERM` and `COLORFGBG`.
    pub fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        let depth = if set("NO_COLOR").is_some() {
            Depth::None
        } else if set("COLORTERM").is_some_and(|v| v == "truecolor" || v == "24bit") {
            Depth::Exact
        } else if set("TERM").is_some_and(|v| v.contains("256color")) {
            Depth::Indexed
        } else {
            Depth::Sixteen
        };
        // `foreground;background`; light terminals have background 7 or 15.
        let background = set("COLORFGBG").and_then(|v| v.rsplit(';').next()?.parse::<u8>().ok());
        Theme { depth, light: matches!(background, Some(7 | 15)) }
    }

    /// The style of the whole screen: text and background, unless the terminal's own are used.
    pub fn base(self) -> Style {
        let palette = self.palette();
        match (self.color(palette.text), self.color(palette.background)) {
            (Some(text), Some(background)) => Style::new().fg(text).bg(background),
            _ => Style::new(),
        }
    }

    /// The style of a selected row, which is drawn over the style of its text.
    pub fn selected(self) -> Style {
        match self.color(self.palette().selection) {
            Some(background) => Style::new().bg(background),
            None => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    /// The ratatui style that displays a text style.
    pub fn style(self, text: TextStyle) -> Style {
        use TextRole::{
            Accent, Comment, Dim, Error, Frame, Heading, Highlight, Link, Model, Unverified, User,
        };
        let mut modifier = Modifier::empty();
        modifier.set(Modifier::BOLD, text.bold || text.role == Heading);
        modifier.set(Modifier::ITALIC, text.italic);
        modifier.set(Modifier::UNDERLINED, text.underline || text.role == Link);
        modifier.set(Modifier::CROSSED_OUT, text.strike);
        let mut style = Style::new();
        match self.depth {
            Depth::None => {
                let bold = matches!(text.role, Error | Accent | User | Model | Unverified | Highlight);
                modifier.set(Modifier::BOLD, text.bold || text.role == Heading || bold);
                modifier.set(Modifier::DIM, matches!(text.role, Dim | Comment | Frame));
                modifier.set(Modifier::REVERSED, text.role == Highlight);
            }
            Depth::Sixteen => {
                style.fg = sixteen(text.role, self.light);
                modifier.set(Modifier::DIM, matches!(text.role, Dim | Comment | Frame));
                modifier.set(Modifier::REVERSED, text.role == Highlight);
            }
            Depth::Indexed | Depth::Exact => {
                style.fg = self.color(rgb(self.palette(), text.role));
                style.bg = self.color(self.palette().highlight).filter(|_| text.role == Highlight);
            }
        }
        style.add_modifier(modifier)
    }

    fn palette(self) -> &'static Palette {
        if self.light { &palette::LIGHT } else { &palette::DARK }
    }

    /// A color of the palette as the terminal can show it; None where the terminal's own colors are used.
    fn color(self, rgb: u32) -> Option<Color> {
        match self.depth {
            Depth::None | Depth::Sixteen => None,
            Depth::Indexed => Some(Color::Indexed(palette::nearest(rgb))),
            Depth::Exact => Some(Color::from_u32(rgb)),
        }
    }
}

/// The color of a role in a palette.
pub fn rgb(palette: &Palette, role: TextRole) -> u32 {
    match role {
        TextRole::Plain | TextRole::Highlight => palette.text,
        TextRole::Dim | TextRole::Comment => palette.dim,
        TextRole::Accent | TextRole::User => palette.accent,
        TextRole::Heading | TextRole::Function | TextRole::Model => palette.heading,
        TextRole::Code | TextRole::Type => palette.code,
        TextRole::Error | TextRole::Keyword => palette.error,
        TextRole::Text | TextRole::Verified => palette.string,
        TextRole::Number => palette.number,
        TextRole::Unverified => palette.unverified,
        TextRole::Link => palette.link,
        TextRole::Frame => palette.frame,
    }
}

/// The terminal's own color of a role. Less important text is dim, not bright black, which some themes make invisible.
fn sixteen(role: TextRole, light: bool) -> Option<Color> {
    Some(match role {
        TextRole::Plain | TextRole::Dim | TextRole::Comment | TextRole::Frame | TextRole::Highlight => {
            return None;
        }
        TextRole::Accent | TextRole::User | TextRole::Function | TextRole::Link => Color::Blue,
        TextRole::Heading | TextRole::Keyword | TextRole::Model => Color::Magenta,
        TextRole::Code | TextRole::Type if light => Color::Blue,
        TextRole::Code | TextRole::Type => Color::Cyan,
        TextRole::Error => Color::Red,
        TextRole::Text | TextRole::Verified => Color::Green,
        // Yellow on white is illegible.
        TextRole::Number | TextRole::Unverified if light => Color::Red,
        TextRole::Number | TextRole::Unverified => Color::Yellow,
    })
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
        assert_eq!(detected(&[("TERM", "xterm-256color")]).depth, Depth::Indexed);
        assert_eq!(detected(&[("TERM", "linux"), ("COLORTERM", "yes")]).depth, Depth::Sixteen);
        assert_eq!(detected(&[("COLORTERM", "truecolor")]).depth, Depth::Exact);
        assert_eq!(detected(&[("COLORTERM", "truecolor"), ("NO_COLOR", "1")]).depth, Depth::None);
        assert_eq!(detected(&[("NO_COLOR", "")]).depth, Depth::Sixteen);
        assert!(detected(&[("COLORFGBG", "0;15")]).light);
        assert!(!detected(&[("COLORFGBG", "15;0")]).light);
    }

    #[test]
    fn roles_differ_without_colors() {
        let theme = Theme { depth: Depth::None, light: false };
        let style = |role: TextRole| theme.style(role.into());
        assert!(TextRole::ALL.iter().all(|role| (style(*role).fg, style(*role).bg) == (None, None)));
        assert_eq!(theme.base(), Style::new());
        for role in [TextRole::Error, TextRole::User, TextRole::Unverified] {
            assert!(style(role).add_modifier.contains(Modifier::BOLD), "{role:?}");
        }
        assert!(style(TextRole::Highlight).add_modifier.contains(Modifier::REVERSED));
        assert!(style(TextRole::Dim).add_modifier.contains(Modifier::DIM));
    }
}

//! The list of chats over the screen: typing narrows it, Enter opens one.

use super::store::Entry;

/// The list, what was typed and which is chosen.
#[derive(Default)]
pub struct Picker {
    all: Vec<Entry>,
    typed: String,
    chosen: usize,
}

impl Picker {
    /// All chats, the newest first.
    pub fn new(all: Vec<Entry>) -> Self {
        Picker { all, ..Default::default() }
    }

    /// What was typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// The chats whose names contain what was typed.
    pub fn shown(&self) -> Vec<&Entry> {
        let wanted = self.typed.to_lowercase();
        self.all.iter().filter(|e| e.name.to_lowercase().contains(&wanted)).collect()
    }

    /// Which of them is chosen.
    pub fn chosen(&self) -> usize {
        self.chosen
    }

    /// The id of that one.
    pub fn id(&self) -> Option<String> {
        self.shown().get(self.chosen).map(|e| e.id.clone())
    }

    /// Another letter.
    pub fn push(&mut self, c: char) {
        self.typed.push(c);
        self.chosen = 0;
    }

    /// A letter less.
    pub fn pop(&mut self) {
        self.typed.pop();
        self.chosen = 0;
    }

    /// Up or down.
    pub fn go(&mut self, by: isize) {
        let last = self.shown().len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }
}

/// How long ago something was, in one word.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => "now".into(),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_narrows_and_the_choice_stays_inside() {
        let entry = |name: &str| Entry { id: name.into(), name: name.into(), turns: 2, changed: 0 };
        let mut picker = Picker::new(vec![entry("Rust"), entry("你好"), entry("trust")]);
        picker.go(5);
        assert_eq!(picker.id().as_deref(), Some("trust"));
        "rus".chars().for_each(|c| picker.push(c));
        assert_eq!((picker.shown().len(), picker.id().as_deref()), (2, Some("Rust")));
        picker.push('x');
        assert_eq!(picker.id(), None);
        (0..4).for_each(|_| picker.pop());
        picker.go(-1);
        assert_eq!(picker.chosen(), 0);
        assert_eq!([ago(5), ago(120), ago(7200), ago(200_000)], ["now", "2 min", "2 h", "2 d"]);
    }
}

//! The wording of the question set, shared with the demonstration model's training (`models/demo/phrasings.json`), and
//! names and values held out from training. Next: [`super::text`].

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde::Deserialize;
use std::collections::HashMap;

/// The parsed contents of `phrasings.json`.
#[derive(Debug, Deserialize)]
pub struct Spec {
    /// The number of phrasings at the end of each list that are for testing only.
    pub held_out: usize,
    /// Syllables that names are made of.
    pub names: HashMap<String, Vec<String>>,
    /// The relations that a text can state.
    pub relations: Vec<Relation>,
    /// The questions that need two facts.
    pub two_hop: TwoHop,
    /// The answer if the text does not contain one.
    pub absent: String,
}

/// A relation between a subject and a value.
#[derive(Debug, Deserialize)]
pub struct Relation {
    pub name: String,
    /// The kind of question, for reports.
    pub kind: String,
    /// The kind of subject: `person`, `place` or `setting`.
    pub subject: String,
    /// The kind of value: a method of [`Words`].
    pub value: String,
    pub answer: String,
    /// Sentences with placeholders `{s}` and `{v}`.
    pub statements: Vec<String>,
    /// Questions with the placeholder `{s}`.
    pub questions: Vec<String>,
}

/// Questions about a person that another fact names.
#[derive(Debug, Deserialize)]
pub struct TwoHop {
    /// The relations whose value is such a person.
    pub through: Vec<String>,
    /// The relations of that person in questions.
    pub asked: Vec<String>,
    /// The description of the person in the question, with `{s}`.
    pub between: HashMap<String, String>,
    /// The start of the answer, with `{m}`.
    pub answer: HashMap<String, String>,
}

impl Spec {
    /// Parses the `phrasings.json` that is embedded in the program.
    pub fn built_in() -> Spec {
        serde_json::from_str(include_str!("../../../models/demo/phrasings.json")).expect("a test reads it")
    }

    /// Returns the relation with a name.
    pub fn relation(&self, name: &str) -> &Relation {
        self.relations.iter().find(|r| r.name == name).expect("named in the same file")
    }

    /// Draws a phrasing held out for testing.
    pub fn held_out<'a>(&self, draw: &mut Draw, phrasings: &'a [String]) -> &'a str {
        draw.pick::<String>(&phrasings[phrasings.len() - self.held_out..])
    }
}

/// A seeded source of choices.
pub struct Draw(Pcg64Mcg);

impl Draw {
    /// Creates a source with a seed.
    pub fn new(seed: u64) -> Draw {
        Draw(Pcg64Mcg::seed_from_u64(seed))
    }

    /// Draws a number from `low` to below `high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.0.next_u64() % (high - low) as u64) as usize
    }

    /// Draws an element of a slice.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.range(0, of.len())]
    }

    /// Returns true with this probability.
    pub fn chance(&mut self, share: f64) -> bool {
        ((self.0.next_u64() >> 11) as f64) < share * (1u64 << 53) as f64
    }
}

/// Returns whether a name or value is held out for testing: one of eight classes of its 32-bit FNV-1a hash, as in
/// documents.py.
fn kept(text: &str) -> bool {
    let hash = text.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (hash >> 7).is_multiple_of(8)
}

/// Draws names and values held out from training.
pub struct Words<'a> {
    spec: &'a Spec,
    pub draw: Draw,
}

impl<'a> Words<'a> {
    pub fn new(spec: &'a Spec, seed: u64) -> Self {
        Words { spec, draw: Draw::new(seed) }
    }

    /// Draws a subject or value of a kind named in `phrasings.json`.
    pub fn of(&mut self, kind: &str) -> String {
        match kind {
            "person" => {
                format!("{} {}", self.kept(|w| w.stem("first")), self.kept(|w| w.stem("last")))
            }
            "town" => self.kept(|w| w.stem("town")),
            "place" => {
                let ending = if self.draw.chance(0.5) { "last" } else { "town" };
                format!("the {} {}", self.kept(|w| w.stem(ending)), self.part("places"))
            }
            "setting" => self.kept(Words::setting),
            "job" => self.kept(|w| w.part("jobs").to_owned()),
            "number" => self.kept(|w| {
                let least = *w.draw.pick(&[100, 1000, 10_000, 100_000]);
                w.draw.range(least, 1_000_000).to_string()
            }),
            "code" => self.kept(Words::code),
            "date" => self.kept(|w| {
                let (day, year) = (w.draw.range(1, 29), w.draw.range(1700, 2030));
                format!("{day} {} {year}", w.part("months"))
            }),
            "money" => self.kept(|w| format!("{} {}", w.draw.range(2, 10_000), w.part("currencies"))),
            "quantity" => self.kept(|w| {
                let (small, large) = (w.draw.range(2, 100), w.draw.range(100, 10_000));
                let n = if w.draw.chance(0.5) { small } else { large };
                format!("{n}{}", w.part("units"))
            }),
            "size" => self.kept(|w| {
                let units = ["acres", "feet", "metres", "square metres", "yards"];
                format!("{} {}", w.draw.range(20, 10_000), w.draw.pick(&units))
            }),
            other => unreachable!("phrasings.json names the kind {other}"),
        }
    }

    fn kept(&mut self, mut make: impl FnMut(&mut Self) -> String) -> String {
        loop {
            let text = make(self);
            if kept(&text) {
                return text;
            }
        }
    }

    fn part(&mut self, of: &str) -> &'a str {
        self.draw.pick::<String>(&self.spec.names[of])
    }

    fn stem(&mut self, ending: &str) -> String {
        let stem = [self.part("onsets"), self.part("vowels"), self.part("middles")].concat();
        let (first, rest) = stem.split_at(1);
        first.to_uppercase() + rest + self.part(ending)
    }

    fn setting(&mut self) -> String {
        let mut name = self.part("settings").to_owned();
        if self.draw.chance(0.5) {
            name = name + "_" + self.part("settings");
        }
        name + self.draw.pick::<&str>(&[".", "_"]) + self.part("fields")
    }

    fn code(&mut self) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHJKLMNPRSTUVWXYZ";
        let kind = self.draw.range(0, 4);
        let mut letter = || char::from(*self.draw.pick(LETTERS));
        let (a, b, c) = (letter(), letter(), letter());
        match kind {
            0 => self.draw.range(1000, 100_000).to_string(),
            1 => format!("{a}{b}-{}", self.draw.range(100, 10_000)),
            2 => format!("{a}{}", self.draw.range(10, 1000)),
            _ => format!("{a}{b}{}{c}", self.draw.range(10, 100)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relation_has_phrasings_for_both_uses_and_values_that_can_be_drawn() {
        let spec = Spec::built_in();
        let mut words = Words::new(&spec, 1);
        for relation in &spec.relations {
            assert!(relation.statements.len() > spec.held_out + 4, "{}", relation.name);
            assert!(relation.questions.len() > spec.held_out + 4, "{}", relation.name);
            assert!(relation.statements.iter().all(|s| s.contains("{s}") && s.contains("{v}")));
            assert!(relation.questions.iter().all(|q| q.contains("{s}")) && relation.answer.contains("{v}"));
            assert!(!words.of(&relation.subject).is_empty() && !words.of(&relation.value).is_empty());
        }
        for name in spec.two_hop.through.iter().chain(&spec.two_hop.asked) {
            assert_eq!(spec.relation(name).name, *name);
        }
    }

    #[test]
    fn the_kept_share_is_the_one_that_training_leaves_out() {
        // From documents.py: held_out("Blistmere"), and the share over the numbers to a thousand.
        assert!(!kept("Blistmere") && !kept("Thindah"));
        assert_eq!((0..1000).filter(|n| kept(&n.to_string())).count(), 115);
    }
}

//! Generates a text of a given length that contains facts, and questions about them, from held-out words and prose.

use super::spec::{Draw, Relation, Spec, Words};

/// Real prose held out from training, one sentence per line.
pub const PROSE: &str = include_str!("../../../models/demo/prose/heldout.txt");

/// A question about the text and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The kind of the answer, for reports.
    pub kind: String,
    pub text: String,
    /// The expected reply, in the form that training uses.
    pub answer: String,
}

/// A generated text with its facts.
pub struct Text<'a> {
    spec: &'a Spec,
    words: Words<'a>,
    facts: Vec<Fact<'a>>,
}

struct Fact<'a> {
    subject: String,
    relation: &'a Relation,
    value: String,
    sentence: String,
}

/// The maximum number of facts per text.
const FACTS: usize = 40;

impl<'a> Text<'a> {
    /// Draws the facts of a text of about `tokens` tokens.
    pub fn new(spec: &'a Spec, seed: u64, tokens: usize) -> Self {
        let mut text = Text { spec, words: Words::new(spec, seed), facts: Vec::new() };
        let most = (tokens / 28).clamp(3, FACTS);
        let wanted = text.words.draw.range(3, most + 1);
        while text.facts.len() < wanted {
            text.add_subject(wanted);
        }
        text
    }

    fn add_subject(&mut self, wanted: usize) {
        let kinds =
            ["person", "person", "person", "person", "person", "place", "place", "place", "place", "setting"];
        let kind = *self.words.draw.pick(&kinds);
        let subject = self.words.of(kind);
        let mut relations: Vec<&Relation> =
            self.spec.relations.iter().filter(|r| r.subject == kind).collect();
        let count = *self.words.draw.pick(&[1, 1, 2, 2, 3, 4]);
        for _ in 0..count.min(relations.len()).min(wanted - self.facts.len()) {
            let at = self.words.draw.range(0, relations.len());
            let relation = relations.swap_remove(at);
            let person = self.add(relation, &subject);
            if self.spec.two_hop.through.contains(&relation.name) && self.words.draw.chance(0.6) {
                let second = self.words.draw.pick(&self.spec.two_hop.asked);
                self.add(self.spec.relation(second), &person);
            }
        }
    }

    fn add(&mut self, relation: &'a Relation, subject: &str) -> String {
        let mut value = self.words.of(&relation.value);
        while value == subject {
            value = self.words.of(&relation.value);
        }
        let phrasing = self.spec.held_out(&mut self.words.draw, &relation.statements);
        let mut sentence = phrasing.replace("{s}", subject).replace("{v}", &value);
        if sentence.starts_with("the ") {
            sentence.replace_range(..1, "T");
        }
        self.facts.push(Fact { subject: subject.to_owned(), relation, value: value.clone(), sentence });
        value
    }

    /// Lays out the text: facts at random places between as many sentences of prose as fit the length, measured by
    /// `size`.
    pub fn lay_out(&mut self, tokens: usize, size: &dyn Fn(&str) -> usize) -> String {
        let prose: Vec<&str> = PROSE.lines().collect();
        let mut left = tokens.saturating_sub(self.facts.iter().map(|f| size(&f.sentence)).sum());
        let start = self.words.draw.range(0, prose.len());
        let mut sentences = Vec::new();
        for sentence in prose.iter().cycle().skip(start) {
            let tokens = size(sentence);
            if tokens > left {
                break;
            }
            left -= tokens;
            sentences.push(*sentence);
        }
        let facts: Vec<&str> = self.facts.iter().map(|f| f.sentence.as_str()).collect();
        paragraphs(&mut self.words.draw, sentences, &facts)
    }

    /// Draws a question, with the kinds in the proportions of the training data.
    pub fn ask(&mut self) -> Question {
        let kind = self.words.draw.range(0, 100);
        let hop = (kind < 13).then(|| self.ask_hop()).flatten();
        hop.or_else(|| (13..26).contains(&kind).then(|| self.ask_absent())).unwrap_or_else(|| self.ask_fact())
    }

    fn ask_fact(&mut self) -> Question {
        let at = self.words.draw.range(0, self.facts.len());
        let fact = &self.facts[at];
        let text = self.spec.held_out(&mut self.words.draw, &fact.relation.questions);
        Question {
            kind: fact.relation.kind.clone(),
            text: text.replace("{s}", &fact.subject),
            answer: fact.relation.answer.replace("{v}", &fact.value),
        }
    }

    fn ask_hop(&mut self) -> Option<Question> {
        let hop = &self.spec.two_hop;
        let through = |f: &&Fact<'_>| hop.through.contains(&f.relation.name);
        let pairs: Vec<(&Fact<'_>, &Fact<'_>)> = self
            .facts
            .iter()
            .filter(through)
            .flat_map(|a| self.facts.iter().filter(|b| b.subject == a.value).map(move |b| (a, b)))
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let (first, second) = *self.words.draw.pick(&pairs);
        let between = hop.between[&first.relation.name].replace("{s}", &first.subject);
        let text = self.spec.held_out(&mut self.words.draw, &second.relation.questions);
        Some(Question {
            kind: "two hops".into(),
            text: text.replace("{s}", &between),
            answer: hop.answer[&first.relation.name].replace("{m}", &first.value)
                + &second.relation.answer.replace("{v}", &second.value),
        })
    }

    /// Draws a question about a known or unknown person that the text does not answer.
    fn ask_absent(&mut self) -> Question {
        let relation = self.words.draw.pick(&self.spec.relations);
        let says = |subject: &str| {
            self.facts.iter().any(|f| f.subject == subject && f.relation.name == relation.name)
        };
        let kind = |f: &&Fact<'_>| f.relation.subject == relation.subject && !says(&f.subject);
        let known: Vec<String> = self.facts.iter().filter(kind).map(|f| f.subject.clone()).collect();
        let subject = if !known.is_empty() && self.words.draw.chance(0.6) {
            self.words.draw.pick(&known).clone()
        } else {
            self.words.of(&relation.subject)
        };
        let text = self.spec.held_out(&mut self.words.draw, &relation.questions);
        let (kind, answer) = ("absent".into(), self.spec.absent.clone());
        Question { kind, text: text.replace("{s}", &subject), answer }
    }
}

fn paragraphs<'a>(draw: &mut Draw, mut sentences: Vec<&'a str>, facts: &[&'a str]) -> String {
    // Draws the places first and inserts in one pass; inserting one by one would move the whole text for each fact.
    let mut places: Vec<(usize, &str)> =
        facts.iter().map(|f| (draw.range(0, sentences.len() + 1), *f)).collect();
    places.sort_unstable();
    for (at, fact) in places.into_iter().rev() {
        sentences.insert(at, fact);
    }
    let mut text = String::new();
    let mut left = draw.range(2, 9);
    for sentence in sentences {
        text += sentence;
        left -= 1;
        text += if left == 0 { "\n\n" } else { " " };
        if left == 0 {
            left = draw.range(2, 9);
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_its_length_holds_its_answers_and_is_the_same_for_a_seed() {
        let spec = Spec::built_in();
        let size = |s: &str| s.len() / 4 + 1;
        for (seed, tokens) in [(1, 300), (2, 1000), (3, 4000)] {
            let mut text = Text::new(&spec, seed, tokens);
            let body = text.lay_out(tokens, &size);
            assert!((tokens * 3..tokens * 5).contains(&body.len()), "{tokens}: {} bytes", body.len());
            assert!(text.facts.iter().all(|f| body.contains(&f.sentence)));
            let asked: Vec<Question> = (0..50).map(|_| text.ask()).collect();
            for question in asked.iter().filter(|q| !["absent", "two hops"].contains(&q.kind.as_str())) {
                let relation = |r: &&Fact<'_>| r.relation.answer.replace("{v}", &r.value) == question.answer;
                assert!(text.facts.iter().any(|f| relation(&f) && question.text.contains(&f.subject)));
            }
            let mut again = Text::new(&spec, seed, tokens);
            assert_eq!(body, again.lay_out(tokens, &size));
            assert_eq!(asked, (0..50).map(|_| again.ask()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_absent_is_not_in_the_text_and_two_hops_lead_to_a_fact() {
        let spec = Spec::built_in();
        let (mut absent, mut hops) = (0, 0);
        for seed in 0..8 {
            let mut text = Text::new(&spec, seed, 1500);
            let body = text.lay_out(1500, &|s| s.len() / 4 + 1);
            for question in (0..50).map(|_| text.ask()) {
                absent += usize::from(question.kind == "absent");
                if question.kind == "two hops" {
                    hops += 1;
                    let value = question.answer.trim_end_matches('.').rsplit(' ').next().unwrap();
                    assert!(body.contains(value), "{question:?}");
                }
            }
        }
        assert!((30..80).contains(&absent) && hops > 10, "{absent} {hops}");
    }
}

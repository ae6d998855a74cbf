"""Generates the training data of the demonstration model: texts that contain facts, and conversations about them.

All wording comes from phrasings.json, which `kimi eval` reads too. Names and values whose hash falls in one of eight
classes, the last `held_out` phrasings of each list and the held-out prose never occur in training.

    python documents.py --prose prose 400        prints one conversation about a text of about 400 tokens
"""
import argparse, base64, json, pathlib, random, re

HERE = pathlib.Path(__file__).parent
SPEC = json.loads((HERE / "phrasings.json").read_text())
MORE = json.loads((HERE / "variety.json").read_text())
KEPT = {x.lower() for r in SPEC["relations"] for k in ("statements", "questions") for x in r[k][-SPEC["held_out"]:]}
NAMES = SPEC["names"]
BYTES_PER_TOKEN = 3.4                                     # of this tokenizer on these texts, to aim at a length


def held_out(text):
    """Returns whether a name or value is held out for testing: FNV-1a (32 bit) of its bytes, one class of eight."""
    h = 0x811C9DC5
    for byte in text.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return (h >> 7) % 8 == 0


class Words:
    """Draws names and values of one split."""

    def __init__(self, rng, testing, prose):
        self.rng, self.testing, self.prose = rng, testing, prose

    def draw(self, make):
        while True:
            text = make()
            if held_out(text) == self.testing:
                return text

    def stem(self):
        r = self.rng
        text = r.choice(NAMES["onsets"]) + r.choice(NAMES["vowels"]) + r.choice(NAMES["middles"])
        return text[0].upper() + text[1:]

    def person(self):
        first = lambda: self.stem() + self.rng.choice(NAMES["first"])
        last = lambda: self.stem() + self.rng.choice(NAMES["last"])
        return self.draw(first) + " " + self.draw(last)

    def town(self):
        return self.draw(lambda: self.stem() + self.rng.choice(NAMES["town"]))

    def place(self):
        name = self.draw(lambda: self.stem() + self.rng.choice(NAMES["last"] + NAMES["town"]))
        return f"the {name} {self.rng.choice(NAMES['places'])}"

    def setting(self):
        r = self.rng
        word = lambda: r.choice(NAMES["settings"])
        def make():
            first = word() + r.choice(["", "_" + word()])
            return first + r.choice([".", "_"]) + r.choice(NAMES["fields"])
        return self.draw(make)

    def job(self):
        if self.testing:
            return self.draw(lambda: self.rng.choice(NAMES["jobs"]))
        return self.draw(self.any_word)                   # a trade is to be read, not guessed

    def any_word(self):
        """A trade from the list, an invented one, a word of the prose, the start and end of two words, or tokens of the
        tokenizer, drawn from all tokens so that the model also learns to distinguish common ones (" watch", " gold")."""
        r, trades = self.rng, MORE["trades"]
        word, first, more = (lambda a=a: r.choice(a) for a in (self.prose.words, self.prose.first, self.prose.more))
        makes = [lambda: r.choice(NAMES["jobs"]), lambda: self.stem().lower() + r.choice(trades), word,
                 lambda: word()[:r.randint(2, 5)] + word()[-r.randint(2, 5):],
                 lambda: word()[:r.randint(3, 7)] + r.choice(trades),
                 lambda: first() + r.choice(trades),
                 lambda: first() + "".join(more() for _ in range(r.choice([0, 1, 1, 1, 2])))]
        return r.choices(makes, [2, 1, 2, 2, 1, 4, 4])[0]()

    def number(self):
        return self.draw(lambda: str(self.rng.randrange(10 ** self.rng.choice([2, 3, 4, 5]), 10 ** 6))[-6:])

    def code(self):
        r = self.rng
        letters = lambda n: "".join(r.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(n))
        kinds = [lambda: str(r.randrange(1000, 100000)), lambda: f"{letters(2)}-{r.randrange(100, 10000)}",
                 lambda: f"{letters(1)}{r.randrange(10, 1000)}", lambda: letters(2) + str(r.randrange(10, 100)) + letters(1)]
        return self.draw(lambda: r.choice(kinds)())

    def date(self):
        r = self.rng
        return self.draw(lambda: f"{r.randrange(1, 29)} {r.choice(NAMES['months'])} {r.randrange(1700, 2030)}")

    def money(self):
        r = self.rng
        return self.draw(lambda: f"{r.randrange(2, 10000)} {r.choice(NAMES['currencies'])}")

    def quantity(self):
        r = self.rng
        return self.draw(lambda: str(r.choice([r.randrange(2, 100), r.randrange(100, 10000)])) + r.choice(NAMES["units"]))

    def size(self):
        r = self.rng
        return self.draw(lambda: f"{r.randrange(20, 10000)} {r.choice(['acres', 'feet', 'metres', 'square metres', 'yards'])}")


class Text:
    """One text: its facts, the questions they answer, and the prose around them."""

    def __init__(self, rng, prose, tokens, testing=False, facts=None, drill=False):
        self.rng, self.words, self.testing, self.drill = rng, Words(rng, testing, prose), testing, drill
        self.facts = {}                                   # (subject, relation) -> (value, sentence)
        self.hops = []                                    # (first relation, subject, person, second relation)
        most = max(3, min(40 if testing else 80, tokens // 20))
        self.stray = [w for w in " ".join(prose.run(rng, 400)).split() if w.isalpha() and w.islower()] or ["very"]
        wanted = facts or rng.randint(min(3, most), most)
        while len(self.facts) < wanted:
            self.add_subject(wanted)
        self.text = self.lay_out(prose, tokens)
        self.unasked = list(self.facts.items())
        rng.shuffle(self.unasked)

    def pick(self, relation, what):
        phrasings = relation[what]
        cut = len(phrasings) - SPEC["held_out"]
        if self.testing:
            return self.rng.choice(phrasings[cut:])
        return self.rng.choice(phrasings[:cut] + MORE["phrasings"][relation["name"]][what])

    def strewn(self, wording, share):
        """For training: sometimes inserts words of the prose in a phrasing, so that the model relies on no single neighbour."""
        r = self.rng
        if r.random() >= share:
            return wording
        words = wording.split(" ")
        for _ in range(r.choice([1, 1, 1, 2, 2, 3])):
            word = r.choice(self.stray)
            at = r.randint(1, len(words) - 1) if len(words) > 1 else 1
            words.insert(at, word)
        return " ".join(words)

    def loose(self, relation, parts, end):
        """For training: a noun of the relation and `parts` in any order with words of the prose in between, so that the model
        learns to recognise the relation of unknown wordings."""
        r = self.rng
        parts = [*parts, r.choice(MORE["nouns"][relation["name"]])]
        r.shuffle(parts)
        stray = lambda: [r.choice(self.stray) for _ in range(r.choice([0, 0, 1, 1, 2, 3, 4]))]
        words = [w for part in parts for w in (*stray(), part)] + stray()
        said = " ".join(words)
        return (said if said[0] == "{" else said[0].upper() + said[1:]) + end

    def statement(self, relation):
        """A phrasing of a fact: one from the list, or for training one composed of parts."""
        r, said = self.rng, self.pick(relation, "statements")
        if self.testing:
            return said
        if r.random() < 0.2:
            return self.made(lambda: self.loose(relation, ["{s}", "{v}"], "."))
        if r.random() < 0.25:
            said = self.made(lambda: r.choice(MORE["statements"]).replace("{n}", r.choice(MORE["nouns"][relation["name"]])))
        said = self.strewn(said, 0.25)
        if said.endswith(".") and "?" not in said:
            if r.random() < 0.2:
                said = said[:-1] + r.choice(MORE["tails"]) + "."
            if r.random() < 0.2:
                said = r.choice(MORE["openers"]) + (said if said[0] == "{" else said[0].lower() + said[1:])
        return said

    def asking(self, relation):
        """A phrasing of a question: one from the list, or for training one composed of parts."""
        r, asked = self.rng, self.pick(relation, "questions")
        if self.testing:
            return asked
        if r.random() < 0.12:
            return self.made(lambda: self.loose(relation, ["{s}"], r.choice("?.")))
        if r.random() < 0.35:
            def make():
                ask = r.choice(MORE["asks"])
                form = r.choice(MORE["forms"])
                end = "?" if ask.split()[0] in ("What", "Which", "Do", "Can", "Could", "Would", "May", "Have", "Where") else "."
                ask = ask if form.startswith("{a}") else ask[0].lower() + ask[1:]
                return form.format(a=ask, n=r.choice(MORE["nouns"][relation["name"]]), s="{s}", e=end)
            asked = self.made(make)
        asked = self.strewn(asked, 0.1)
        if r.random() < 0.12:
            asked = r.choice(MORE["before"]) + (asked if asked[0] == "{" else asked[0].lower() + asked[1:])
        if r.random() < 0.08:
            asked += r.choice(MORE["after"])
        return asked

    def made(self, make):
        while True:
            wording = make()
            if wording.lower() not in KEPT:
                return wording

    def add_subject(self, wanted):
        kind = self.rng.choices(["person", "place", "setting"], [5, 4, 1 + (wanted > 12)])[0]
        if self.drill:
            kind = "person"
        subject = getattr(self.words, kind)()
        relations = [r for r in SPEC["relations"] if r["subject"] == kind]
        count = min(len(relations), self.rng.choice([1, 1, 2, 2, 3, 4]), wanted - len(self.facts))
        chosen = self.rng.sample(relations, count)
        if self.drill or (kind == "person" and not self.testing and self.rng.random() < 0.3):
            job = next(r for r in relations if r["name"] == "job")
            others = [r for r in chosen if r is not job]
            chosen = [job] + others[:0 if self.drill else count - 1]      # the hardest to read are practised most
        for relation in chosen:
            value = self.add(relation, subject)
            if relation["name"] in SPEC["two_hop"]["through"] and self.rng.random() < 0.6:
                asked = self.rng.choice(SPEC["two_hop"]["asked"])
                second = next(r for r in SPEC["relations"] if r["name"] == asked)
                self.add(second, value)
                self.hops.append((relation["name"], subject, value, second))

    def add(self, relation, subject):
        value = getattr(self.words, relation["value"])()
        while value == subject or (value, relation["name"]) in self.facts:
            value = getattr(self.words, relation["value"])()
        sentence = self.statement(relation).format(s=subject, v=value)
        if sentence.startswith("the "):
            sentence = "T" + sentence[1:]
        self.facts[subject, relation["name"]] = (value, sentence)
        return value

    def lay_out(self, prose, tokens):
        """Facts in random order between sentences of prose, or together in a list or a paragraph of their own."""
        sentences = [sentence for _, sentence in self.facts.values()]
        self.rng.shuffle(sentences)
        room = int(tokens * BYTES_PER_TOKEN) - sum(map(len, sentences))
        blocks = [[s] for s in sentences]
        style = 0 if self.testing else self.rng.random()
        if style > 0.85:
            blocks = [["- " + s + "\n"] for s in sentences] if style > 0.95 else [sentences]
            if style > 0.95:
                blocks = ["".join(b[0] for b in blocks)]
                blocks = [["\n" + blocks[0]]]
        filler = prose.run(self.rng, room)
        for block in blocks:
            filler.insert(self.rng.randint(0, len(filler)), " ".join(block))
        out, left = [], self.rng.randint(2, 8)
        for sentence in filler:
            out.append(sentence)
            left -= 1
            out.append("\n\n" if left == 0 else " ")
            left = left or self.rng.randint(2, 8)
        return "".join(out).strip()

    def question(self, kind=None):
        """(question, answer, supporting sentences, kind). A kind of None is drawn at random."""
        r = self.rng
        kind = kind or r.choices(["fact", "hop", "absent"], [0.74, 0.13, 0.13] if self.testing else [0.68, 0.16, 0.16])[0]
        if kind == "hop" and self.hops:
            return self.ask_hop(*self.hops.pop(r.randrange(len(self.hops))))
        if kind == "absent":
            asked = self.ask_absent()
            if asked:
                return asked
        if not self.unasked:                              # each fact once: asked again, the last answer would be copied
            return None
        (subject, name), (value, sentence) = self.unasked.pop()
        relation = next(x for x in SPEC["relations"] if x["name"] == name)
        question = self.asking(relation).format(s=subject)
        return question, relation["answer"].format(v=value), [(sentence, subject, value)], relation["kind"]

    def ask_hop(self, first, subject, person, second):
        between = SPEC["two_hop"]["between"][first].format(s=subject)
        value, sentence = self.facts[person, second["name"]]
        question = self.asking(second).format(s=between)
        answer = SPEC["two_hop"]["answer"][first].format(m=person) + second["answer"].format(v=value)
        return question, answer, [(self.facts[subject, first][1], subject, person), (sentence, person, value)], "two hops"

    def ask_absent(self):
        relation = self.rng.choice(SPEC["relations"])
        known = [s for s, n in self.facts if (s, relation["name"]) not in self.facts and self.kind_of(s) == relation["subject"]]
        if known and self.rng.random() < 0.6:
            subject = self.rng.choice(known)
        else:
            subject = getattr(self.words, relation["subject"])()
            if (subject, relation["name"]) in self.facts:
                return None
        return self.asking(relation).format(s=subject), SPEC["absent"], [], "absent"

    def kind_of(self, subject):
        if subject.startswith("the "):
            return "place"
        return "person" if " " in subject else "setting"


def quote(sentence, subject, value):
    """The part of a sentence from its subject or value, whichever is first, to the end of the other."""
    low = sentence.lower()
    bare = subject.removeprefix("the ")
    at = [(low.find(x.lower()), len(x)) for x in (bare, value)]
    start, end = min(a for a, _ in at), max(a + n for a, n in at)
    return sentence[start:end]


class Prose:
    """Sentences of real prose, drawn in runs; its words, and the tokens that the tokenizer beside it forms words from."""

    def __init__(self, path):
        path = pathlib.Path(path)
        self.sentences = [s for s in path.read_text().split("\n") if s]
        self.words = sorted({w for s in self.sentences for w in s.split() if len(w) > 3 and w.isalpha() and w.islower()})
        ranks, pieces = path.with_name("tiktoken.model"), [" " + w for w in self.words] + self.words
        if ranks.exists():                                # prepare.py has none yet
            pieces = [base64.b64decode(x.split()[0]).decode(errors="replace") for x in ranks.read_text().splitlines()]
        self.first = [x[1:] for x in pieces if re.fullmatch(" [a-z]{3,}", x)]
        self.more = [x for x in pieces if re.fullmatch("[a-z]{2,}", x)]

    def run(self, rng, size):
        """Consecutive sentences of about `size` bytes, wrapping at the end."""
        out, at = [], rng.randrange(len(self.sentences))
        while size > 0:
            out.append(self.sentences[at % len(self.sentences)])
            size -= len(out[-1]) + 1
            at += 1
        return out


def conversation(rng, prose, tokens, questions=None, drill=False):
    """A text and questions about it, as [(role, text)]; the text precedes the first question. A drill contains trades only, with
    a question for each."""
    turns, asked = [], set()
    if rng.random() < 0.2:
        turns.append(("system", rng.choice(SPEC["systems"])))
    questions = questions or rng.randint(3, 10)
    if drill:
        questions = max(4, tokens // 45)
        text = Text(rng, prose, 20 * questions, facts=questions, drill=True)
    else:
        text = Text(rng, prose, max(120, tokens - 25 * questions))
    if rng.random() < 0.04:
        lines, reply = rng.choice(SPEC["small_talk"])
        turns += [("user", rng.choice(lines)), ("assistant", reply)]
    quoting = rng.random() < 0.35
    lead = text.text + "\n\n"
    for _ in range(questions):
        drawn = text.question("fact" if drill and rng.random() < 0.9 else None)
        if drawn is None:
            break
        question, answer, rests, _ = drawn
        if question in asked:
            continue
        asked.add(question)
        question = rng.choice(SPEC["leads"]) + question
        if quoting:
            question += " " + rng.choice(SPEC["quote"])
            answer += "".join("\n> " + quote(*rest) for rest in rests)
        turns += [("user", lead + question), ("assistant", answer)]
        lead = ""
        if rng.random() < 0.02:
            lines, reply = rng.choice(SPEC["small_talk"])
            turns += [("user", rng.choice(lines)), ("assistant", reply)]
    return turns


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("tokens", type=int)
    p.add_argument("--prose", default="prose/train.txt")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    for role, said in conversation(random.Random(a.seed), Prose(a.prose), a.tokens):
        print(f"[{role}] {said}")

//! Interprets the text operators of a page's content stream, and of the forms that it draws, as positioned glyphs.

use super::font::PdfFont;
use super::matrix::PageTransform;
use hayro_syntax::content::TypedIter;
use hayro_syntax::content::ops::TypedInstruction;
use hayro_syntax::object::{
    Array, Dict, Name, Number, Object, ObjectIdentifier, Stream, String as PdfString,
};
use hayro_syntax::page::{Page, Resources};
use std::collections::HashMap;
use std::rc::Rc;

/// Deepest nesting of forms, as a form can draw itself.
const MAX_DEPTH: usize = 12;
/// Most forms that a page draws.
const MAX_FORMS: usize = 20_000;
/// Most glyphs of a page.
const MAX_GLYPHS: usize = 2_000_000;

/// A glyph on a page.
#[derive(Clone, Debug)]
pub(super) struct Glyph {
    pub text: String,
    /// The start of its baseline.
    pub at: (f64, f64),
    /// The advance as a vector on the page.
    pub advance: (f64, f64),
    /// The size of the font on the page.
    pub size: f64,
}

/// Interprets pages; fonts are kept from page to page.
#[derive(Default)]
pub(super) struct Interpreter {
    fonts: HashMap<ObjectIdentifier, Rc<PdfFont>>,
    /// Glyphs with and without a known character.
    pub mapped: usize,
    pub unmapped: usize,
}

impl Interpreter {
    /// The glyphs of a page in the order of its content stream.
    pub fn page(&mut self, page: &Page<'_>) -> Vec<Glyph> {
        let mut run = PageRun {
            interpreter: self,
            glyphs: Vec::new(),
            forms: 0,
            replaced: Vec::new(),
            replacing: None,
        };
        run.operators(page.typed_operations(), page.resources(), PageTransform::IDENTITY, 0);
        run.glyphs
    }

    fn font(&mut self, dict: &Dict<'_>) -> Rc<PdfFont> {
        match dict.obj_id() {
            Some(id) => self.fonts.entry(id).or_insert_with(|| Rc::new(PdfFont::new(dict))).clone(),
            None => Rc::new(PdfFont::new(dict)),
        }
    }
}

/// The text state, which `q` saves and `Q` restores with the transform.
#[derive(Clone)]
struct TextState {
    transform: PageTransform,
    font: Option<Rc<PdfFont>>,
    size: f64,
    char_space: f64,
    word_space: f64,
    scale: f64,
    leading: f64,
    rise: f64,
}

struct PageRun<'i> {
    interpreter: &'i mut Interpreter,
    glyphs: Vec<Glyph>,
    forms: usize,
    /// Open marked content: the text that replaces its glyphs, if any; empty once it is shown.
    replaced: Vec<Option<String>>,
    /// The outermost open content that has such a text.
    replacing: Option<usize>,
}

/// The text and line matrices of a text object.
struct TextObject {
    matrix: PageTransform,
    line: PageTransform,
}

impl PageRun<'_> {
    fn operators(
        &mut self,
        mut ops: TypedIter<'_>,
        resources: &Resources<'_>,
        base: PageTransform,
        depth: usize,
    ) {
        let mut state = TextState {
            transform: base,
            font: None,
            size: 1.0,
            char_space: 0.0,
            word_space: 0.0,
            scale: 1.0,
            leading: 0.0,
            rise: 0.0,
        };
        let mut saved: Vec<TextState> = Vec::new();
        let mut object = TextObject { matrix: PageTransform::IDENTITY, line: PageTransform::IDENTITY };
        while let Some(op) = ops.next() {
            if self.glyphs.len() > MAX_GLYPHS {
                return;
            }
            match op {
                TypedInstruction::SaveState(_) if saved.len() < 1000 => saved.push(state.clone()),
                TypedInstruction::RestoreState(_) => state = saved.pop().unwrap_or(state),
                TypedInstruction::Transform(m) => {
                    state.transform = matrix([m.0, m.1, m.2, m.3, m.4, m.5]).then(state.transform);
                }
                TypedInstruction::TextFont(op) => {
                    let dict = resources.get_font(op.0);
                    state.font = dict.map(|dict| self.interpreter.font(&dict));
                    state.size = op.1.as_f64();
                }
                TypedInstruction::XObject(op) => {
                    if let Some(form) = resources.get_x_object(op.0) {
                        self.form(&form, resources, state.transform, depth);
                    }
                }
                TypedInstruction::BeginMarkedContent(_) => self.replaced.push(None),
                TypedInstruction::BeginMarkedContentWithProperties(op) => {
                    let text = actual_text(op.1, resources);
                    self.replacing = self.replacing.or(text.is_some().then_some(self.replaced.len()));
                    self.replaced.push(text);
                }
                TypedInstruction::EndMarkedContent(_) => {
                    self.replaced.pop();
                    self.replacing = self.replacing.filter(|at| *at < self.replaced.len());
                }
                op => self.text_operator(op, &mut state, &mut object),
            }
        }
    }

    fn text_operator(
        &mut self,
        op: TypedInstruction<'_, '_>,
        state: &mut TextState,
        object: &mut TextObject,
    ) {
        match op {
            TypedInstruction::CharacterSpacing(op) => state.char_space = op.0.as_f64(),
            TypedInstruction::WordSpacing(op) => state.word_space = op.0.as_f64(),
            TypedInstruction::HorizontalScaling(op) => state.scale = op.0.as_f64() / 100.0,
            TypedInstruction::TextLeading(op) => state.leading = op.0.as_f64(),
            TypedInstruction::TextRise(op) => state.rise = op.0.as_f64(),
            TypedInstruction::BeginText(_) => object.set(PageTransform::IDENTITY),
            TypedInstruction::SetTextMatrix(m) => object.set(matrix([m.0, m.1, m.2, m.3, m.4, m.5])),
            TypedInstruction::NextLine(op) => object.next_line(op.0.as_f64(), op.1.as_f64()),
            TypedInstruction::NextLineAndSetLeading(op) => {
                state.leading = -op.1.as_f64();
                object.next_line(op.0.as_f64(), op.1.as_f64());
            }
            TypedInstruction::NextLineUsingLeading(_) => object.next_line(0.0, -state.leading),
            TypedInstruction::ShowText(op) => self.show(op.0, state, object),
            TypedInstruction::NextLineAndShowText(op) => {
                object.next_line(0.0, -state.leading);
                self.show(op.0, state, object);
            }
            TypedInstruction::ShowTextWithParameters(op) => {
                (state.word_space, state.char_space) = (op.0.as_f64(), op.1.as_f64());
                object.next_line(0.0, -state.leading);
                self.show(op.2, state, object);
            }
            TypedInstruction::ShowTexts(op) => {
                for item in op.0.iter::<Object<'_>>() {
                    match item {
                        Object::Number(number) => {
                            let offset = -number.as_f64() / 1000.0 * state.size;
                            object.advance(state.along(offset));
                        }
                        Object::String(text) => self.show(&text, state, object),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn show(&mut self, text: &PdfString<'_>, state: &TextState, object: &mut TextObject) {
        let Some(font) = &state.font else { return };
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let code = font.code(bytes);
            bytes = &bytes[code.length.max(1)..];
            let space = state.char_space + if code.is_space { state.word_space } else { 0.0 };
            // Vertical fonts advance by the height of a character downwards.
            let advance =
                if font.is_vertical { -state.size - space } else { code.width / 1000.0 * state.size + space };
            let scale = if font.is_vertical { 1.0 } else { state.scale };
            let to_page = object.matrix.then(state.transform);
            let along = |length| if font.is_vertical { (0.0, length) } else { (length * scale, 0.0) };
            let up = to_page.direction((0.0, state.size));
            let known = code.text.is_some();
            self.interpreter.mapped += usize::from(known);
            self.interpreter.unmapped += usize::from(!known);
            if let Some(text) = self.replacement(code.text) {
                self.glyphs.push(Glyph {
                    text,
                    at: to_page.apply((0.0, state.rise)),
                    advance: to_page.direction(along(advance - space.copysign(advance))),
                    size: up.0.hypot(up.1),
                });
            }
            object.advance(along(advance));
        }
    }

    /// The text of a glyph, or of the marked content that it is in.
    fn replacement(&mut self, text: Option<String>) -> Option<String> {
        match self.replacing.and_then(|at| self.replaced.get_mut(at)?.as_mut()) {
            Some(replacement) => Some(std::mem::take(replacement)),
            None => text,
        }
    }

    fn form(&mut self, form: &Stream<'_>, resources: &Resources<'_>, transform: PageTransform, depth: usize) {
        let dict = form.dict();
        let is_form = dict.get::<Name<'_>>("Subtype").as_deref() == Some(b"Form");
        self.forms += 1;
        if !is_form || depth >= MAX_DEPTH || self.forms > MAX_FORMS {
            return;
        }
        let Ok(content) = form.decoded() else { return };
        let own = dict.get::<Dict<'_>>("Resources").map(Resources::new);
        let entries = dict.get::<Array<'_>>("Matrix").map(|array| array.iter::<f64>().collect::<Vec<_>>());
        let own_matrix = entries
            .and_then(|entries| entries.try_into().ok())
            .map_or(PageTransform::IDENTITY, PageTransform);
        let base = own_matrix.then(transform);
        self.operators(TypedIter::new(&content), own.as_ref().unwrap_or(resources), base, depth + 1);
    }
}

impl TextState {
    /// An offset in the direction of the font.
    fn along(&self, offset: f64) -> (f64, f64) {
        match &self.font {
            Some(font) if font.is_vertical => (0.0, offset),
            _ => (offset * self.scale, 0.0),
        }
    }
}

impl TextObject {
    fn set(&mut self, matrix: PageTransform) {
        (self.matrix, self.line) = (matrix, matrix);
    }

    fn next_line(&mut self, x: f64, y: f64) {
        self.set(PageTransform::translation(x, y).then(self.line));
    }

    fn advance(&mut self, (x, y): (f64, f64)) {
        self.matrix = PageTransform::translation(x, y).then(self.matrix);
    }
}

fn matrix(numbers: [Number; 6]) -> PageTransform {
    PageTransform(numbers.map(|number| number.as_f64()))
}

/// The `ActualText` of marked content, which replaces what its glyphs show.
fn actual_text(properties: &Object<'_>, resources: &Resources<'_>) -> Option<String> {
    let text = match properties {
        Object::Dict(dict) => dict.get::<PdfString<'_>>("ActualText"),
        Object::Name(name) => resources.properties.get::<Dict<'_>>(name)?.get::<PdfString<'_>>("ActualText"),
        _ => None,
    }?;
    let bytes = text.as_bytes();
    Some(match bytes {
        [0xfe, 0xff, utf16 @ ..] => {
            let units: Vec<u16> = utf16.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect();
            String::from_utf16_lossy(&units)
        }
        [0xef, 0xbb, 0xbf, utf8 @ ..] => String::from_utf8_lossy(utf8).into_owned(),
        _ => bytes.iter().map(|byte| char::from(*byte)).collect(),
    })
}

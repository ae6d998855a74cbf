//! Draws a [`Picture`] as SVG in the look of the charts in docs/ (docs/figures.py), with plotters.
//!
//! plotters writes each color as an attribute, which a style sheet overrides: that is how a picture follows the reader's light or
//! dark theme.

use super::{Axis, Panel, Picture, Point, Series};
use crate::io::units::grouped;
use anyhow::{Result, anyhow};
use models::visible::one_line;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Write;
use std::io;
use std::ops::Range;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<io::Error>>;

const WIDTH: u32 = 820;
/// Height without the lines of notes.
const HEIGHT: u32 = 356;
/// Distance of the contents from the left and right edge.
const MARGIN: i32 = 24;
/// Height of title, subtitle and the space below them.
const HEADER: i32 = 84;
/// Height of a line of notes.
const NOTE: i32 = 17;
/// Longest lines of text in characters.
const MAX_CHARS: usize = 118;
/// Dots and error bars are drawn for at most this many points of a line, values and a tick each for half as many.
const MAX_DOTS: usize = 24;
/// Values stand above bars of at least this width in pixels, rounded and smaller above bars of at least the second.
const MIN_BAR: [f64; 2] = [26.0, 18.0];
/// Largest value that is drawn, far above any rate and any perplexity that means something.
const MAX_VALUE: f64 = 1e15;
/// About the width of a character of labels in pixels, and the least space between labels.
const CHAR: f64 = 6.8;
const SPACE: f64 = 5.0;

const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

/// A color of the light theme, and its counterpart in the dark one.
struct Ink(RGBColor, &'static str);

const CARD: Ink = Ink(RGBColor(255, 255, 255), "#0d1117");
const EDGE: Ink = Ink(RGBColor(0xd1, 0xd9, 0xe0), "#30363d");
const GRID: Ink = Ink(RGBColor(0xe6, 0xea, 0xef), "#21262d");
const AXIS: Ink = Ink(RGBColor(0xb7, 0xbf, 0xc8), "#484f58");
const TEXT: Ink = Ink(RGBColor(0x1f, 0x23, 0x28), "#e6edf3");
const NOTES: Ink = Ink(RGBColor(0x59, 0x63, 0x6e), "#9198a1");
/// The colors of the series in turn.
const SERIES: [Ink; 5] = [
    Ink(RGBColor(0x25, 0x63, 0xeb), "#58a6ff"),
    Ink(RGBColor(0x11, 0x8a, 0x7e), "#39c5bb"),
    Ink(RGBColor(0xc2, 0x6a, 0x0a), "#e3b341"),
    Ink(RGBColor(0x8a, 0x4f, 0xd0), "#bc8cff"),
    Ink(RGBColor(0xa3, 0xac, 0xb8), "#6e7681"),
];

/// Returns the SVG document with its styles.
pub fn draw(picture: &Picture) -> Result<String> {
    let mut text = String::new();
    let height = HEIGHT + NOTE as u32 * picture.notes.len() as u32;
    draw_on(&SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area(), picture)
        .map_err(|e| anyhow!("{e}"))?;
    let (_, body) = text.split_once(">\n").ok_or_else(|| anyhow!("no picture was drawn"))?;
    let title = escaped(&picture.title);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-label=\"{title}\">\n<title>{title}</title>\n<style>{}</style>\n{body}",
        style()
    ))
}

/// The style sheet: halos behind text, rounded corners, and the colors of the dark theme.
fn style() -> String {
    let white = hex(&CARD);
    let mut dark = format!("text {{ stroke: {}; }}", CARD.1);
    for color in [CARD, EDGE, GRID, AXIS, TEXT, NOTES].iter().chain(&SERIES) {
        let (light, dark_color) = (hex(color), color.1);
        let _ = write!(
            dark,
            " [fill=\"{light}\"] {{ fill: {dark_color}; }} [stroke=\"{light}\"] {{ stroke: {dark_color}; }}"
        );
    }
    format!(
        "\ntext {{ paint-order: stroke; stroke: {white}; stroke-width: 3px; }}\nrect[fill=\"{white}\"], rect[stroke=\"{}\"] {{ rx: 8px; }}\n\
         @media (prefers-color-scheme: dark) {{ {dark} }}\n",
        hex(&EDGE)
    )
}

/// The attribute that plotters writes for a color.
fn hex(color: &Ink) -> String {
    let RGBColor(r, g, b) = color.0;
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// Escapes a text for an element or an attribute.
fn escaped(text: &str) -> String {
    let text = line(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A line of text without control characters, which XML does not allow.
fn line(text: &str) -> String {
    one_line(text, MAX_CHARS)
}

/// A text style of the given size in CSS pixels; plotters divides sizes by 1.24.
fn font(size: f64, color: &Ink) -> TextStyle<'static> {
    (FONT, size * 1.24).into_font().color(&color.0)
}

fn bold(size: f64) -> TextStyle<'static> {
    (FONT, size * 1.24, FontStyle::Bold).into_font().color(&TEXT.0)
}

fn draw_on(root: &Area<'_>, picture: &Picture) -> Drawn {
    let (width, height) = (WIDTH as i32, HEIGHT as i32 + NOTE * picture.notes.len() as i32);
    root.fill(&CARD.0)?;
    root.draw(&Rectangle::new([(0, 0), (width - 1, height - 1)], EDGE.0))?;
    root.draw(&Text::new(line(&picture.title), (MARGIN, 22), bold(16.0)))?;
    root.draw(&Text::new(line(&picture.subtitle), (MARGIN, 46), font(12.0, &NOTES)))?;
    for (i, note) in picture.notes.iter().rev().enumerate() {
        let y = height - 27 - NOTE * i as i32;
        root.draw(&Text::new(line(note), (MARGIN, y), font(12.0, &NOTES)))?;
    }
    if let Some(panel) = picture.panels.first() {
        legend(root, &panel.series)?;
    }
    let below = NOTE * picture.notes.len() as i32 + 16;
    let area = root.margin(HEADER, below, MARGIN, MARGIN);
    for (panel, area) in picture.panels.iter().zip(area.split_evenly((1, picture.panels.len().max(1)))) {
        draw_panel(&area, panel)?;
    }
    root.present()
}

/// Names the series at the right above the panels, the first leftmost.
fn legend(root: &Area<'_>, series: &[Series]) -> Drawn {
    let mut right = WIDTH as i32 - MARGIN;
    let colored: Vec<_> = series.iter().zip(SERIES.iter().cycle()).collect();
    for (series, color) in colored.into_iter().rev() {
        if series.name.is_empty() {
            continue;
        }
        let name = line(&series.name);
        right -= 7 * name.chars().count() as i32;
        root.draw(&Text::new(name, (right, HEADER), font(13.0, &TEXT)))?;
        root.draw(&Rectangle::new([(right - 17, HEADER), (right - 6, HEADER + 11)], color.0.filled()))?;
        right -= 33;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> Drawn {
    area.draw(&Text::new(line(&panel.head), (0, 0), bold(14.0)))?;
    let points = || panel.series.iter().flat_map(|s| s.points.iter()).filter_map(drawn);
    let highest = points().map(|p| p.range.map_or(p.y, |[_, high]| high.max(p.y))).fold(0.0, f64::max);
    let highest = panel.top.map_or(highest, |top| top.max(highest));
    // Values stand above their points.
    let top = if highest > 0.0 { highest } else { 1.0 } * 1.12;
    let (x, ticks, label) = match &panel.axis {
        Axis::Names(names) => {
            let n = names.len().max(1) as f64;
            (-0.5..n - 0.5, (0..names.len()).map(|i| i as f64).collect(), String::new())
        }
        Axis::Numbers(label) => {
            let xs: Vec<f64> = points().map(|p| p.x).collect();
            let (range, ticks) = numbers(&xs, area.dim_in_pixel().0);
            (range, ticks, line(label))
        }
    };
    let mut builder = ChartBuilder::on(area);
    builder.margin_top(26).margin_right(14).set_label_area_size(LabelAreaPosition::Left, 44);
    builder.set_label_area_size(LabelAreaPosition::Bottom, if label.is_empty() { 26 } else { 42 });
    let mut chart = builder.build_cartesian_2d(x.clone(), 0.0..top)?;
    mesh(&mut chart, top)?;
    for tick in ticks {
        let name = match &panel.axis {
            Axis::Names(names) => line(&names[tick as usize]),
            Axis::Numbers(_) => whole(tick),
        };
        let style = font(12.0, &NOTES).pos(Pos::new(HPos::Center, VPos::Top));
        chart.draw_series([EmptyElement::at((tick, 0.0)) + Text::new(name, (0, 8), style)])?;
    }
    let middle = area.dim_in_pixel().0 as i32 / 2 + 15;
    let style = font(12.0, &NOTES).pos(Pos::new(HPos::Center, VPos::Top));
    area.draw(&Text::new(label, (middle, area.dim_in_pixel().1 as i32 - 18), style))?;
    for (i, (series, color)) in panel.series.iter().zip(SERIES.iter().cycle()).enumerate() {
        match panel.axis {
            Axis::Names(_) => bars(&mut chart, series, color, [i, panel.series.len()])?,
            Axis::Numbers(_) => dots(&mut chart, series, color)?,
        }
    }
    Ok(())
}

/// The range of an axis of numbers, and its ticks: the numbers themselves if they are few.
fn numbers(xs: &[f64], pixels: u32) -> (Range<f64>, Vec<f64>) {
    let (low, high) = xs.iter().fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
    if low > high {
        return (0.0..1.0, Vec::new());
    }
    let span = if high > low { high - low } else { 1.0 };
    let range = low - 0.08 * span..high + 0.08 * span;
    let mut candidates = xs.to_vec();
    candidates.sort_by(f64::total_cmp);
    candidates.dedup();
    if candidates.len() > MAX_DOTS / 2 {
        candidates = RangedCoordf64::from(low..high).key_points(6);
    }
    let pixels = f64::from(pixels.saturating_sub(58)) / (range.end - range.start);
    let labels: Vec<(f64, String)> = candidates.iter().map(|x| (x * pixels, whole(*x))).collect();
    let ticks = apart(&labels).into_iter().map(|i| candidates[i]).collect();
    (range, ticks)
}

/// The labels in order that do not touch one before them, by their places in pixels.
fn apart(labels: &[(f64, String)]) -> Vec<usize> {
    let (mut kept, mut end) = (Vec::new(), f64::NEG_INFINITY);
    for (i, (x, text)) in labels.iter().enumerate() {
        let half = text.chars().count() as f64 * CHAR / 2.0;
        if x - half >= end {
            kept.push(i);
            end = x + half + SPACE;
        }
    }
    kept
}

/// Lines for values, which the chart labels itself, and the axis below.
fn mesh(chart: &mut Chart<'_, '_>, top: f64) -> Drawn {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .x_labels(0)
        .y_labels(6)
        .y_label_formatter(&|y| tick(*y, top))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.0)
        .axis_style(TRANSPARENT)
        .label_style(font(12.0, &NOTES))
        .draw()?;
    let [left, right] = [chart.x_range().start, chart.x_range().end];
    chart.draw_series([PathElement::new([(left, 0.0), (right, 0.0)], AXIS.0)]).map(|_| ())
}

/// Draws the bars of one series, the `i`th of `n`, with their values and error bars.
fn bars(chart: &mut Chart<'_, '_>, series: &Series, color: &Ink, [i, n]: [usize; 2]) -> Drawn {
    let names = chart.x_range();
    let groups = names.end - names.start;
    let width = 0.82 / n as f64;
    let pixels = width * f64::from(chart.plotting_area().dim_in_pixel().0) / groups;
    for p in series.points.iter().filter_map(drawn).filter(|p| names.contains(&p.x)) {
        let left = p.x - 0.41 + width * i as f64;
        chart.draw_series([Rectangle::new(
            [(left + 0.04 * width, 0.0), (left + 0.96 * width, p.y)],
            color.0.filled(),
        )])?;
        error_bar(chart, &Point { x: left + width / 2.0, ..p })?;
        let middle = Point { x: left + width / 2.0, ..p };
        match pixels {
            _ if pixels >= MIN_BAR[0] => value(chart, &middle, number(p.y), 12.0)?,
            _ if pixels >= MIN_BAR[1] => value(chart, &middle, whole(p.y), 10.0)?,
            _ => {}
        }
    }
    Ok(())
}

/// Draws the line of one series with its dots, values and error bars.
fn dots(chart: &mut Chart<'_, '_>, series: &Series, color: &Ink) -> Drawn {
    let points: Vec<Point> = series.points.iter().filter_map(drawn).collect();
    if points.len() > 1 {
        let path: Vec<(f64, f64)> = points.iter().map(|p| (p.x, p.y)).collect();
        chart.draw_series([PathElement::new(path, color.0.stroke_width(2))])?;
    }
    if points.len() > MAX_DOTS {
        return Ok(());
    }
    points.iter().try_for_each(|p| error_bar(chart, p))?;
    for p in &points {
        chart.draw_series([Circle::new((p.x, p.y), 4, color.0.filled())])?;
    }
    if points.len() > MAX_DOTS / 2 {
        return Ok(());
    }
    let (range, pixels) = (chart.x_range(), chart.plotting_area().dim_in_pixel().0);
    let pixels = f64::from(pixels) / (range.end - range.start);
    let labels: Vec<(f64, String)> = points.iter().map(|p| (p.x * pixels, number(p.y))).collect();
    apart(&labels).into_iter().try_for_each(|i| value(chart, &points[i], labels[i].1.clone(), 12.0))
}

fn error_bar(chart: &mut Chart<'_, '_>, p: &Point) -> Drawn {
    let Some([low, high]) = p.range.filter(|[low, high]| low < high) else { return Ok(()) };
    chart.draw_series([PathElement::new([(p.x, low), (p.x, high)], TEXT.0)])?;
    for end in [low, high] {
        let cap = PathElement::new([(-3, 0), (3, 0)], TEXT.0);
        chart.draw_series([EmptyElement::at((p.x, end)) + cap])?;
    }
    Ok(())
}

/// Writes a text above a point and its error bar.
fn value(chart: &mut Chart<'_, '_>, p: &Point, text: String, size: f64) -> Drawn {
    let high = p.range.map_or(p.y, |[_, high]| high.max(p.y));
    let style = font(size, &TEXT).pos(Pos::new(HPos::Center, VPos::Bottom));
    chart.draw_series([EmptyElement::at((p.x, high)) + Text::new(text, (0, -6), style)]).map(|_| ())
}

/// A point as it is drawn: not below the axis; `None` for NaN and infinite numbers.
fn drawn(p: &Point) -> Option<Point> {
    let all = [p.x, p.y].into_iter().chain(p.range.into_iter().flatten());
    let range = p.range.map(|ends| ends.map(|end| end.clamp(0.0, MAX_VALUE)));
    all.clone().all(f64::is_finite).then(|| Point { x: p.x, y: p.y.clamp(0.0, MAX_VALUE), range })
}

/// A value with three digits or all those before the decimal point.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => whole(value),
        10.0.. => format!("{value:.1}"),
        0.01.. => format!("{value:.2}"),
        _ => format!("{value:.0e}"),
    }
}

fn whole(value: f64) -> String {
    let sign = if value < -0.5 { "-" } else { "" };
    format!("{sign}{}", grouped(value.abs().round() as u64))
}

/// The label of a tick, with as many decimals as an axis up to `top` needs.
fn tick(value: f64, top: f64) -> String {
    match top {
        6.0.. => whole(value),
        0.6.. => format!("{value:.1}"),
        0.06.. => format!("{value:.2}"),
        _ if value == 0.0 => "0".to_owned(),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quick_xml::Reader;
    use quick_xml::events::Event;

    fn line(points: &[(f64, f64)]) -> Series {
        let point = |(x, y): &(f64, f64)| Point { x: *x, y: *y, range: Some([y - 1.0, y + 1.0]) };
        Series { name: "rate".into(), points: points.iter().map(point).collect() }
    }

    fn picture(axis: Axis, series: Vec<Series>) -> Picture {
        let panel = Panel { head: "Prefill, tok/s".into(), axis, series, top: None };
        Picture {
            title: "a <b> & \"c\"\u{1}".into(),
            subtitle: "Q4_K_M, 2 threads".into(),
            panels: vec![panel.clone(), panel],
            notes: vec!["medians of 5".into(), "min to max".into()],
        }
    }

    fn depth() -> Axis {
        Axis::Numbers("depth".into())
    }

    /// The texts of the document, which must be well-formed XML.
    fn texts(picture: &Picture) -> Vec<String> {
        let svg = draw(picture).unwrap();
        let mut reader = Reader::from_str(&svg);
        let (mut open, mut texts) = (0, vec![String::new()]);
        loop {
            match reader.read_event().unwrap() {
                Event::Start(tag) => {
                    tag.attributes().for_each(|attribute| drop(attribute.unwrap()));
                    open += 1;
                    texts.push(String::new());
                }
                Event::End(_) => open -= 1,
                Event::Text(text) => *texts.last_mut().unwrap() += text.xml10_content().trim(),
                Event::GeneralRef(name) => *texts.last_mut().unwrap() += &format!("&{};", &*name),
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(open, 0);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        texts
    }

    #[test]
    fn a_picture_is_well_formed_and_has_its_values_and_labels() {
        let names = Axis::Names(vec!["code".into(), "two hops".into()]);
        for (axis, also) in [(depth(), "depth"), (names, "two hops")] {
            let texts = texts(&picture(axis, vec![line(&[(0.0, 277.4), (1.0, 8.25)])]));
            for expected in ["277", "8.25", "Prefill, tok/s", "Q4_K_M, 2 threads", "min to max", "rate", also]
            {
                assert!(texts.iter().any(|text| text == expected), "{expected} in {texts:?}");
            }
            assert!(texts.iter().any(|text| text.starts_with("a&lt;b&gt;&amp;")), "{texts:?}");
        }
    }

    #[test]
    fn values_that_are_missing_equal_or_endless_do_not_panic() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let cases: [&[(f64, f64)]; 8] = [
            &[],
            &[(0.0, 0.0)],
            &[(0.0, 5.0)],
            &[(8192.0, 5.0), (8192.0, 6.0)],
            &[(0.0, nan), (1.0, 2.0)],
            &[(nan, 1.0), (0.0, inf), (1.0, -inf)],
            &[(0.0, 1e-12), (1e15, 1e-12)],
            &[(0.0, 1e300), (1.0, -3.0)],
        ];
        for points in cases {
            texts(&picture(depth(), vec![line(points)]));
            texts(&picture(Axis::Names(vec!["a".into(), "b".into()]), vec![line(points), line(points)]));
        }
        let many: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        texts(&picture(depth(), vec![line(&many)]));
        texts(&Picture::default());
        texts(&picture(Axis::Names(Vec::new()), Vec::new()));
    }

    #[test]
    fn each_color_has_one_of_the_dark_theme() {
        let series = vec![line(&[(0.0, 1.0), (1.0, 2.0)]); 5];
        for axis in [depth(), Axis::Names(vec!["a".into(), "b".into()])] {
            let svg = draw(&picture(axis, series.clone())).unwrap();
            let (style, body) = svg.split_once("</style>").unwrap();
            for attribute in body.split_whitespace().filter(|word| word.contains("=\"#")) {
                let attribute = attribute.trim_end_matches(['/', '>']);
                assert!(style.contains(&format!("[{attribute}]")), "{attribute} in {style}");
            }
        }
    }

    #[test]
    fn ticks_are_the_values_where_they_are_few_and_far_enough_apart() {
        let ticks = |xs: &[f64]| numbers(xs, 400).1;
        assert_eq!(ticks(&[0.0, 8192.0, 32_768.0]), [0.0, 8192.0, 32_768.0]);
        assert_eq!(ticks(&[0.0, 512.0, 32_768.0]), [0.0, 32_768.0]);
        assert_eq!(ticks(&[0.0, 4096.0, 32_768.0]), [0.0, 4096.0, 32_768.0]);
        assert_eq!(ticks(&[7.0]), [7.0]);
        let many: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((3..8).contains(&ticks(&many).len()));
    }
}

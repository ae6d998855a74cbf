//! Pictures of results: an SVG file for `--plot`, and bars in the terminal.
//!
//! Commands describe what they measured as a [`Picture`] or as rows of bars; nothing here computes a result. Next: [`svg`] (draws
//! a picture), [`bars`] (draws rows and segments as text).

pub mod bars;
mod svg;

pub use svg::number;

use crate::io::output::partial_path;
use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Panels side by side under one title.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub title: String,
    pub subtitle: String,
    pub panels: Vec<Panel>,
    /// Lines below the panels: how the figures were measured.
    pub notes: Vec<String>,
}

/// One pair of axes with its values.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What the values are, with their unit.
    pub head: String,
    pub axis: Axis,
    pub series: Vec<Series>,
    /// The upper end of the axis of values; from the values if not given.
    pub top: Option<f64>,
}

/// The horizontal axis of a panel, which decides how values are drawn.
#[derive(Clone, Debug)]
pub enum Axis {
    /// Numbers with a label: values are dots on a line.
    Numbers(String),
    /// Names: each is a group of bars, one per series; `x` of a point is the index of its name.
    Names(Vec<String>),
}

/// Values that are drawn in one color.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The name in the legend; series without a name have none.
    pub name: String,
    pub points: Vec<Point>,
}

/// A value and its uncertainty. Points with NaN or infinite numbers are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// The ends of the error bar.
    pub range: Option<[f64; 2]>,
}

/// The file that `--plot` names.
#[derive(Debug)]
pub struct PlotFile(PathBuf);

impl PlotFile {
    /// Checks, before anything is measured, that the file can be written.
    ///
    /// # Errors
    /// A name that does not end in `.svg`, a directory, a place that is not writable.
    pub fn create(path: &Path) -> Result<PlotFile> {
        let name = || format!("--plot {}", path.display());
        let is_svg = path.extension().is_some_and(|found| found.eq_ignore_ascii_case("svg"));
        ensure!(is_svg, "{}: expected a name that ends in .svg", name());
        ensure!(!path.is_dir(), "{}: is a directory", name());
        let partial = partial_path(path);
        File::create(&partial).and_then(|_| fs::remove_file(&partial)).with_context(name)?;
        Ok(PlotFile(path.to_owned()))
    }

    /// Draws a picture and renames it into place when complete.
    pub fn write(&self, picture: &Picture) -> Result<()> {
        let partial = partial_path(&self.0);
        let written = svg::draw(picture).and_then(|text| Ok(fs::write(&partial, text)?));
        written.and_then(|()| Ok(fs::rename(&partial, &self.0)?)).with_context(|| {
            let _ = fs::remove_file(&partial);
            format!("--plot {}", self.0.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_are_checked_before_a_measurement() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d.svg")).unwrap();
        for (name, error) in [
            ("rates.png", "expected a name that ends in .svg"),
            ("d.svg", "is a directory"),
            ("missing/rates.svg", "No such file"),
        ] {
            let path = dir.path().join(name);
            let found = format!("{:#}", PlotFile::create(&path).unwrap_err());
            assert!(found.starts_with(&format!("--plot {}: ", path.display())), "{found}");
            assert!(found.contains(error) && !found.contains('\n'), "{found}");
        }
        let file = PlotFile::create(&dir.path().join("rates.SVG")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the check leaves no file");
        file.write(&Picture::default()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the picture alone");
    }
}

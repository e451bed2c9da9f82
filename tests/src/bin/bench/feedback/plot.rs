//! A picture of what members had open.

use super::scene::Sample;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::Path;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 260.0;
/// Around the drawing, for words.
const MARGIN: f64 = 45.0;
const COLOURS: [&str; 3] = ["#1b6ca8", "#d9822b", "#5a9e4b"];
const NAMES: [&str; 3] = ["m1, keeps 1 s", "m2, keeps 2 s", "m3, keeps 4 s"];

/// Writes it as SVG: connections by time, a line a member, and what was done when.
pub fn write(path: &Path, samples: &[Sample], marks: &[(f64, &str)]) -> Result<()> {
    let end = samples.last().map_or(1.0, |sample| sample.time);
    let most = samples.iter().flat_map(|sample| &sample.open).max().copied().unwrap_or(1).max(1) as f64;
    // A round number above all.
    let step = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0].into_iter().find(|step| most / step <= 6.0).unwrap_or(most);
    let top = (most / step).ceil() * step;
    let at = |time: f64, value: f64| (MARGIN + time / end * WIDTH, MARGIN + (1.0 - value / top) * HEIGHT);
    let (width, height) = (WIDTH + 2.0 * MARGIN, HEIGHT + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let mut line = 0.0;
    while line <= top {
        let (x, y) = at(0.0, line);
        writeln!(svg, "<path d=\"M{x:.0} {y:.1}H{:.0}\" stroke=\"#ddd\"/>", x + WIDTH)?;
        writeln!(svg, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{line:.0}</text>", x - 6.0, y + 4.0)?;
        line += step;
    }
    for seconds in (0..=end as u32).step_by(20) {
        let (x, y) = at(f64::from(seconds), 0.0);
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{seconds} s</text>", y + 16.0)?;
    }
    for (time, what) in marks {
        let (x, y) = at(*time, top);
        writeln!(svg, "<path d=\"M{x:.1} {y:.1}v{HEIGHT}\" stroke=\"#888\" stroke-dasharray=\"4\"/>")?;
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\">{what}</text>", y - 6.0)?;
    }
    for (member, (colour, name)) in COLOURS.iter().zip(NAMES).enumerate() {
        let points: Vec<String> = samples
            .iter()
            .filter_map(|sample| Some((sample.time, *sample.open.get(member)?)))
            .map(|(time, open)| at(time, open as f64))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        writeln!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>", points.join(" "))?;
        let x = MARGIN + 120.0 * member as f64;
        writeln!(svg, "<text x=\"{x:.0}\" y=\"16\" fill=\"{colour}\">{name}</text>")?;
    }
    svg += "</svg>\n";
    std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

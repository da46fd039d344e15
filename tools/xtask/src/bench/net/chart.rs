//! A chart of horizontal bars in groups, as SVG.

use std::fmt::Write;

/// Pixels: a row, a name, the longest bar, and what stands behind it.
const ROW: f64 = 22.0;
const NAME: f64 = 330.0;
const LONGEST: f64 = 360.0;
const BEHIND: f64 = 160.0;
/// Over the first row.
const TOP: f64 = 40.0;
const COLOURS: [&str; 4] = ["#4878a8", "#3c8d4f", "#c0804d", "#8a6aa8"];

/// One bar.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) value: f64,
    /// What is told behind it.
    pub(super) label: String,
    /// Bars of one kind have one colour.
    pub(super) kind: usize,
}

/// Draws rows under a title.
pub(super) fn draw(title: &str, rows: &[Row]) -> String {
    let most = rows.iter().map(|row| row.value).fold(1e-9, f64::max);
    let (width, height) = (
        NAME + LONGEST + BEHIND,
        TOP + ROW * rows.len() as f64 + 10.0,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-weight=\"bold\">{}</text>\n",
        text(title)
    );
    for (index, row) in rows.iter().enumerate() {
        let top = TOP + ROW * index as f64;
        let length = (row.value / most * LONGEST).clamp(0.0, LONGEST);
        let (base, colour) = (top + ROW * 0.7, COLOURS[row.kind % COLOURS.len()]);
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAME}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
            NAME - 8.0,
            text(&row.name),
            top + 3.0,
            ROW - 6.0,
            NAME + length + 6.0,
            text(&row.label)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    // A name with a mark of the markup in it would make a file that no program opens.
    #[test]
    fn bars_are_in_proportion_and_names_are_text() {
        let row = |name: &str, value| Row {
            name: name.to_owned(),
            value,
            label: String::new(),
            kind: 0,
        };
        let drawn = draw("a & b", &[row("x < y", 50.0), row("z", 100.0)]);
        assert!(drawn.contains("x &lt; y") && drawn.contains("a &amp; b"));
        assert!(drawn.contains("width=\"360.0\"") && drawn.contains("width=\"180.0\""));
        assert!(!draw("none", &[]).contains("NaN"));
    }
}

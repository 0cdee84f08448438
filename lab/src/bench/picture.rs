//! Pictures as SVG without scripts or fonts of its own, on logarithmic axes; their colours can be read on white and on black.

use std::fmt::Write as _;

pub(super) const GREEN: &str = "#159d72";
pub(super) const VIOLET: &str = "#8a74e8";
pub(super) const RED: &str = "#e0504d";
pub(super) const OCHRE: &str = "#c98a00";
const GREY: &str = "#858585";

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 880.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 370.0;

/// Points that belong together.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) colour: &'static str,
    /// Across and up.
    pub(super) points: Vec<(f64, f64)>,
}

/// From which power of ten to which.
struct Axis {
    first: f64,
    last: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::MAX, 1.0_f64);
        for value in values.filter(|value| *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        let first = least.min(most).log10().floor();
        Self { first, last: most.log10().ceil().max(first + 1.0) }
    }

    /// From 0 to 1; what is 0 stands where the axis begins.
    fn at(&self, value: f64) -> f64 {
        let log = if value > 0.0 { value.log10() } else { self.first };
        ((log - self.first) / (self.last - self.first)).clamp(0.0, 1.0)
    }

    fn marks(&self) -> impl Iterator<Item = f64> + use<> {
        let (mut power, last) = (self.first, self.last);
        std::iter::from_fn(move || {
            let mark = (power <= last).then(|| 10_f64.powf(power))?;
            power += 1.0;
            Some(mark)
        })
    }
}

/// `axes` are what goes across and what goes up, with their units.
pub(super) fn plot(title: &str, axes: (&str, &str), lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    // Nothing at all has a place at the left of one.
    let across = Axis::around(points().map(|point| point.0.max(1.0)));
    let up = Axis::around(points().map(|point| point.1));
    let x = |value: f64| LEFT + (RIGHT - LEFT) * across.at(value);
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * up.at(value);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" \
         fill=\"{GREY}\">\n<title>{title}</title>\n"
    );
    let text = |svg: &mut String, at: (f64, f64), anchor: &str, colour: &str, text: &str| {
        let (x, y) = at;
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        );
    };
    for (line, number) in lines.iter().zip(0_u8..) {
        let (column, row) = (f64::from(number % 2), f64::from(number / 2));
        text(
            &mut svg,
            (LEFT + column * 420.0, 20.0 + row * 20.0),
            "start",
            line.colour,
            &format!("● {}", line.name),
        );
    }
    text(&mut svg, (LEFT, TOP - 14.0), "start", GREY, &format!("up: {}, across: {}", axes.1, axes.0));
    for mark in up.marks() {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}L{RIGHT} {0:.1}\" stroke=\"{GREY}\" stroke-width=\"0.4\"/>",
            y(mark)
        );
        text(&mut svg, (LEFT - 8.0, y(mark) + 4.0), "end", GREY, &number(mark));
    }
    for mark in across.marks() {
        let name = if mark > 1.0 { number(mark) } else { String::from("0, 1") };
        text(&mut svg, (x(mark), BOTTOM + 20.0), "middle", GREY, &name);
    }
    for line in lines {
        let way: Vec<String> =
            line.points.iter().map(|(across, up)| format!("{:.1} {:.1}", x(*across), y(*up))).collect();
        let _ = writeln!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.5\"/>",
            way.join("L"),
            line.colour
        );
        for (across, up) in &line.points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{}\"/>",
                x(*across),
                y(*up),
                line.colour
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn number(mark: f64) -> String {
    if mark >= 1.0 { format!("{mark:.0}") } else { format!("{mark}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_ten_and_what_is_between() {
        let axis = Axis::around([3.0, 2000.0].into_iter());
        assert_eq!((axis.first, axis.last), (0.0, 4.0));
        assert_eq!((axis.at(0.0), axis.at(1.0), axis.at(100.0), axis.at(1e4)), (0.0, 0.0, 0.5, 1.0));
        assert_eq!(axis.marks().collect::<Vec<_>>(), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn every_point_is_drawn() {
        let line = Line { name: "a".to_owned(), colour: RED, points: vec![(0.0, 20.0), (1000.0, 30.0)] };
        let svg = plot("t", ("mappings", "µs"), &[line]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}

//! The picture of docs/avalanche.md: requests in a second over the time, both on logarithmic axes, one panel for each event.
//! It is SVG without scripts or fonts of its own, and its colours can be read on white and on black.

use std::fmt::Write as _;

use super::Restart;
use super::page::{grouped, title};
use super::story::{Chapter, Story};

const WIDTH: f64 = 900.0;
/// Of the area between the axes.
const LEFT: f64 = 92.0;
const RIGHT: f64 = 880.0;
const PANEL: f64 = 270.0;
/// From one panel to the next.
const STEP: f64 = 352.0;
const TOP: f64 = 84.0;
/// Runs that are shown, and in what colour.
const SHOWN: [(&str, &str); 4] = [
    ("none", "#e0504d"),
    ("the default", "#c98a00"),
    ("half of what is needed", "#8a74e8"),
    ("the rule: 1.25 of it", "#159d72"),
];
const GREY: &str = "#858585";
/// The curves have so many points: seconds are drawn together as they come closer on the axis.
const POINTS: u32 = 220;

struct Axes {
    top: f64,
    seconds: f64,
    requests: f64,
}

impl Axes {
    /// `at` is in seconds. A logarithm knows no 0, so it is that of one second more.
    fn x(&self, at: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (at + 1.0).log10() / (self.seconds + 1.0).log10()
    }

    /// 1 request in a second is the least.
    fn y(&self, requests: f64) -> f64 {
        self.top + PANEL * (1.0 - requests.max(1.0).log10() / self.requests.log10())
    }
}

impl Story {
    /// The picture as SVG.
    #[must_use]
    pub fn picture(&self) -> String {
        let events = [Restart::RoutersForgotten, Restart::Server];
        let height = TOP + STEP * 2.0 - 20.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\" fill=\"{GREY}\">\n\
             <title>Requests that reach a PCP server in a second, {} routers, {} mappings each</title>\n",
            grouped(self.scale.routers.into()),
            self.scale.mappings,
        );
        self.legend(&mut svg);
        for (event, at) in events.into_iter().zip([0.0, 1.0]) {
            self.panel(&mut svg, event, TOP + STEP * at);
        }
        svg += "</svg>\n";
        svg
    }

    fn legend(&self, svg: &mut String) {
        let mut x = LEFT - 50.0;
        text(svg, (x, 20.0), "start", GREY, "random wait of at most:");
        x += 164.0;
        for (name, colour) in SHOWN {
            let short = match name {
                "none" => "no wait",
                "half of what is needed" => "half of what is needed",
                "the default" => "the default",
                _ => "the rule: 1.25 × what is needed",
            };
            line(svg, (x, 16.0), (x + 22.0, 16.0), colour, "2.5");
            text(svg, (x + 28.0, 20.0), "start", colour, short);
            x += 50.0 + 6.5 * short.chars().count() as f64;
        }
        text(
            svg,
            (LEFT - 50.0, 42.0),
            "start",
            GREY,
            "across: time since then, up: requests that arrive, ○: the last router has all of its mappings",
        );
    }

    fn panel(&self, svg: &mut String, restart: Restart, top: f64) {
        let seconds = self.of(restart).map(|chapter| chapter.outcome.requests.len()).max().unwrap_or(1);
        let peak = self.of(restart).map(|chapter| chapter.outcome.peak()).max().unwrap_or(1);
        let axes =
            Axes { top, seconds: (seconds.max(10) as f64) * 1.1, requests: f64::from(peak.max(10)) * 1.6 };
        let bottom = top + PANEL;
        text(svg, (LEFT, top - 10.0), "start", GREY, title(restart));
        for power in 0..=7 {
            for tick in [1, 2, 5].map(|step| step * 10_u32.pow(power)) {
                let at = f64::from(tick);
                if at <= axes.seconds {
                    line(svg, (axes.x(at), bottom), (axes.x(at), bottom + 4.0), GREY, "1");
                    text(
                        svg,
                        (axes.x(at), bottom + 18.0),
                        "middle",
                        GREY,
                        &format!("{} s", grouped(tick.into())),
                    );
                }
            }
            let at = 10_f64.powi(i32::try_from(power).unwrap_or(0));
            if at <= axes.requests {
                faint(svg, axes.y(at));
                let label = format!("{}/s", grouped(10_u64.pow(power)));
                text(svg, (LEFT - 6.0, axes.y(at) + 4.0), "end", GREY, &label);
            }
        }
        text(svg, (LEFT, bottom + 18.0), "middle", GREY, "0");
        line(svg, (LEFT, bottom), (RIGHT, bottom), GREY, "1");
        line(svg, (LEFT, top), (LEFT, bottom), GREY, "1");
        self.capacity(svg, restart, &axes);
        for (name, colour) in SHOWN {
            for chapter in self.of(restart).filter(|chapter| chapter.name == name) {
                curve(svg, chapter, colour, &axes);
            }
        }
    }

    fn capacity(&self, svg: &mut String, restart: Restart, axes: &Axes) {
        let requests = u128::from(self.scale.routers) * u128::from(self.scale.mappings);
        let capacity = requests * 1_000_000 / self.scale.needs(restart).as_micros().max(1);
        let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
        let y = axes.y(f64::from(capacity));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"{GREY}\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/>"
        );
        let label = format!("dashed: what the server can do, {}/s", grouped(capacity.into()));
        text(svg, (RIGHT, axes.top - 10.0), "end", GREY, &label);
    }
}

/// One run as steps, and a circle where its last router is whole.
fn curve(svg: &mut String, chapter: &Chapter, colour: &str, axes: &Axes) {
    let requests = &chapter.outcome.requests;
    let mut path = String::new();
    let mut from = 0;
    while from < requests.len() {
        let start = from as f64;
        let width = (axes.seconds + 1.0).powf(1.0 / f64::from(POINTS));
        let mut to = from + 1;
        while to < requests.len() && to as f64 + 2.0 <= (start + 1.0) * width {
            to += 1;
        }
        let mean = requests[from..to].iter().copied().map(f64::from).sum::<f64>() / (to - from) as f64;
        let command = if from == 0 { 'M' } else { 'L' };
        let (x, y) = (axes.x(start), axes.y(mean));
        let _ = write!(path, "{command}{x:.1} {y:.1}H{:.1}", axes.x(to as f64));
        from = to;
    }
    let _ = writeln!(
        svg,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-linejoin=\"round\"/>"
    );
    if let Some(last) = chapter.outcome.last {
        let (x, y) = (axes.x(last.as_secs_f64()), axes.top + PANEL);
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn faint(svg: &mut String, y: f64) {
    let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"{GREY}\" stroke-opacity=\"0.25\"/>");
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, colour: &str, words: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>",
        at.0, at.1
    );
}

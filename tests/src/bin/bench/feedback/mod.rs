//! Suite `feedback`: three hosts, whose clients see a third of the traffic each, and members of unequal capacity.

mod plot;
mod scene;

use crate::Options;
use crate::report::{Better, Of, Row};
use anyhow::Result;
use std::path::PathBuf;

use scene::{Sample, Scene};

const SUITE: &str = "feedback";
const IMBALANCE: &str = "busiest / mean, %";
/// What members are to be brought to, in percent.
const LEVEL: f64 = 115.0;
/// Within so many seconds.
const IN_TIME: f64 = 10.0;

/// What this suite takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub options: Options,
    /// Write what was measured here, as a picture (SVG).
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Runs the suite: about four minutes, or two.
pub fn run(args: &Args) -> Result<Vec<Row>> {
    let quick = args.options.quick;
    let fleet = Scene::network()?;
    let mut scene = Scene::new(&fleet)?;
    let mut rows = Vec::new();

    let unequal = scene.watch("static weights", if quick { 12 } else { 20 })?;
    // The slowest member has got all its connections after 4 s.
    let unequal = imbalances(&unequal[6..]);
    rows.push(Row::new(SUITE, "static weights", IMBALANCE, &unequal).with_goal(0.0, 150.0, Better::More));

    let (mut level, mut after) = (Vec::new(), Vec::new());
    let trials = if quick { 1 } else { 3 };
    for trial in 0..trials {
        if trial > 0 {
            scene.feed_back(false)?;
            scene.watch("off", 12)?;
        }
        scene.feed_back(true)?;
        let watched = scene.watch("leastLoad", if quick { 25 } else { 40 })?;
        level.push(until_level(&watched));
        after.extend(imbalances(watched.iter().filter(|sample| sample.since > IN_TIME)));
    }
    let floor = crate::report::median(&unequal);
    rows.push(Row::new(SUITE, "leastLoad, from 10 s on", IMBALANCE, &after).with_goal(floor, LEVEL, Better::Less));

    scene.kill_elected()?;
    let taken_over = imbalances(&scene.watch("elected host's agent killed", 20)?);
    rows.push(Row::new(SUITE, "elected host's agent killed, 20 s", IMBALANCE, &taken_over).with_goal(floor, LEVEL, Better::Less));
    rows.push(Row::new(SUITE, "switched on → 115 % for 3 s", "s", &level).with_most(Of::Max, IN_TIME));
    let configured = scene.cut_all()?;
    rows.push(Row::new(SUITE, "all cut off → weights as configured", "s", &[configured]).with_most(Of::Max, 60.0));
    scene.watch("no store", 8)?;

    if let Some(path) = &args.plot {
        plot::write(path, scene.samples(), scene.marks())?;
    }
    rows.retain(|row| args.options.wants(SUITE, &row.case));
    Ok(rows)
}

fn imbalances<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Vec<f64> {
    samples.into_iter().map(Sample::imbalance).collect()
}

/// Seconds until the first of three samples in a row that are level; infinite if there are none.
fn until_level(samples: &[Sample]) -> f64 {
    let level = samples.windows(3).find(|three| three.iter().all(|sample| sample.imbalance() <= LEVEL));
    level.and_then(<[Sample]>::first).map_or(f64::INFINITY, |sample| sample.since)
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Readers of the engine's events: a moving display on a terminal, plain lines elsewhere, JSON lines for programs.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kvmi_lab_environment::complain;
use kvmi_lab_machine::progress::{Event, Progress, Watch};

/// Work that is done sooner leaves no trace on the screen.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// How often plain lines say what is still going on.
const REMINDER: Duration = Duration::from_secs(20);

/// The reader that fits where the output goes.
pub(crate) fn progress(json: bool) -> Progress {
    if json {
        Progress::new(Arc::new(Json))
    } else if io::stderr().is_terminal() {
        Progress::new(Arc::new(Moving::default()))
    } else {
        Progress::new(Plain::start())
    }
}

/// One JSON object a line on standard output.
struct Json;

impl Watch for Json {
    fn see(&self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            // A reader that went away is no reason to stop the work.
            let _ = writeln!(io::stdout(), "{line}");
        }
    }
}

/// A spinner for each piece of work; what took a while stays as a line.
#[derive(Default)]
struct Moving {
    screen: MultiProgress,
    bars: Mutex<BTreeMap<u64, (ProgressBar, String)>>,
}

impl Watch for Moving {
    fn see(&self, event: &Event) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Began { task, what } => {
                let style = ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}");
                let bar = self.screen.add(ProgressBar::new_spinner());
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.set_prefix(what.clone());
                bar.enable_steady_tick(Duration::from_millis(120));
                bars.insert(*task, (bar, what.clone()));
            }
            Event::Note { task, text } => {
                if let Some((bar, _)) = bars.get(task) {
                    bar.set_message(text.chars().filter(|c| !c.is_control()).collect::<String>());
                }
            }
            Event::Ended { task, what, ok, took } => {
                if let Some((bar, _)) = bars.remove(task) {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                }
                if *took >= WORTH_A_LINE || !ok {
                    let _ = self.screen.println(line(what, *ok, *took));
                }
            }
            Event::Said { text } => {
                let _ = self.screen.println(text);
            }
        }
    }
}

/// Work that is under way on a screen of plain lines.
struct Going {
    what: String,
    since: Instant,
    last_said: Option<Instant>,
    note: String,
}

/// A line when work has taken a while, now and then what it is at, and a line at its end.
#[derive(Default)]
struct Plain {
    going: Mutex<BTreeMap<u64, Going>>,
}

impl Plain {
    fn start() -> Arc<Self> {
        let plain = Arc::new(Self::default());
        let weak = Arc::downgrade(&plain);
        thread::spawn(move || remind(&weak));
        plain
    }

    fn speak_of_what_takes_long(&self) {
        let now = Instant::now();
        for work in self.going.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            match work.last_said {
                None if now - work.since >= WORTH_A_LINE => complain!("... {}", work.what),
                Some(then) if now - then >= REMINDER => {
                    complain!("... {} ({} s): {}", work.what, (now - work.since).as_secs(), work.note);
                }
                _ => continue,
            }
            work.last_said = Some(now);
        }
    }
}

/// The clock of the plain screen; it ends with the screen.
fn remind(plain: &Weak<Plain>) {
    while let Some(plain) = plain.upgrade() {
        plain.speak_of_what_takes_long();
        drop(plain);
        thread::sleep(Duration::from_millis(500));
    }
}

impl Watch for Plain {
    fn see(&self, event: &Event) {
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Began { task, what } => {
                let work = Going {
                    what: what.clone(),
                    since: Instant::now(),
                    last_said: None,
                    note: String::new(),
                };
                going.insert(*task, work);
            }
            Event::Note { task, text } => {
                if let Some(work) = going.get_mut(task) {
                    work.note.clone_from(text);
                }
            }
            Event::Ended { task, what, ok, took } => {
                going.remove(task);
                if *took >= WORTH_A_LINE || !ok {
                    complain!("{}", line(what, *ok, *took));
                }
            }
            Event::Said { text } => complain!("{text}"),
        }
    }
}

fn line(what: &str, ok: bool, took: Duration) -> String {
    format!(
        "{} {what} ({:.1} s)",
        if ok { "ok " } else { "FAILED" },
        took.as_secs_f64()
    )
}

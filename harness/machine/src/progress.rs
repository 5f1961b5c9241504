// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the engine tells while it works. It never prints: a console, JSON lines or a test is a reader of these events.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Something happened in the engine.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A piece of work begins.
    Began {
        /// Tells pieces of work that run side by side apart.
        task: u64,
        /// What is done, e.g. `build the kernel modules`.
        what: String,
    },
    /// A line from within the work, e.g. of a compiler or of a booting L1.
    Note {
        /// As in `Began`.
        task: u64,
        /// The line.
        text: String,
    },
    /// A piece of work is over.
    Ended {
        /// As in `Began`.
        task: u64,
        /// As in `Began`.
        what: String,
        /// Whether it did what it was to do.
        ok: bool,
        /// Seconds it took.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// Something that a person should read whatever else is on the screen.
    Said {
        /// A sentence or two.
        text: String,
    },
}

fn seconds<S: serde::Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(took.as_secs_f64())
}

/// A reader of events.
pub trait Watch: Send + Sync {
    /// Called for each event, from whichever thread it happens on.
    fn see(&self, event: &Event);
}

/// Where the engine's events go. Clones lead to the same reader.
#[derive(Clone)]
pub struct Progress {
    watch: Arc<dyn Watch>,
    next_task: Arc<AtomicU64>,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

struct Nobody;

impl Watch for Nobody {
    fn see(&self, _: &Event) {}
}

impl Progress {
    /// Events go to `watch`.
    pub fn new(watch: Arc<dyn Watch>) -> Self {
        Self {
            watch,
            next_task: Arc::default(),
        }
    }

    /// Nobody reads the events.
    #[must_use]
    pub fn unwatched() -> Self {
        Self::new(Arc::new(Nobody))
    }

    /// Begins a piece of work. Dropping the task without [`Task::done`] tells that it failed.
    pub fn task(&self, what: impl Into<String>) -> Task {
        let task = Task {
            to: self.clone(),
            id: self.next_task.fetch_add(1, Ordering::Relaxed),
            what: what.into(),
            began: Instant::now(),
            ended: false,
        };
        self.watch.see(&Event::Began {
            task: task.id,
            what: task.what.clone(),
        });
        task
    }

    /// Says something to the person in front of it.
    pub fn say(&self, text: impl Into<String>) {
        self.watch.see(&Event::Said { text: text.into() });
    }
}

/// A piece of work under way.
#[derive(Debug)]
pub struct Task {
    to: Progress,
    id: u64,
    what: String,
    began: Instant,
    ended: bool,
}

impl Task {
    /// Passes on a line from within the work.
    pub fn note(&self, text: impl Into<String>) {
        self.to.watch.see(&Event::Note {
            task: self.id,
            text: text.into(),
        });
    }

    /// The work is done, and well.
    pub fn done(mut self) {
        self.end(true);
    }

    fn end(&mut self, ok: bool) {
        self.ended = true;
        let (task, what, took) = (self.id, self.what.clone(), self.began.elapsed());
        self.to.watch.see(&Event::Ended { task, what, ok, took });
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.ended {
            self.end(false);
        }
    }
}

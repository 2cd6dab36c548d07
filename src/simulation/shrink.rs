//! Shrinks a failing plan to the events that make it fail, and prints it with what its clients read.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::checker::{Violation, ViolationKind};
use super::plan::WorldPlan;
use super::world::{RunSummary, World};

/// How many runs of a world shrinking may take.
const RUNS_MAX: usize = 2_000;

/// Runs a plan's world.
pub(super) fn run(plan: &WorldPlan, start: Instant) -> Result<RunSummary, Violation> {
    catch_unwind(AssertUnwindSafe(|| World::new(plan, start).run())).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> Violation {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Violation { kind: ViolationKind::Panic, what: text.unwrap_or("a panic without a message").into() }
}

/// A failing plan, and the kind of failure that a shorter plan must keep.
struct Shrinker {
    plan: WorldPlan,
    kind: ViolationKind,
    start: Instant,
    runs_left: usize,
}

impl Shrinker {
    /// Keeps a shorter plan if it fails in the same way.
    fn takes(&mut self, shorter: WorldPlan) -> bool {
        self.runs_left = self.runs_left.saturating_sub(1);
        let fails = run(&shorter, self.start).is_err_and(|fault| fault.kind == self.kind);
        if fails {
            self.plan = shorter;
        }
        fails
    }

    /// Removes events by delta debugging: large ranges first, then smaller ones.
    fn drop_events(&mut self) {
        let mut stretch = self.plan.events.len().div_ceil(2);
        while stretch > 0 && self.runs_left > 0 {
            let (mut from, mut some) = (0, false);
            while from < self.plan.events.len() && self.runs_left > 0 {
                let mut shorter = self.plan.clone();
                shorter.events.drain(from..shorter.events.len().min(from + stretch));
                let left_out = self.takes(shorter);
                some |= left_out;
                from += if left_out { 0 } else { stretch };
            }
            // Repeats single events while that helps.
            stretch = if stretch == 1 { usize::from(some) } else { stretch.div_ceil(2) };
        }
    }

    fn drop_clients(&mut self) {
        for client in 0..self.plan.shape.clients.len() {
            let mut shorter = self.plan.clone();
            shorter.absent.push(client);
            self.takes(shorter);
        }
    }

    fn weaken_events(&mut self) {
        for index in 0..self.plan.events.len() {
            while let Some(lesser) = self.plan.events[index].1.weakened().filter(|_| self.runs_left > 0) {
                let mut shorter = self.plan.clone();
                shorter.events[index].1 = lesser;
                if !self.takes(shorter) {
                    break;
                }
            }
        }
    }
}

/// Returns the shortest plan found that fails in the same way.
fn shrink(plan: &WorldPlan, fault: &Violation, start: Instant) -> WorldPlan {
    let mut shortening = Shrinker { plan: plan.clone(), kind: fault.kind, start, runs_left: RUNS_MAX };
    shortening.drop_clients();
    shortening.drop_events();
    shortening.weaken_events();
    shortening.drop_events();
    shortening.plan
}

/// Returns a report of a failing plan, shrunk.
pub(super) fn report(plan: &WorldPlan, fault: &Violation, start: Instant) -> String {
    let short = shrink(plan, fault, start);
    let mut world = World::new(&short, start);
    world.trace = Some(Vec::new());
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| Err(panicked(&*panic)));
    let mut story = format!("{short}what happens:\n");
    for line in world.trace.iter().flatten() {
        let _ = writeln!(story, "  {line}");
    }
    match outcome {
        Err(fault) => {
            let _ = writeln!(story, "{:?}: {}", fault.kind, fault.what);
        }
        Ok(_) => {
            story.push_str("the shrunk plan did not fail in the last run: the world depends on more than its plan\n");
        }
    }
    story
}

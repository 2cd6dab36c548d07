//! What a world that fails is told as: the deeds without which it would not fail, in words, and what its clients saw.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::checker::{Fault, Kind};
use super::plan::Plan;
use super::world::{Sum, World};

/// How often a world is run to make its story shorter, at most.
const RUNS_MAX: usize = 2_000;

/// Lets a plan's world run.
pub(super) fn run(plan: &Plan, start: Instant) -> Result<Sum, Fault> {
    catch_unwind(AssertUnwindSafe(|| World::new(plan, start).run())).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Fault { kind: Kind::Panic, what: text.unwrap_or("a panic without words").into() }
}

/// A plan that fails, with as little in it as still makes it fail in the same way.
struct Shortening {
    plan: Plan,
    kind: Kind,
    start: Instant,
    runs_left: usize,
}

impl Shortening {
    /// Takes a shorter plan over, if it fails.
    fn takes(&mut self, shorter: Plan) -> bool {
        self.runs_left = self.runs_left.saturating_sub(1);
        let fails = run(&shorter, self.start).is_err_and(|fault| fault.kind == self.kind);
        if fails {
            self.plan = shorter;
        }
        fails
    }

    /// Leaves deeds out: delta debugging, whole stretches first, then ever shorter ones.
    fn leave_deeds_out(&mut self) {
        let mut stretch = self.plan.deeds.len().div_ceil(2);
        while stretch > 0 && self.runs_left > 0 {
            let (mut from, mut some) = (0, false);
            while from < self.plan.deeds.len() && self.runs_left > 0 {
                let mut shorter = self.plan.clone();
                shorter.deeds.drain(from..shorter.deeds.len().min(from + stretch));
                let left_out = self.takes(shorter);
                some |= left_out;
                from += if left_out { 0 } else { stretch };
            }
            // Single ones as often as that helps.
            stretch = if stretch == 1 { usize::from(some) } else { stretch.div_ceil(2) };
        }
    }

    fn leave_clients_out(&mut self) {
        for client in 0..self.plan.shape.clients.len() {
            let mut shorter = self.plan.clone();
            shorter.absent.push(client);
            self.takes(shorter);
        }
    }

    fn lessen_deeds(&mut self) {
        for place in 0..self.plan.deeds.len() {
            while let Some(lesser) = self.plan.deeds[place].1.lesser().filter(|_| self.runs_left > 0) {
                let mut shorter = self.plan.clone();
                shorter.deeds[place].1 = lesser;
                if !self.takes(shorter) {
                    break;
                }
            }
        }
    }
}

/// The shortest plan that is found to fail as this one does.
fn shorten(plan: &Plan, fault: &Fault, start: Instant) -> Plan {
    let mut shortening = Shortening { plan: plan.clone(), kind: fault.kind, start, runs_left: RUNS_MAX };
    shortening.leave_clients_out();
    shortening.leave_deeds_out();
    shortening.lessen_deeds();
    shortening.leave_deeds_out();
    shortening.plan
}

/// The story of a plan that fails, as short as it gets.
pub(super) fn tell(plan: &Plan, fault: &Fault, start: Instant) -> String {
    let short = shorten(plan, fault, start);
    let mut world = World::new(&short, start);
    world.tale = Some(Vec::new());
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| Err(panicked(&*panic)));
    let mut story = format!("{short}and so:\n");
    for line in world.tale.iter().flatten() {
        let _ = writeln!(story, "  {line}");
    }
    match outcome {
        Err(fault) => {
            let _ = writeln!(story, "{:?}: {}", fault.kind, fault.what);
        }
        Ok(_) => story.push_str("and it does not fail when it is told: the world depends on more than its plan\n"),
    }
    story
}

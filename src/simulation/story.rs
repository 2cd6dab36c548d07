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

/// The plan with as few deeds as still make it fail in the same way (delta debugging: whole stretches are left out first,
/// then ever shorter ones, until no single deed can be).
pub(super) fn shorten(plan: &Plan, fault: &Fault, start: Instant) -> Plan {
    let mut deeds = plan.deeds.clone();
    let mut runs = 0;
    let mut stretch = deeds.len().div_ceil(2);
    while stretch > 0 && runs < RUNS_MAX {
        let mut from = 0;
        let mut shorter = false;
        while from < deeds.len() && runs < RUNS_MAX {
            let mut fewer = deeds.clone();
            fewer.drain(from..deeds.len().min(from + stretch));
            runs += 1;
            if run(&plan.with(fewer.clone()), start).is_err_and(|other| other.kind == fault.kind) {
                deeds = fewer;
                shorter = true;
            } else {
                from += stretch;
            }
        }
        if stretch == 1 && !shorter {
            break;
        }
        stretch = if stretch == 1 { 1 } else { stretch.div_ceil(2) };
    }
    plan.with(deeds)
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

//! The edge to the processor: the thread that checks tokens by public keys, at a lower priority than the shards. Where
//! they need the core that it runs on, it gets a tenth.

use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Receiver;
use tokio::sync::mpsc;

use super::keeper::HeldBack;
use super::metrics::{CheckCounts, CheckOutcome};
use crate::clock::Now;
use crate::exchange::TokenCheck;
use crate::protocol::auth::{CheckFault, Unauthorized};

/// The nice value of the thread: its weight is a tenth of a shard's (sched(7)).
const NICE: libc::c_int = 10;

/// Starts the thread. `keepers`, one for each set, take the tokens whose key is unknown.
pub(super) fn spawn(
    asked: Receiver<TokenCheck>,
    keepers: Vec<mpsc::Sender<HeldBack>>,
    counts: Arc<CheckCounts>,
) -> io::Result<()> {
    let run = move || {
        // SAFETY: the call takes no memory. On Linux the priority is the calling thread's. It may not fail to go down.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        for check in asked {
            make(check, &keepers, &counts);
        }
    };
    thread::Builder::new().name("token-check".to_owned()).spawn(run).map(drop)
}

fn make(check: TokenCheck, keepers: &[mpsc::Sender<HeldBack>], counts: &CheckCounts) {
    if check.is_cancelled() {
        return;
    }
    match check.check.run(Now::read().unix) {
        Ok(grant) => {
            counts.add(CheckOutcome::Granted);
            check.answer(Ok(grant));
        }
        Err(CheckFault::Rejected(why)) => {
            counts.add(CheckOutcome::Rejected);
            check.answer(Err(why));
        }
        Err(CheckFault::UnknownKey { set, edition }) => {
            counts.add(CheckOutcome::UnknownKey);
            if let Err(refused) = keepers[set].try_send(HeldBack { check, edition }) {
                refused.into_inner().check.answer(Err(Unauthorized::UnknownKey));
            }
        }
    }
}

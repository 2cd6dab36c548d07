//! Faults that the simulation injects to prove that it finds them. Compiled out of builds that are not tests.

/// A mistake in the keeping of cursors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InjectedFault {
    /// An entry that is framed late gets a cursor from where ingest stands by then.
    CursorFromHead,
    /// A client that comes back is taken to have all up to the first event that it lacks, and to lack all from there
    /// on.
    ResumeAsSuffix,
    /// A client that catches up is sent the entries' cursors as they are.
    EntryCursorWhileCatchingUp,
    /// A heartbeat's cursor is from where ingest stands, and not the connection.
    PingFromHead,
    /// A client of a newer log is sent what a pod that is behind has read of the one before.
    OldLogToANewerCursor,
    /// Where a log lost its end, clients are told so who have the one that goes on.
    CutConcernsAll,
    /// What a log lost is not told from what it has.
    LostCountsAsHad,
}

#[cfg(not(test))]
pub(crate) const fn is_injected(_: InjectedFault) -> bool {
    false
}

#[cfg(test)]
pub(crate) use tests::is_injected;

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::InjectedFault;

    thread_local! {
        static PLANTED: Cell<Option<InjectedFault>> = const { Cell::new(None) };
    }

    pub(crate) fn is_injected(mistake: InjectedFault) -> bool {
        PLANTED.get() == Some(mistake)
    }

    /// Runs something with a mistake planted, on this thread alone.
    pub(crate) fn with<T>(mistake: InjectedFault, run: impl FnOnce() -> T) -> T {
        struct InjectionGuard;
        impl Drop for InjectionGuard {
            fn drop(&mut self) {
                PLANTED.set(None);
            }
        }
        PLANTED.set(Some(mistake));
        let _taken = InjectionGuard;
        run()
    }

    #[test]
    fn a_mistake_is_planted_for_as_long_as_something_runs() {
        with(InjectedFault::ResumeAsSuffix, || {
            assert!(is_injected(InjectedFault::ResumeAsSuffix) && !is_injected(InjectedFault::PingFromHead));
        });
        assert!(!is_injected(InjectedFault::ResumeAsSuffix));
    }
}

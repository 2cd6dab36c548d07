//! The operators' pages (PROTOCOL 5): the only list of their paths. [`super::head`] recognises a request for one;
//! `operations::pages` answers it.

/// A page for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    /// The console page.
    Console,
    /// Liveness of the threads.
    Health,
    /// Readiness of every part.
    Ready,
    /// Whether the pod accepts clients.
    Accepting,
    /// The metrics.
    Metrics,
}

impl Page {
    /// Every page, in the order of PROTOCOL 5.
    pub(crate) const ALL: [Self; 5] = [Self::Console, Self::Health, Self::Ready, Self::Accepting, Self::Metrics];

    /// The page's path.
    #[must_use]
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Console => "/",
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Accepting => "/accepting",
            Self::Metrics => "/metrics",
        }
    }

    /// The page at a path, if there is one.
    #[must_use]
    pub(crate) fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|page| page.path() == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::contract;

    #[test]
    fn the_pages_are_those_of_the_contract() {
        let rows = contract::rows(5);
        let paths: Vec<&str> = rows.iter().map(|row| row[0].as_str()).filter(|cell| cell.starts_with('/')).collect();
        assert_eq!(paths, Page::ALL.map(Page::path));
    }

    #[test]
    fn a_page_is_found_by_its_exact_path() {
        assert!(Page::ALL.into_iter().all(|page| Page::of(page.path()) == Some(page)));
        assert!(["", "/health/", "/Health", "/ws"].into_iter().all(|path| Page::of(path).is_none()));
    }
}

//! The operators' pages (PROTOCOL 5): the only list of their paths. [`super::head`] recognises a request for a [`Page`],
//! and `operations::pages` answers it. `operations::admin` answers an [`AdminPage`], on `ADMIN_PORT` only.

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

/// A page that needs a token (`ADMIN_TOKEN`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminPage {
    /// The slots and their pods, as this pod sees them.
    Cluster,
    /// This pod's connections.
    Connections,
    /// Closes connections.
    Disconnections,
    /// Tokens that are revoked.
    Revocations,
    /// The settings in force.
    Settings,
    /// The level of the log.
    Log,
}

impl AdminPage {
    /// Every page, in the order of PROTOCOL 5.
    pub(crate) const ALL: [Self; 6] =
        [Self::Cluster, Self::Connections, Self::Disconnections, Self::Revocations, Self::Settings, Self::Log];

    /// The page's path.
    #[must_use]
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Cluster => "/cluster",
            Self::Connections => "/connections",
            Self::Disconnections => "/disconnections",
            Self::Revocations => "/revocations",
            Self::Settings => "/settings",
            Self::Log => "/log",
        }
    }

    /// The methods that the page takes, as `Allow` names them.
    #[must_use]
    pub(crate) const fn methods(self) -> &'static str {
        match self {
            Self::Cluster | Self::Connections | Self::Settings => "GET, HEAD",
            Self::Disconnections => "POST",
            Self::Revocations => "GET, HEAD, POST",
            Self::Log => "PUT",
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
    fn the_admin_pages_are_those_of_the_contract() {
        let rows = contract::rows(5);
        let requests = rows.iter().filter_map(|row| row[0].split_once(" /"));
        let listed: Vec<String> = requests.map(|(method, path)| format!("{method} /{path}")).collect();
        let methods = |page: AdminPage| page.methods().split(", ").filter(|method| *method != "HEAD");
        let pages = AdminPage::ALL.into_iter();
        let pages = pages.flat_map(|page| methods(page).map(move |method| format!("{method} {}", page.path())));
        assert_eq!(listed, pages.collect::<Vec<_>>());
    }

    #[test]
    fn a_page_is_found_by_its_exact_path() {
        assert!(Page::ALL.into_iter().all(|page| Page::of(page.path()) == Some(page)));
        assert!(["", "/health/", "/Health", "/ws"].into_iter().all(|path| Page::of(path).is_none()));
    }
}

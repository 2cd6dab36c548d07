//! Which module may import which, and which files may touch the outside world.

use crate::fault;
use crate::source::{Path, Source};

/// The layers, from the bottom up: a module imports from lower ones, and from its own.
const LAYERS: &[&[&str]] = &[
    &["ids", "limits", "clock", "log_throttle", "prefetch", "outage", "cores", "tls", "https"],
    &["routing", "protocol", "stream"],
    &["config", "exchange"],
    &["identity", "ingest", "discovery", "shutdown", "shard", "operations"],
    &["gateway", "demo"],
    &["simulation"],
    // The command line, and what tells the linker; neither is known to any other.
    &["main", "build"],
];

/// They share the types of `exchange`, and don't import each other.
const STRANGERS: &[&str] = &["shard", "ingest", "discovery"];

/// The files that touch the world. Those beyond the map in `src/lib.rs` say why they are here.
const EDGES: &[&str] = &[
    "src/ingest/kafka.rs",
    "src/discovery/peer_looks.rs",
    "src/discovery/redis.rs",
    "src/discovery/redis/announcements.rs",
    "src/identity/source.rs",
    "src/identity/checker.rs",
    // The loop of a key set's task.
    "src/identity/keeper.rs",
    "src/discovery/redis_link.rs",
    "src/shard/event_loop.rs",
    "src/shard/handshake.rs",
    // A client that is served, and the last bytes of every socket.
    "src/shard/client_task.rs",
    "src/shard/final_response.rs",
    "src/operations/http.rs",
    // Ask the shards and other pods, with a time limit.
    "src/operations/admin/fleet.rs",
    "src/operations/admin/shards.rs",
    // Writes the log.
    "src/operations/log.rs",
    "src/shutdown/signals.rs",
    // Runs the tasks of a shard.
    "src/shard/executor.rs",
    "src/shard/executor/epoll.rs",
    "src/shard/executor/io_uring.rs",
    // What these tasks wait for.
    "src/shard/reactor.rs",
    // What they share; it reads the clock for those that wait for the view, or yield.
    "src/shard/context.rs",
    // A connection's writes.
    "src/shard/writer.rs",
    // Accepts sockets.
    "src/shard/accept.rs",
    // The other half of `ingest/kafka.rs`: the client that asks.
    "src/ingest/metadata_client.rs",
    // What the clients of both have in common.
    "src/ingest/client.rs",
    // Called by librdkafka.
    "src/ingest/unpacking.rs",
    // The loops of ingest's two threads, and what starts and pins the first.
    "src/ingest/reader.rs",
    "src/ingest/watcher.rs",
    "src/ingest/mod.rs",
    // Tell the client that `ingest/reader.rs` reads by what to read, replace it, and note what it left out; with them,
    // that file would be too long.
    "src/ingest/reader/assignment.rs",
    "src/ingest/reader/compacted.rs",
    "src/ingest/reader/missing.rs",
    "src/ingest/reader/replacement.rs",
    "src/ingest/reader/unpacked.rs",
    // Asks for `ingest/watcher.rs` where partitions are read from; with it, that file would be too long.
    "src/ingest/watcher/extents.rs",
    // Asks the system what defaults go by, and whether it allows io_uring.
    "src/gateway/machine.rs",
    "src/gateway/engine.rs",
    // Binds the ports.
    "src/gateway/listeners.rs",
    // Asks which cores there are, and pins threads.
    "src/cores.rs",
    // Shakes hands on a socket that an edge has opened.
    "src/tls.rs",
    "src/https.rs",
    "src/ingest/oauth.rs",
    // Touches nothing but the processor, by an instruction that safe Rust has no word for.
    "src/prefetch.rs",
];

/// A part of the world, by the paths that lead to it, and the files, or folders, that may touch it.
struct World {
    paths: &'static [&'static str],
    files: &'static [&'static str],
    /// Whether all edges may touch it too.
    edges: bool,
}

/// Who may touch what. A file that is no edge stands here with its reason.
const WORLD: &[World] = &[
    World { paths: &["glommio"], files: &["src/shard/executor/io_uring.rs"], edges: false },
    // What runs tasks: the control thread's loop, and a shard's executor.
    World {
        paths: &["tokio::runtime", "tokio::task", "tokio::time", "tokio::spawn"],
        files: &[
            "src/shard/executor/epoll.rs",
            "src/gateway",
            "src/discovery/mod.rs",
            "src/discovery/peer_looks.rs",
            "src/discovery/redis.rs",
            "src/discovery/redis/announcements.rs",
            "src/identity/",
            "src/ingest/oauth.rs",
            "src/discovery/redis_link.rs",
            "src/operations/http.rs",
            "src/operations/admin/fleet.rs",
            "src/operations/admin/shards.rs",
        ],
        edges: false,
    },
    World { paths: &["mio"], files: &["src/shard/reactor.rs"], edges: false },
    // The demo's broker is librdkafka's mock, and librdkafka itself says which of an operator's properties are wrong.
    World {
        paths: &["rdkafka"],
        files: &[
            "src/ingest/kafka.rs",
            "src/ingest/client.rs",
            "src/ingest/metadata_client.rs",
            "src/ingest/watcher.rs",
            "src/ingest/watcher/",
            "src/ingest/unpacking.rs",
            "src/demo/",
            "src/config/properties.rs",
        ],
        edges: false,
    },
    // Where Redis is, is parsed into the client's own type, so that a wrong URL is told at the start.
    World { paths: &["redis"], files: &["src/discovery/redis", "src/config/"], edges: false },
    // Requests and answers are hyper's plain values. Where a key set is, is parsed into its type for URLs, so that a wrong
    // one is told at the start.
    World {
        paths: &["hyper", "http_body_util"],
        files: &[
            "src/operations/",
            "src/discovery/peer_looks.rs",
            "src/identity/source.rs",
            "src/config/tokens.rs",
            "src/config/oidc.rs",
            "src/https.rs",
            "src/ingest/oauth.rs",
        ],
        edges: false,
    },
    World {
        paths: &["hyper_util"],
        files: &["src/operations/http.rs", "src/discovery/peer_looks.rs", "src/https.rs"],
        edges: false,
    },
    World { paths: &["tokio::signal"], files: &["src/shutdown/signals.rs"], edges: false },
    World { paths: &["libc", "socket2"], files: &[], edges: true },
    // A listener is handed on from who binds it to who accepts from it.
    World {
        paths: &["std::net::TcpListener", "std::net::TcpStream", "std::net::UdpSocket", "tokio::net"],
        files: &["src/gateway", "src/shard/mod.rs"],
        edges: true,
    },
    // The clock's one reading is handed down; the control thread's loop reads it too. A pulse, and the pod's rate of
    // accepts, begin at their birth.
    World {
        paths: &["Instant::now", "SystemTime::now"],
        files: &["src/clock.rs", "src/gateway", "src/exchange.rs", "src/shard/pod_limits.rs"],
        edges: true,
    },
    // A shard's thread is handed to the gateway, which waits for its end.
    World { paths: &["std::thread"], files: &["src/gateway", "src/demo/", "src/shard/mod.rs"], edges: true },
    // Settings, and the files that they name, are read before anything runs; so are what the kernel allows, and the
    // demo's secret, from the system's random source.
    World {
        paths: &["std::fs", "std::env"],
        files: &["src/main.rs", "src/gateway/engine.rs", "src/gateway/machine.rs", "src/demo/"],
        edges: false,
    },
];

impl World {
    fn allows(&self, path: &str) -> bool {
        self.edges && is_edge(path) || self.files.iter().any(|file| path.starts_with(file))
    }
}

/// What the tables above and the map's text say of files that aren't so.
pub(crate) fn stale(paths: &[&str], map: &str) -> Vec<String> {
    let table = EDGES.iter().chain(WORLD.iter().flat_map(|part| part.files));
    let gone = table.filter(|entry| !paths.iter().any(|path| path.starts_with(**entry)));
    let gone = gone.map(|entry| format!("the house rules name {entry}, which is not there"));
    let named = map.lines().filter(|line| line.starts_with("//!")).flat_map(|line| line.split('`').skip(1).step_by(2));
    let named = named.filter(|name| name.contains('/') && name.ends_with(".rs")).map(|name| format!("src/{name}"));
    let unknown = named.filter(|name| !is_edge(name));
    gone.chain(unknown.map(|name| format!("the map calls {name} an edge, the house rules don't"))).collect()
}

/// Whether a file is an edge.
pub(crate) fn is_edge(path: &str) -> bool {
    EDGES.contains(&path)
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The module that a path within the crate leads to.
fn target(path: &Path) -> Option<&str> {
    (path.segments[0] == "crate").then(|| path.segments.get(1)).flatten().map(String::as_str)
}

/// Lower layers never import higher ones.
pub(crate) fn imports(source: &Source) -> Vec<String> {
    let Some(own) = own_module(source) else { return Vec::new() };
    let Some(own_layer) = layer(&own) else {
        return vec![fault(source, 1, &format!("`{own}` has no layer: name it in the house rules"))];
    };
    let mut faults = Vec::new();
    for path in source.paths() {
        // What has no layer is no module: an item at the crate's root.
        if let Some(other) = target(&path).filter(|other| layer(other).is_some_and(|layer| layer > own_layer)) {
            faults.push(fault(source, path.line, &format!("`{own}` imports `{other}`, of a higher layer")));
        }
    }
    faults
}

/// `shard`, `ingest` and `discovery` don't know each other.
pub(crate) fn strangers(source: &Source) -> Vec<String> {
    let Some(own) = own_module(source).filter(|own| STRANGERS.contains(&own.as_str())) else { return Vec::new() };
    let paths = source.paths();
    let others = paths.iter().filter_map(|path| Some((path.line, target(path)?)));
    others
        .filter(|(_, other)| *other != own && STRANGERS.contains(other))
        .map(|(line, other)| fault(source, line, &format!("`{own}` and `{other}` share the types of `exchange` only")))
        .collect()
}

/// An edge is known to the edges beside it and to who builds the parts: rules don't call into the world.
pub(crate) fn edges(source: &Source) -> Vec<String> {
    let Some(own) = own_module(source) else { return Vec::new() };
    let builds = is_edge(&source.path) || source.path.ends_with("/mod.rs") || layer(&own) >= layer("gateway");
    if builds {
        return Vec::new();
    }
    let paths = source.paths();
    let edges = paths.iter().filter(|path| {
        path.segments.len() > 2 && is_edge(&format!("src/{}/{}.rs", path.segments[1], path.segments[2]))
    });
    edges
        .map(|path| fault(source, path.line, &format!("imports the edge `{}`", path.segments[1..3].join("::"))))
        .collect()
}

/// Sockets, clocks, threads, files and the environment are touched where the table says, and nowhere else.
pub(crate) fn world(source: &Source) -> Vec<String> {
    if own_module(source).is_none() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for path in source.paths() {
        for part in WORLD.iter().filter(|part| !part.allows(&source.path)) {
            if let Some(name) = part.paths.iter().find(|name| leads_to(&path, name)) {
                faults.push(fault(source, path.line, &format!("`{name}` has no place here")));
            }
        }
    }
    faults
}

/// Whether a path is, or leads into, what a name stands for; `Instant::now` is found behind any path to it.
fn leads_to(path: &Path, name: &str) -> bool {
    let name: Vec<&str> = name.split("::").collect();
    let found = |at: usize| path.segments[at..].iter().map(String::as_str).take(name.len()).eq(name.iter().copied());
    found(0) || name[0].starts_with(char::is_uppercase) && (0..path.segments.len()).any(found)
}

/// The crate's module that a file belongs to; none for files that are not of the gateway, and for the crate's root.
fn own_module(source: &Source) -> Option<String> {
    source.path.starts_with("src/").then(|| source.module().into_iter().next()).flatten()
}

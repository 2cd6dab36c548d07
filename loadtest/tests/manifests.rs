//! The files for operators: the manifests are checked against Kubernetes' schemas and each other, and all settings
//! named in them or in PROTOCOL against the binary.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Probe, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use loadtest::pods::run;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

// ---- schemas --------------------------------------------------------------------------------------------------------

#[test]
fn the_manifests_conform_to_kubernetes_schemas() {
    let manifests = Manifests::read();
    assert_eq!(manifests.pods.spec.replicas, Some(3));
    assert_eq!(manifests.services.len(), 2);
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let misspelt = "apiVersion: v1\nkind: Service\nspec:\n  ports: [{ port: 3003, targetsPort: clients }]\n";
    let fault = typed::<Service>(&yaml_serde::from_str(misspelt).unwrap()).unwrap_err();
    assert!(fault.contains("targetsPort"), "{fault}");
    let mistyped = "apiVersion: v1\nkind: Service\nspec:\n  ports: [{ port: clients }]\n";
    assert!(typed::<Service>(&yaml_serde::from_str(mistyped).unwrap()).is_err());
}

/// The manifests, typed.
#[derive(Default)]
struct Manifests {
    pods: StatefulSet,
    services: Vec<Service>,
    settings: ConfigMap,
    budget: PodDisruptionBudget,
}

impl Manifests {
    fn read() -> Self {
        let mut manifests = Self::default();
        let mut files: Vec<PathBuf> =
            fs::read_dir(top("deploy/kubernetes")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for document in yaml_serde::Deserializer::from_str(&text) {
                let value = serde::Deserialize::deserialize(document).unwrap();
                manifests.add(&value).unwrap_or_else(|fault| panic!("{}: {fault}", file.display()));
            }
        }
        manifests
    }

    fn add(&mut self, value: &Value) -> Result<(), String> {
        match (value["apiVersion"].as_str(), value["kind"].as_str()) {
            (Some("apps/v1"), Some("StatefulSet")) => self.pods = typed(value)?,
            (Some("v1"), Some("Service")) => self.services.push(typed(value)?),
            (Some("v1"), Some("ConfigMap")) => self.settings = typed(value)?,
            (Some("policy/v1"), Some("PodDisruptionBudget")) => self.budget = typed(value)?,
            kind => return Err(format!("{kind:?} is unknown to this test")),
        }
        Ok(())
    }

    fn pod(&self) -> &PodSpec {
        self.pods.spec.template.spec.as_ref().unwrap()
    }

    fn container(&self) -> &Container {
        assert_eq!(self.pod().containers.len(), 1);
        &self.pod().containers[0]
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        self.pods.spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap()
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.data.as_ref().unwrap().get(name).map(String::as_str)
    }

    /// All environment variables of the container, with the values that are literals.
    fn environment(&self) -> BTreeMap<&str, Option<&str>> {
        let shared = self.settings.data.iter().flatten().map(|(name, value)| (name.as_str(), Some(value.as_str())));
        let own =
            self.container().env.iter().flatten().map(|variable| (variable.name.as_str(), variable.value.as_deref()));
        shared.chain(own).collect()
    }
}

/// A manifest as Kubernetes' own type. Its fields are optional and unknown ones are ignored, so the value is serialized
/// again: a field that gets lost is unknown.
fn typed<T: DeserializeOwned + Serialize>(value: &Value) -> Result<T, String> {
    let typed: T = serde_json::from_value(value.clone()).map_err(|fault| fault.to_string())?;
    let again = serde_json::to_value(&typed).map_err(|fault| fault.to_string())?;
    match lost(value, &again, "") {
        None => Ok(typed),
        Some(path) => Err(format!("{path} is unknown to Kubernetes")),
    }
}

/// The first path that is missing or different in `again`.
fn lost(value: &Value, again: &Value, path: &str) -> Option<String> {
    match (value, again) {
        (Value::Object(fields), Value::Object(kept)) => fields
            .iter()
            .find_map(|(name, field)| lost(field, kept.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"))),
        (Value::Array(items), Value::Array(kept)) if items.len() == kept.len() => {
            items.iter().zip(kept).enumerate().find_map(|(at, (item, kept))| lost(item, kept, &format!("{path}[{at}]")))
        }
        _ => (value != again).then(|| path.to_owned()),
    }
}

// ---- consistency ----------------------------------------------------------------------------------------------------

#[test]
fn services_and_budget_select_the_pods_and_their_ports() {
    let manifests = Manifests::read();
    let spec = &manifests.pods.spec;
    let selects = |selector: Option<&BTreeMap<String, String>>| {
        selector
            .is_some_and(|selector| selector.iter().all(|(name, value)| manifests.labels().get(name) == Some(value)))
    };
    assert!(selects(spec.selector.match_labels.as_ref()));
    assert!(selects(manifests.budget.spec.as_ref().unwrap().selector.as_ref().unwrap().match_labels.as_ref()));
    for service in &manifests.services {
        let service = service.spec.as_ref().unwrap();
        assert!(selects(service.selector.as_ref()));
        for port in service.ports.as_ref().unwrap() {
            assert_eq!(port_number(manifests.container(), port.target_port.as_ref().unwrap()), port.port);
        }
    }
    let headless =
        manifests.services.iter().find(|service| service.spec.as_ref().unwrap().cluster_ip.as_deref() == Some("None"));
    assert_eq!(headless.unwrap().metadata.name, spec.service_name, "it names the pods");
}

#[test]
fn probes_use_the_port_of_the_operators_endpoints() {
    let manifests = Manifests::read();
    let container = manifests.container();
    let probe = |probe: &Option<Probe>| {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        (get.path.clone().unwrap(), port_number(container, &get.port).to_string())
    };
    let admin = manifests.setting("ADMIN_PORT").unwrap().to_owned();
    assert_eq!(probe(&container.liveness_probe), ("/health".to_owned(), admin.clone()));
    assert_eq!(probe(&container.readiness_probe), ("/accepting".to_owned(), admin.clone()));
    let clients = port_number(container, &IntOrString::String("clients".to_owned())).to_string();
    assert_eq!(clients, settings_of_the_binary()["PORT"]);

    let metadata = manifests.pods.spec.template.metadata.as_ref().unwrap();
    let annotations = metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["prometheus.io/port"], admin);
    assert_eq!(annotations["prometheus.io/path"], "/metrics");
}

#[test]
fn the_grace_period_covers_the_drain() {
    let manifests = Manifests::read();
    let defaults = settings_of_the_binary();
    let ms = |name: &str| manifests.setting(name).unwrap_or(&defaults[name]).parse::<i64>().unwrap();
    let grace_ms = manifests.pod().termination_grace_period_seconds.unwrap() * 1000;
    assert!(grace_ms >= ms("DRAIN_DELAY_MS") + ms("DRAIN_MS") + 5000, "with some seconds for the exit");
}

#[test]
fn each_pod_is_addressed_by_its_own_name() {
    let manifests = Manifests::read();
    let mut known = Vec::new();
    for variable in manifests.container().env.iter().flatten() {
        let value = variable.value.as_deref().unwrap_or_default();
        for reference in value.split("$(").skip(1) {
            let name = reference.split(')').next().unwrap();
            assert!(
                known.contains(&name),
                "{}: Kubernetes expands only variables defined before it, not {name}",
                variable.name
            );
        }
        known.push(&variable.name);
    }
    let service = manifests.pods.spec.service_name.as_ref().unwrap();
    let url = manifests.environment()["PUBLIC_URL"].unwrap();
    assert_eq!(url, format!("ws://$(POD_NAME).{service}.$(POD_NAMESPACE).svc:3003/ws"));
}

#[test]
fn pods_have_minimal_privileges() {
    let manifests = Manifests::read();
    let (pod, container) = (manifests.pod(), manifests.container());
    let security = pod.security_context.as_ref().unwrap();
    assert_eq!(security.run_as_non_root, Some(true));
    assert_eq!(pod.automount_service_account_token, Some(false));
    // A Service named `redis` would set REDIS_PORT=tcp://… otherwise.
    assert_eq!(pod.enable_service_links, Some(false));
    let own = container.security_context.as_ref().unwrap();
    assert_eq!((own.read_only_root_filesystem, own.allow_privilege_escalation), (Some(true), Some(false)));
    assert_eq!(own.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]));

    assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    let profile = fs::read_to_string(top("deploy/kubernetes/seccomp/io-uring.json")).unwrap();
    let profile: Value = serde_json::from_str(&profile).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ALLOW");
    let refused = profile["syscalls"].as_array().unwrap().iter().flat_map(|rule| rule["names"].as_array().unwrap());
    let refused: Vec<&str> = refused.map(|name| name.as_str().unwrap()).collect();
    assert!(refused.contains(&"mount") && refused.contains(&"bpf"));
    assert!(!refused.iter().any(|name| name.starts_with("io_uring")), "with ENGINE=io_uring the shards run on it");

    let resources = container.resources.as_ref().unwrap();
    assert_eq!(resources.requests, resources.limits, "exclusive cores need the Guaranteed class");
    assert!(resources.limits.as_ref().unwrap()["cpu"].0.parse::<u16>().is_ok(), "and whole cores");
}

#[test]
fn the_image_is_of_this_version() {
    let image = format!("shardgate:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(Manifests::read().container().image.as_ref(), Some(&image));
    let recipe = fs::read_to_string(top("deploy/Containerfile")).unwrap();
    assert!(recipe.lines().next().unwrap().contains(&format!("-t {image} ")));
}

fn port_number(container: &Container, port: &IntOrString) -> i32 {
    match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|port| port.name.as_ref() == Some(name)).expect("the port's name is known").container_port
        }
    }
}

// ---- settings -------------------------------------------------------------------------------------------------------

#[test]
fn pods_look_at_each_other_at_the_operators_port() {
    let manifests = Manifests::read();
    let environment = manifests.environment();
    let port = environment["ADMIN_PORT"].unwrap();
    assert_eq!(environment["PEER_URL"], Some(&*format!("http://$(POD_IP):{port}")));
}

#[test]
fn every_variable_of_a_pod_is_a_setting_of_the_binary() {
    let (manifests, settings) = (Manifests::read(), settings_of_the_binary());
    let unknown: Vec<&str> = manifests.environment().into_keys().filter(|name| !settings.contains_key(*name)).collect();
    assert_eq!(unknown, ["POD_IP", "POD_NAMESPACE"], "used only in PEER_URL and PUBLIC_URL");
}

#[test]
fn with_the_manifests_settings_only_the_secret_is_missing() {
    let manifests = Manifests::read();
    // As Kubernetes expands it.
    let url = manifests.environment()["PUBLIC_URL"].unwrap();
    let url = url.replace("$(POD_NAME)", "shardgate-0").replace("$(POD_NAMESPACE)", "default");
    let peer_url = manifests.environment()["PEER_URL"].unwrap().replace("$(POD_IP)", "10.1.2.3");
    let mut environment = manifests.environment();
    environment.extend([("PUBLIC_URL", Some(&*url)), ("PEER_URL", Some(&*peer_url))]);
    let environment: Vec<_> = environment.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();

    let run = run(&["serve"], &environment);
    assert_eq!(run.code, Some(2), "{}", run.output);
    let listed = settings_of_the_binary().into_keys().filter(|name| words(&run.output).any(|word| word == name));
    // Either is enough.
    assert_eq!(listed.collect::<Vec<_>>(), ["JWT_JWKS", "JWT_SECRET"], "{}", run.output);
}

#[test]
fn the_protocol_lists_all_settings_with_their_defaults() {
    let contract = fs::read_to_string(top("src/protocol/PROTOCOL.md")).unwrap();
    let section = contract.split("\n## ").find(|section| section.starts_with("6. Settings\n")).expect("its section");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeMap<String, String> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            (cells[1].to_owned(), cells[2].to_owned())
        })
        .collect();
    assert_eq!(listed, settings_of_the_binary(), "left: PROTOCOL.md, right: --help");
}

/// The settings and their defaults as `shardgate serve --help` lists them:
///
/// ```text
///   --kafka-brokers, KAFKA_BROKERS
///       the brokers to begin with
///       takes host[:port], several with commas; default localhost:9092
/// ```
fn settings_of_the_binary() -> BTreeMap<String, String> {
    let help = run(&["serve", "--help"], &[]).output;
    let mut settings = BTreeMap::new();
    let mut lines = help.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.split_once(", ").filter(|(flag, _)| flag.starts_with("--")) else { continue };
        let takes = lines.find(|line| line.starts_with("takes ")).expect("what a setting takes");
        let (_, default) = takes.rsplit_once("; ").expect("what it is by default");
        let default = default.trim_start_matches("default").trim_start_matches(':').trim_end_matches(" by default");
        settings.insert(name.to_owned(), default.trim().to_owned());
    }
    assert!(settings.len() > 30, "not the help that this test can read:\n{help}");
    settings
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
}

fn top(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

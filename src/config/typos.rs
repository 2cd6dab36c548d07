//! Warns of environment variables that look like misspelt settings, or like unknown members of a family of settings.
//! The environment holds many other variables, so these are only warnings, and Kubernetes' service variables are
//! ignored.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::settings::{ALL, Setting};

/// Families of settings: a variable with such a prefix that is no setting was most likely meant as one. The prefixes of
/// other settings are also used by other programs (`NODE_OPTIONS`, `POD_IP`, `MAX_OLD_SPACE`).
const FAMILIES: [&str; 6] = ["KAFKA_", "REDIS_", "JWT_", "HISTORY_", "DRAIN_", "LOG_"];

/// Variables that manifests often set, and that are close to a setting.
const OTHERS: [&str; 2] = ["NODE_IP", "NODE_NAME"];

/// Returns a warning for each such variable.
pub(super) fn warnings(environment: &BTreeMap<OsString, OsString>) -> Vec<String> {
    let set = environment.iter().filter(|(_, value)| !value.is_empty());
    let texts = set.filter_map(|(name, value)| Some((name.to_str()?, value.to_string_lossy())));
    let foreign = |name: &str, value: &str| OTHERS.contains(&name) || is_service_link(name, value);
    texts.filter(|(name, value)| !foreign(name, value)).filter_map(|(name, _)| warning(name)).collect()
}

fn warning(name: &str) -> Option<String> {
    if ALL.iter().any(|setting| setting.name == name) {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    let close = ALL.iter().map(|setting| (distance(&upper, setting.name), setting));
    let nearest =
        close.filter(|(distance, setting)| *distance <= typos_max(setting)).min_by_key(|(distance, _)| *distance);
    if let Some((_, setting)) = nearest {
        return Some(format!("{name} (environment) is not a setting; did you mean {}?", setting.name));
    }
    let family = FAMILIES.into_iter().find(|family| name.starts_with(family))?;
    let is_member = |member: &&str| member.starts_with(family) || *member == family.trim_end_matches('_');
    let members: Vec<&str> = ALL.iter().map(|setting| setting.name).filter(is_member).collect();
    Some(format!("{name} (environment) is not a setting; the settings of {family} are {}", members.join(", ")))
}

/// Number of typing errors up to which a name is taken for this setting's. Among short names, two errors make another
/// word.
fn typos_max(setting: &Setting) -> usize {
    if setting.name.len() <= 5 { 1 } else { 2 }
}

/// Whether Kubernetes sets the variable for a Service of the pod's namespace, as it does unless `enableServiceLinks` is
/// false: `REDIS_SERVICE_HOST`, `REDIS_SERVICE_PORT_CLIENTS`, `REDIS_PORT=tcp://10.0.0.1:6379`,
/// `REDIS_PORT_6379_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_service =
        name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_");
    let is_port = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        let mut words = rest.split('_');
        let number = words.next().is_some_and(|word| word.parse::<u16>().is_ok());
        number && words.next().is_some_and(|word| ["TCP", "UDP", "SCTP"].contains(&word))
    });
    is_service || is_port || name.ends_with("_PORT") && is_link(value)
}

/// Whether a value is a port as Kubernetes writes it into a Service's variable.
pub(super) fn is_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// Number of letters that must be changed, removed, inserted, or swapped with the next (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    // Much longer names are no typo of any setting.
    if from.len().abs_diff(to.len()) > 2 {
        return usize::MAX;
    }
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for (i, letter) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, other) in to.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(letter != other)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from[i - 1] == *other && *letter == to[j - 1] {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings_of(variables: &[(&str, &str)]) -> Vec<String> {
        warnings(&variables.iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    #[test]
    fn a_misspelt_setting_causes_a_warning_with_the_right_name() {
        for (typo, meant) in [
            ("REDIS_HSOT", "REDIS_HOST"),
            ("REDIS_HOTS", "REDIS_HOST"),
            ("KAFKA_BROKER", "KAFKA_BROKERS"),
            ("KAFKABROKERS", "KAFKA_BROKERS"),
            ("JWT_SECRETS", "JWT_SECRET"),
            ("redis_host", "REDIS_HOST"),
            ("MAX_CONECTION", "MAX_CONNECTIONS"),
            ("PROT", "PORT"),
            ("SHARD", "SHARDS"),
            ("LOGS", "LOG"),
        ] {
            let expected = format!("{typo} (environment) is not a setting; did you mean {meant}?");
            assert_eq!(warnings_of(&[(typo, "hunter2")]), [expected]);
        }
        assert_eq!(warnings_of(&[("REDIS_HSOT", "")]), [""; 0], "an empty variable counts as unset");
    }

    #[test]
    fn an_unknown_variable_of_a_family_causes_a_warning_with_the_known_ones() {
        let warnings = warnings_of(&[("LOG_LEVEL", "debug"), ("KAFKA_BROKRS_X", "b:1"), ("JWT_PUBLIC_KEY", "k")]);
        assert_eq!(warnings.len(), 3);
        assert!(warnings[0].contains("JWT_PUBLIC_KEY") && warnings[0].contains("JWT_SECRET"), "{warnings:?}");
        assert!(warnings[1].contains("KAFKA_BROKRS_X") && warnings[1].contains("KAFKA_BROKERS, "), "{warnings:?}");
        assert_eq!(warnings[2], "LOG_LEVEL (environment) is not a setting; the settings of LOG_ are LOG, LOG_FORMAT");
    }

    #[test]
    fn other_variables_are_ignored() {
        let variables = [
            ("PATH", "/bin"),
            ("HOME", "/"),
            ("HOSTNAME", "a"),
            ("HOSTTYPE", "x86_64"),
            ("TERM", "xterm"),
            ("TZ", "UTC"),
            ("LANG", "C"),
            ("LOGNAME", "me"),
            ("PWD", "/"),
            ("POD_IP", "10.0.0.2"),
            ("POD_UID", "u"),
            ("POD_NAMESPACE", "default"),
            ("NODE_IP", "10.0.0.1"),
            ("NODE_NAME", "n"),
            ("NODE_OPTIONS", "x"),
            ("NODE_ENV", "production"),
            ("RUST_BACKTRACE", "1"),
            ("MAX_OLD_SPACE", "1"),
            ("KUBERNETES_PORT", "tcp://10.0.0.1:443"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
            ("REDIS_SERVICE_HOST", "10.0.0.1"),
            ("REDIS_SERVICE_PORT", "6379"),
            ("REDIS_SERVICE_PORT_CLIENTS", "6379"),
            ("REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
            ("REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
            ("REDIS_MASTER_PORT", "tcp://10.0.0.1:6379"),
            ("KAFKA_PORT", "tcp://10.0.0.1:9092"),
            ("KAFKA_PORT_9092_TCP_PROTO", "tcp"),
        ];
        assert_eq!(warnings_of(&variables), [""; 0]);
        let settings: Vec<_> = ALL.iter().map(|setting| (setting.name, "x")).collect();
        assert_eq!(warnings_of(&settings), [""; 0]);
    }

    #[test]
    fn swapped_letters_are_one_typo() {
        for (from, to, slips) in [
            ("", "", 0),
            ("AB", "AB", 0),
            ("AB", "BA", 1),
            ("AB", "B", 1),
            ("AB", "ABC", 1),
            ("ABC", "CBA", 2),
            ("A", "ABCD", usize::MAX),
        ] {
            assert_eq!(distance(from, to), slips, "{from} {to}");
        }
    }
}

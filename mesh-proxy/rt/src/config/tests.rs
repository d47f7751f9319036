use serde::Deserialize;

use super::*;
use crate::Secret;

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Inner {
    port: u16,
    names: Vec<u8>,
    label: String,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Config {
    node: String,
    state_dir: String,
    workers: u32,
    token: Secret<String>,
    pin: Secret<u32>,
    inner: Inner,
}

impl Validate for Config {
    fn validate(&self) -> Vec<ConfigProblem> {
        if self.workers > 64 {
            vec![ConfigProblem::new("workers", self.workers, "must be at most 64")]
        } else {
            vec![]
        }
    }
}

fn layers(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Layers {
    let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Layers {
        file: Some(("/etc/x.yaml".into(), file.into())),
        env_prefix: "X_".into(),
        env: own(env),
        env_ignore: vec!["X_CONFIG".into()],
        flags: own(flags),
    }
}

#[test]
fn flags_win_over_env_and_env_over_the_file() {
    let file = "node: a\nworkers: 1\ninner: {port: 1, label: file}\n";
    let env = [
        ("X_WORKERS", "2"),
        ("X_STATE_DIR", "/x"),
        ("X_INNER__PORT", "2"),
        ("X_CONFIG", "ignored"),
        ("Y_Z", "other"),
    ];
    let config: Config = load_from(layers(file, &env, &[("inner.port", "3")])).unwrap();
    let expected = Config {
        node: "a".into(),
        state_dir: "/x".into(),
        workers: 2,
        inner: Inner { port: 3, label: "file".into(), ..Inner::default() },
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn text_that_looks_like_another_type_still_fits_a_text_key() {
    let env = [("X_NODE", "123"), ("X_INNER__LABEL", "yes"), ("X_TOKEN", "0x10")];
    let config: Config = load_from(layers("", &env, &[])).unwrap();
    assert_eq!((config.node.as_str(), config.inner.label.as_str()), ("123", "yes"));
    assert_eq!(config.token.expose(), "0x10");
}

#[test]
fn every_error_is_returned_with_key_value_reason_and_origin() {
    let file = "node: a\nworkerz: 3\nworkers: 100\ninner:\n  names: [1, x, 3, 999]\n  colour: red\n";
    let ConfigErrors(problems) =
        load_from::<Config>(layers(file, &[("X_INNER__PORT", "70000")], &[("label", "l")])).unwrap_err();
    let find =
        |key: &str| problems.iter().find(|p| p.key == key).unwrap_or_else(|| panic!("{key}: {problems:#?}"));
    let from_file = Origin::File("/etc/x.yaml".into());
    assert_eq!((find("workerz").value.as_str(), &find("workerz").origin), ("3", &from_file));
    assert_eq!(find("inner.colour").value, "\"red\"");
    assert_eq!(find("inner.names[1]").value, "\"x\"");
    assert!(problems.iter().any(|p| p.value == "999" && p.key.starts_with("inner.names[")));
    assert_eq!(find("inner.port").origin, Origin::Env("X_INNER__PORT".into()));
    assert!(find("inner.port").value.contains("70000"));
    assert_eq!(find("label").origin, Origin::Flag);
    assert_eq!(find("workers").reason, "must be at most 64");
    assert_eq!(problems.len(), 7, "{problems:#?}");
    let text = ConfigErrors(problems).to_string();
    assert!(text.starts_with("7 configuration errors\n"), "{text}");
    assert!(text.contains("(environment X_INNER__PORT)"), "{text}");
}

#[test]
fn a_secret_under_a_misspelt_key_is_not_printed() {
    let secret = "selvage1.eyJpIjoiMTRlYjQzZTYxNmFiNmZhMSJ9";
    let wrong = load_from::<Config>(layers("", &[("X_TOKN", secret)], &[])).unwrap_err().to_string();
    assert!(wrong.contains("tokn") && !wrong.contains("eyJ"), "{wrong}");
}

#[test]
fn a_secret_shows_neither_in_errors_nor_in_dumps() {
    let error = load_from::<Config>(layers("pin: hunter2\n", &[], &[])).unwrap_err().to_string();
    assert!(error.contains("pin") && error.contains("[redacted]") && !error.contains("hunter2"), "{error}");
    let config: Config = load_from(layers("token: hunter2\n", &[], &[])).unwrap();
    assert!(!format!("{config:?} {}", config.token).contains("hunter2"));
    assert_eq!(serde_json::to_string(&config.token).unwrap(), "\"[redacted]\"");
}

#[test]
fn a_file_that_is_not_yaml_is_one_clear_error() {
    let ConfigErrors(problems) = load_from::<Config>(layers("node: [", &[], &[])).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].reason.starts_with("is not YAML"), "{problems:?}");
    let ConfigErrors(problems) =
        load::<Config>(Some(Path::new("/nonexistent/x")), "X_", &[], vec![]).unwrap_err();
    assert!(problems[0].to_string().contains("/nonexistent/x"), "{problems:?}");
}

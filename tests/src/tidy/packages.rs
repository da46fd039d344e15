//! Who depends on whom, and on what from outside.

use super::Finding;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Packages of the repository from the bottom up: each may depend on those of lower rows only.
pub const LAYERS: [&[&str]; 5] = [
    &["blkback-proto"],
    &["blockrep-host"],
    &["blockrep", "checkpointer", "netbuf"],
    &["blockrep-tools", "xtask"],
    &["blockrep-tests", "blockrep-man"],
];

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// Dependencies that point up or sideways, from the output of `cargo metadata --no-deps`.
#[must_use]
pub fn directions(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (package, dependency) in dependencies(metadata) {
        let Some(own) = layer(package) else {
            findings.push(Finding::new(
                package,
                0,
                "a package without a place in the layers",
            ));
            continue;
        };
        let name = dependency["name"].as_str().unwrap_or_default();
        if !dependency["path"].is_string() {
            continue;
        }
        if layer(name).is_none_or(|other| other >= own) {
            findings.push(Finding::new(
                package,
                0,
                format!("must not depend on {name}"),
            ));
        }
    }
    findings
}

/// Rules about single crates from outside.
#[must_use]
pub fn outside(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (package, dependency) in dependencies(metadata) {
        let name = dependency["name"].as_str().unwrap_or_default();
        let features = dependency["features"].as_array().into_iter().flatten();
        if name == "tokio-uring" && package != "blockrep-tools" {
            findings.push(Finding::new(
                package,
                0,
                "tokio-uring belongs to the load generator",
            ));
        }
        if name == "tokio" && package == "blockrep" {
            findings.push(Finding::new(package, 0, "no tokio in the data path"));
        }
        if name == "vhost-user-backend" && features.into_iter().any(|f| f == "xen") {
            findings.push(Finding::new(
                package,
                0,
                "vhost-user-backend without its feature xen",
            ));
        }
    }
    findings
}

fn dependencies(metadata: &Value) -> Vec<(&str, &Value)> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .flat_map(|package| {
            let name = package["name"].as_str().unwrap_or_default();
            let list = package["dependencies"].as_array().into_iter().flatten();
            list.map(move |dependency| (name, dependency))
        })
        .collect()
}

/// Crates locked in more than one version without a reason, and reasons without such a crate.
#[must_use]
pub fn duplicates(lock: &str, reasons: &[(&str, &str)]) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let value = |block: &'static str| move |line: &str| line.starts_with(block);
    for block in lock.split("[[package]]").skip(1) {
        let field = |key: &'static str| {
            let line = block.lines().find(|line| value(key)(line))?;
            line.split('"').nth(1)
        };
        if let (Some(name), Some(version)) = (field("name"), field("version")) {
            versions.entry(name).or_default().insert(version);
        }
    }
    let mut findings = Vec::new();
    for (name, versions) in &versions {
        if versions.len() > 1 && !reasons.iter().any(|(of, _)| of == name) {
            let versions: Vec<&str> = versions.iter().copied().collect();
            let what = format!("{name} in versions {}", versions.join(", "));
            findings.push(Finding::new("Cargo.lock", 0, what));
        }
    }
    for (name, _) in reasons {
        if versions.get(name).is_none_or(|v| v.len() == 1) {
            findings.push(Finding::new(
                "Cargo.lock",
                0,
                format!("{name}: a reason for nothing"),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(package: &str, name: &str, path: Value, features: &[&str]) -> Value {
        let dependency = json!({ "name": name, "path": path, "features": features });
        json!({ "packages": [{ "name": package, "dependencies": [dependency] }] })
    }

    /// A leaf that begins to depend on a daemon drags it into every tool.
    #[test]
    fn planted_directions_are_found() {
        let path = json!("/x");
        assert_eq!(
            directions(&one("blockrep", "blkback-proto", path.clone(), &[])),
            []
        );
        assert_eq!(
            directions(&one("blkback-proto", "blockrep", path.clone(), &[])).len(),
            1
        );
        assert_eq!(
            directions(&one("blockrep-tools", "xtask", path.clone(), &[])).len(),
            1
        );
        assert_eq!(
            directions(&one("stranger", "blkback-proto", path, &[])).len(),
            1
        );
        assert_eq!(
            directions(&one("blkback-proto", "serde", Value::Null, &[])),
            []
        );
    }

    /// Crates that were tried and found wanting creep back in.
    #[test]
    fn planted_crates_are_found() {
        assert_eq!(
            outside(&one("blockrep-tools", "tokio-uring", Value::Null, &[])),
            []
        );
        assert_eq!(
            outside(&one("blockrep", "tokio-uring", Value::Null, &[])).len(),
            1
        );
        assert_eq!(
            outside(&one("blockrep", "tokio", Value::Null, &[])).len(),
            1
        );
        let xen = one("blockrep", "vhost-user-backend", Value::Null, &["xen"]);
        assert_eq!(outside(&xen).len(), 1);
    }

    /// Two versions of a crate are two sets of bugs.
    #[test]
    fn planted_duplicates_are_found() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1\"\n\
                    [[package]]\nname = \"a\"\nversion = \"2\"\n";
        assert_eq!(duplicates(lock, &[]).len(), 1);
        assert_eq!(duplicates(lock, &[("a", "why")]), []);
        assert_eq!(duplicates(lock, &[("a", "why"), ("b", "why")]).len(), 1);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the jobs of a workflow hang together, and what they offer to expressions in them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::expressions::Names;

/// The names of a map's members.
pub(super) fn keys(map: &Value) -> BTreeSet<String> {
    map.as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.clone())
        .collect()
}

/// The steps that have one.
pub(super) fn ids(steps: &Value) -> BTreeSet<String> {
    let ids = steps.as_array().into_iter().flatten().map(|step| &step["id"]);
    ids.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The jobs that must have passed before one.
fn needs(job: &Value) -> Vec<&str> {
    match &job["needs"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn names_of_job(job: &Value) -> Names {
    let matrix = &job["strategy"]["matrix"];
    let mut dimensions = keys(matrix);
    // Each of these is a map of dimensions.
    for one in matrix["include"].as_array().into_iter().flatten() {
        dimensions.extend(keys(one));
    }
    Names {
        matrix: dimensions,
        needs: needs(job).into_iter().map(str::to_owned).collect(),
        inputs: BTreeSet::new(),
        steps: ids(&job["steps"]),
    }
}

pub(super) fn of_needs(job: &Value, jobs: &Map<String, Value>) -> Vec<String> {
    let unknown = needs(job).into_iter().filter(|name| !jobs.contains_key(*name));
    unknown
        .map(|name| format!("needs {name}, which is no job here"))
        .collect()
}

/// Jobs that wait for each other.
pub(super) fn circle(jobs: &Map<String, Value>) -> Option<String> {
    let mut waits: BTreeMap<&str, Vec<&str>> = jobs.iter().map(|(name, job)| (name.as_str(), needs(job))).collect();
    loop {
        let free: Vec<&str> = waits
            .iter()
            .filter(|(_, on)| on.is_empty())
            .map(|(name, _)| *name)
            .collect();
        if free.is_empty() {
            break;
        }
        for name in free {
            waits.remove(name);
            waits.values_mut().for_each(|on| on.retain(|other| *other != name));
        }
    }
    // What waits for a job that there is not is told of elsewhere.
    waits.retain(|_, on| on.iter().all(|name| jobs.contains_key(*name)));
    (!waits.is_empty()).then(|| {
        let names: Vec<&str> = waits.into_keys().collect();
        format!("jobs that wait for each other, or for such ones: {}", names.join(", "))
    })
}

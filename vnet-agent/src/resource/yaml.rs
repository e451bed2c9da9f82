//! Resources as YAML.

use serde::Serialize;

use super::{Metadata, Resource};

/// The fields in the order in which people write them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, Spec> {
    api_version: &'a str,
    kind: &'a str,
    metadata: &'a Metadata,
    spec: &'a Spec,
}

/// A resource as one YAML document, which [`parse`](super::parse) reads back to the same.
#[must_use]
pub fn to_yaml(resource: &Resource) -> String {
    match resource {
        Resource::LoadBalancer(it) => write(resource, &it.api_version, &it.spec),
        Resource::Endpoint(it) => write(resource, &it.api_version, &it.spec),
        Resource::SecurityGroup(it) => write(resource, &it.api_version, &it.spec),
        Resource::Policy(it) => write(resource, &it.api_version, &it.spec),
        Resource::TagSource(it) => write(resource, &it.api_version, &it.spec),
    }
}

fn write<Spec: Serialize>(resource: &Resource, api_version: &str, spec: &Spec) -> String {
    let document = Document { api_version, kind: resource.kind(), metadata: resource.metadata(), spec };
    // Nothing in a resource is beyond YAML; should that change, a comment says so in place of the resource.
    serde_saphyr::to_string(&document)
        .unwrap_or_else(|error| format!("# {} {} cannot be shown: {error}\n", resource.kind(), resource.name()))
}

//! What the endpoints and users of a node are, without anything secret.

use knarr_node::v1;
use knarr_serve::users::Standing;
use knarr_store::definitions::DefinitionKind;

use crate::cli::host::{NodeHost, stands_in, users_of};
use crate::config::{Endpoint, EndpointKind, ServedUser};

pub(super) fn endpoints(host: &NodeHost<'_>) -> Vec<v1::Endpoint> {
    let endpoint = |endpoint: &Endpoint| {
        let (kind, place) = described(endpoint);
        v1::Endpoint {
            name: endpoint.name.clone(),
            r#type: kind.to_owned(),
            origin: origin(host, DefinitionKind::Endpoint, &endpoint.name).into(),
            place,
            ..v1::Endpoint::default()
        }
    };
    let endpoints = host.opener.config().endpoints.values();
    let mut all: Vec<v1::Endpoint> = endpoints.map(endpoint).collect();
    for (name, problem) in broken(host, DefinitionKind::Endpoint) {
        all.push(v1::Endpoint {
            name,
            origin: v1::job::Origin::Added.into(),
            problem,
            ..v1::Endpoint::default()
        });
    }
    all.sort_by(|left, right| left.name.cmp(&right.name));
    all
}

pub(super) fn users(host: &NodeHost<'_>) -> Vec<v1::User> {
    let user = |served: &ServedUser| {
        let user = &served.user;
        let proofs = [
            (
                "key",
                !(user.keys.is_empty() && served.key_files.is_empty()),
            ),
            ("certificate", !user.authorities.is_empty()),
            ("password", served.password.is_some()),
        ];
        let proofs = proofs.into_iter().filter(|(_, is_there)| *is_there);
        let places = served.mounts.iter().map(|mount| {
            let place = mount.location.to_string();
            format!("/{}: {place}", mount.name)
        });
        v1::User {
            name: user.name.clone(),
            origin: origin(host, DefinitionKind::User, &user.name).into(),
            enabled: user.standing == Standing::Enabled,
            expires: user
                .expires
                .map(|expires| expires.to_string())
                .unwrap_or_default(),
            proofs: proofs.map(|(name, _)| name.to_owned()).collect(),
            places: places.collect(),
            problem: host.left_out.get(&user.name).cloned().unwrap_or_default(),
            ..v1::User::default()
        }
    };
    let mut all: Vec<v1::User> = users_of(host.opener.config()).map(user).collect();
    for (name, problem) in broken(host, DefinitionKind::User) {
        all.push(v1::User {
            name,
            origin: v1::job::Origin::Added.into(),
            problem,
            ..v1::User::default()
        });
    }
    all.sort_by(|left, right| left.name.cmp(&right.name));
    all
}

/// What was added and is wrong by now, but for what stands in the file, too.
fn broken(host: &NodeHost<'_>, kind: DefinitionKind) -> Vec<(String, String)> {
    let broken = host.broken.iter();
    let of_kind =
        broken.filter(|((of, name), _)| *of == kind && !stands_in(&host.file, kind, name));
    of_kind
        .map(|((_, name), why)| (name.clone(), why.clone()))
        .collect()
}

fn origin(host: &NodeHost<'_>, kind: DefinitionKind, name: &str) -> v1::job::Origin {
    if stands_in(&host.file, kind, name) {
        v1::job::Origin::File
    } else {
        v1::job::Origin::Added
    }
}

/// The kind of an endpoint and where it is, without users and secrets.
fn described(endpoint: &Endpoint) -> (&'static str, String) {
    use knarr_core::location::ObjectStoreKind;
    match &endpoint.kind {
        EndpointKind::Local(path) => ("local", path.display().to_string()),
        EndpointKind::Sftp(settings) => ("sftp", settings.host.clone()),
        EndpointKind::Object(settings) => {
            let kind = match settings.store {
                ObjectStoreKind::S3 => "s3",
                ObjectStoreKind::Gcs => "gcs",
                ObjectStoreKind::Azure => "azure",
            };
            (kind, settings.bucket.clone())
        }
    }
}

//! Checks endpoints: what they have to say about where they are and how to log in.

use std::ops::RangeInclusive;

use knarr_core::location::ObjectStoreKind;
use knarr_core::units::ByteSize;

use crate::config::check::{Checker, Place};
use crate::config::network::Origin;
use crate::config::node::{Key, Node, Value};
use crate::config::problem::Problem;
use crate::config::read::{At, read};
use crate::config::resolved::{Endpoint, EndpointKind, Limits, ObjectSettings, SftpSettings};
use crate::config::shape::{
    AzureShape, ENDPOINT_TYPES, GcsShape, LimitsShape, LocalShape, S3Shape, SftpShape,
};
use crate::suggest;

/// The sizes that parts of an upload may have, in bytes.
const PART_BYTES: RangeInclusive<u64> = 5 << 20..=5 << 30;

impl Checker<'_> {
    pub(in crate::config) fn endpoint(&mut self, key: &Key, node: &Node) -> Option<Endpoint> {
        let place = format!("endpoints.{}", key.name);
        let Some((type_key, type_node)) = node.get("type") else {
            self.helped(
                place,
                &key.span,
                "the key `type` is missing".to_owned(),
                &format!("one of {}", ENDPOINT_TYPES.join(", ")),
            );
            return None;
        };
        let name: String = self.keep(read(type_node, &format!("{place}.type"), &type_key.span))?;
        // What remains is read as the shape of its type, which does not know the key `type`.
        let mut rest = node.clone();
        if let Value::Map(entries) = &mut rest.value {
            entries.retain(|(key, _value)| key.name != "type");
        }
        let place = Place(&place);
        let (kind, limits, verify) = match name.as_str() {
            "sftp" => {
                let shape: SftpShape = self.keep(read(&rest, place.0, &key.span))?;
                (self.sftp(&shape, place), shape.limits, shape.verify)
            }
            "s3" => {
                let shape: S3Shape = self.keep(read(&rest, place.0, &key.span))?;
                (self.s3(&shape, place, key), shape.limits, shape.verify)
            }
            "gcs" => {
                let shape: GcsShape = self.keep(read(&rest, place.0, &key.span))?;
                let mut settings = self.bucket(
                    ObjectStoreKind::Gcs,
                    &shape.bucket,
                    shape.path.as_ref(),
                    place,
                );
                settings.service_account = shape.service_account;
                settings.part_bytes = self.part_size(shape.part_size.as_ref(), place);
                (
                    EndpointKind::Object(Box::new(settings)),
                    shape.limits,
                    shape.verify,
                )
            }
            "azure" => {
                let shape: AzureShape = self.keep(read(&rest, place.0, &key.span))?;
                (self.azure(&shape, place), shape.limits, shape.verify)
            }
            "local" => {
                let shape: LocalShape = self.keep(read(&rest, place.0, &key.span))?;
                let path = self.path(&shape.path.value);
                (EndpointKind::Local(path), shape.limits, shape.verify)
            }
            other => {
                self.helped(
                    place.of("type"),
                    &type_node.span,
                    format!("`{other}` is not a type of endpoint"),
                    &suggest::help(other, &ENDPOINT_TYPES, "known types"),
                );
                return None;
            }
        };
        Some(Endpoint {
            name: key.name.clone(),
            kind,
            limits: self.limits(&limits, place),
            verify,
        })
    }

    fn sftp(&mut self, shape: &SftpShape, place: Place<'_>) -> EndpointKind {
        let host = &shape.host.value;
        if host.is_empty() || host.starts_with('-') || host.contains(['/', '@', ' ']) {
            let help = "the user and the port have keys of their own: `user`, `port`";
            let message = format!("`{host}` is not a host");
            self.helped(place.of("host"), &shape.host.span, message, help);
        }
        for fingerprint in &shape.host_key.0 {
            let digest = fingerprint.value.strip_prefix("SHA256:");
            let is_digest = digest.is_some_and(|digest| {
                digest.trim_end_matches('=').len() == 43
                    && digest
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
            });
            if !is_digest {
                self.helped(
                    place.of("host_key"),
                    &fingerprint.span,
                    format!("`{}` is not a fingerprint", fingerprint.value),
                    "`ssh-keyscan HOST | ssh-keygen -lf -` prints it: SHA256: and 43 characters",
                );
            }
        }
        EndpointKind::Sftp(Box::new(SftpSettings {
            host: host.clone(),
            port: shape.port,
            user: shape.user.clone(),
            path: shape
                .path
                .as_ref()
                .map(|path| path.value.clone())
                .unwrap_or_default(),
            password: shape.password.clone(),
            keys: shape
                .key
                .0
                .iter()
                .map(|key| self.path(&key.value))
                .collect(),
            passphrase: shape.passphrase.clone(),
            // What comes over the network uses no keys of the node.
            agent: match self.origin {
                Origin::File => shape.agent,
                Origin::Network => Some(false),
            },
            keyboard_interactive: shape.keyboard_interactive.clone(),
            host_keys: shape
                .host_key
                .0
                .iter()
                .map(|key| key.value.clone())
                .collect(),
            known_hosts: shape
                .known_hosts
                .as_ref()
                .map(|file| self.path(&file.value)),
            origin: self.origin,
        }))
    }

    fn s3(&mut self, shape: &S3Shape, place: Place<'_>, key: &Key) -> EndpointKind {
        let mut settings = self.bucket(
            ObjectStoreKind::S3,
            &shape.bucket,
            shape.path.as_ref(),
            place,
        );
        if shape.access_key.is_some() != shape.secret_key.is_some() {
            let message = "`access_key` and `secret_key` belong together";
            self.problem(place.0, &key.span, message);
        }
        settings.region.clone_from(&shape.region);
        settings.profile.clone_from(&shape.profile);
        settings.endpoint = self.url(shape.endpoint.as_ref(), place);
        settings.path_style = shape.path_style;
        settings.access_key.clone_from(&shape.access_key);
        settings.secret_key.clone_from(&shape.secret_key);
        settings.part_bytes = self.part_size(shape.part_size.as_ref(), place);
        EndpointKind::Object(Box::new(settings))
    }

    fn azure(&mut self, shape: &AzureShape, place: Place<'_>) -> EndpointKind {
        let mut settings = self.bucket(
            ObjectStoreKind::Azure,
            &shape.container,
            shape.path.as_ref(),
            place,
        );
        settings.account = Some(shape.account.clone());
        settings.endpoint = self.url(shape.endpoint.as_ref(), place);
        settings.access_key.clone_from(&shape.access_key);
        settings.part_bytes = self.part_size(shape.part_size.as_ref(), place);
        EndpointKind::Object(Box::new(settings))
    }

    fn bucket(
        &mut self,
        store: ObjectStoreKind,
        bucket: &At<String>,
        path: Option<&At<String>>,
        place: Place<'_>,
    ) -> ObjectSettings {
        if bucket.value.is_empty() || bucket.value.contains(['/', ' ', ':']) {
            let help = "write its name alone; a prefix in it has the key `path`";
            let message = format!("`{}` is not a bucket", bucket.value);
            self.helped(place.of("bucket"), &bucket.span, message, help);
        }
        let prefix = path
            .map(|path| path.value.trim_matches('/').to_owned())
            .unwrap_or_default();
        ObjectSettings::new(store, bucket.value.clone(), prefix)
    }

    fn url(&mut self, url: Option<&At<String>>, place: Place<'_>) -> Option<String> {
        let url = url?;
        let rest = url
            .value
            .strip_prefix("https://")
            .or_else(|| url.value.strip_prefix("http://"));
        match rest {
            Some(rest) if rest.contains('@') => {
                let mut problem = Problem::new("no user and no password may stand in the URL")
                    .in_place(place.of("endpoint"))
                    .at(Some(url.span.clone()));
                problem.hides_span = true;
                self.problems.push(problem);
            }
            Some(rest) if !rest.is_empty() => {}
            _ => {
                let message = format!("`{}` is not a URL", url.value);
                let help = "write https://host or http://host:port";
                self.helped(place.of("endpoint"), &url.span, message, help);
            }
        }
        Some(url.value.clone())
    }

    fn part_size(&mut self, size: Option<&At<ByteSize>>, place: Place<'_>) -> Option<u64> {
        let size = size?;
        if !PART_BYTES.contains(&size.value.0) {
            let message = "parts have between 5MiB and 5GiB";
            self.problem(place.of("part_size"), &size.span, message);
        }
        Some(size.value.0)
    }

    fn limits(&mut self, shape: &LimitsShape, place: Place<'_>) -> Limits {
        let mut count = |name: &str, value: &Option<At<u32>>, most: u32| {
            let value = value.as_ref()?;
            if value.value == 0 || value.value > most {
                let message = format!("this has to be between 1 and {most}");
                self.problem(place.of(&format!("limits.{name}")), &value.span, message);
            }
            usize::try_from(value.value).ok()
        };
        let connections = count("connections", &shape.connections, 256);
        let transfers = count("transfers", &shape.transfers, 1_024);
        Limits {
            connections,
            transfers,
            bandwidth_bytes_per_second: self
                .bandwidth(shape.bandwidth.as_ref(), &place.of("limits.bandwidth")),
        }
    }
}

//! Locations as people write them: a path, a URL, or `endpoint:path`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place, as it was written. Credentials are never part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// A path on this machine.
    Local {
        /// Absolute or relative to the working directory.
        path: String,
    },
    /// `sftp://user@host:port/path`.
    Sftp {
        /// The user, if the URL names one.
        user: Option<String>,
        /// A host name, an address, or a `Host` of the SSH configuration.
        host: String,
        /// The port, if the URL names one.
        port: Option<u16>,
        /// `/…` is absolute on the server; `/~/…` and `/./…` are relative to the user's home.
        path: String,
    },
    /// `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    Object {
        /// Which kind of store.
        store: ObjectStoreKind,
        /// The bucket or container.
        bucket: String,
        /// The prefix, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `endpoint:path`, where the endpoint stands in `knarr.yaml`.
    Endpoint {
        /// The name of the endpoint.
        name: String,
        /// What stands behind the colon.
        path: String,
    },
}

/// Kinds of object stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectStoreKind {
    /// Amazon S3 and everything compatible.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

/// Why something is not a location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Nothing was written.
    #[error("the location is empty")]
    Empty,
    /// A password stands in the URL.
    #[error(
        "a password may not stand in a location: store it with `knarr secret set NAME` and name it in knarr.yaml"
    )]
    Password,
    /// The scheme is not known.
    #[error(
        "`{0}://` is not a kind of location: use a path, sftp://, s3://, gs://, az:// or endpoint:path"
    )]
    Scheme(String),
    /// The host or bucket is missing.
    #[error("`{0}` names no host or bucket")]
    NoHost(String),
    /// The port is not a number.
    #[error("`{0}` is not a port")]
    Port(String),
}

impl Location {
    /// Reads a location.
    ///
    /// `name:rest` is an endpoint if `name` has at least two characters and no `/`; write `./a:b` for a
    /// local file with a colon in its name.
    ///
    /// # Errors
    /// A [`LocationError`].
    pub fn parse(text: &str) -> Result<Self, LocationError> {
        if text.is_empty() {
            return Err(LocationError::Empty);
        }
        if let Some((scheme, rest)) = text.split_once("://")
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '+')
            && !scheme.is_empty()
        {
            return Self::parse_url(scheme, rest, text);
        }
        if let Some((name, path)) = text.split_once(':')
            && name.len() >= 2
            && is_endpoint_name(name)
        {
            return Ok(Self::Endpoint {
                name: name.to_owned(),
                path: path.to_owned(),
            });
        }
        Ok(Self::Local {
            path: text.to_owned(),
        })
    }

    fn parse_url(scheme: &str, rest: &str, text: &str) -> Result<Self, LocationError> {
        let (authority, path) = match rest
            .find('/')
            .and_then(|slash| rest.split_at_checked(slash))
        {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        match scheme.to_ascii_lowercase().as_str() {
            "sftp" | "ssh" => parse_sftp(authority, path, text),
            "s3" => object(ObjectStoreKind::S3, authority, path, text),
            "gs" | "gcs" => object(ObjectStoreKind::Gcs, authority, path, text),
            "az" | "azure" => object(ObjectStoreKind::Azure, authority, path, text),
            "file" => Ok(Self::Local {
                path: path.to_owned(),
            }),
            other => Err(LocationError::Scheme(other.to_owned())),
        }
    }

    /// The same place with `below` (relative, `/`-separated) appended to its path.
    #[must_use]
    pub fn join(&self, below: &str) -> Self {
        let joined = |path: &str| match (path.is_empty(), path.ends_with('/')) {
            (true, _) => below.to_owned(),
            (false, true) => format!("{path}{below}"),
            (false, false) => format!("{path}/{below}"),
        };
        let mut location = self.clone();
        match &mut location {
            Self::Local { path } | Self::Sftp { path, .. } | Self::Endpoint { path, .. } => {
                *path = joined(path);
            }
            Self::Object { prefix, .. } => *prefix = joined(prefix),
        }
        location
    }
}

fn parse_sftp(authority: &str, path: &str, text: &str) -> Result<Location, LocationError> {
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err(LocationError::Password);
    }
    let (host, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest
            .split_once(']')
            .ok_or_else(|| LocationError::NoHost(text.to_owned()))?;
        (address, rest.strip_prefix(':'))
    } else {
        match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        }
    };
    if host.is_empty() || host.starts_with('-') {
        return Err(LocationError::NoHost(text.to_owned()));
    }
    let port = port
        .map(|port| {
            port.parse()
                .map_err(|_e| LocationError::Port(port.to_owned()))
        })
        .transpose()?;
    Ok(Location::Sftp {
        user: user.filter(|user| !user.is_empty()).map(str::to_owned),
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

fn object(
    store: ObjectStoreKind,
    bucket: &str,
    path: &str,
    text: &str,
) -> Result<Location, LocationError> {
    if bucket.contains('@') {
        return Err(LocationError::Password);
    }
    if bucket.is_empty() {
        return Err(LocationError::NoHost(text.to_owned()));
    }
    let prefix = path.trim_matches('/').to_owned();
    Ok(Location::Object {
        store,
        bucket: bucket.to_owned(),
        prefix,
    })
}

fn is_endpoint_name(name: &str) -> bool {
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { path } => f.write_str(path),
            Self::Sftp {
                user,
                host,
                port,
                path,
            } => {
                f.write_str("sftp://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                if host.contains(':') {
                    write!(f, "[{host}]")?;
                } else {
                    f.write_str(host)?;
                }
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                f.write_str(path)
            }
            Self::Object {
                store,
                bucket,
                prefix,
            } => {
                let scheme = match store {
                    ObjectStoreKind::S3 => "s3",
                    ObjectStoreKind::Gcs => "gs",
                    ObjectStoreKind::Azure => "az",
                };
                write!(f, "{scheme}://{bucket}/{prefix}")
            }
            Self::Endpoint { name, path } => write!(f, "{name}:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        let local = |path: &str| Location::Local { path: path.into() };
        let endpoint = |name: &str, path: &str| Location::Endpoint {
            name: name.into(),
            path: path.into(),
        };
        assert_eq!(Location::parse("/srv/x"), Ok(local("/srv/x")));
        assert_eq!(Location::parse("./a:b"), Ok(local("./a:b")));
        assert_eq!(Location::parse("C:x"), Ok(local("C:x")));
        assert_eq!(
            Location::parse("partner:outbox/"),
            Ok(endpoint("partner", "outbox/"))
        );
        assert_eq!(
            Location::parse("sftp://acme@[::1]:2222/~/in"),
            Ok(Location::Sftp {
                user: Some("acme".into()),
                host: "::1".into(),
                port: Some(2222),
                path: "/~/in".into()
            })
        );
        assert_eq!(
            Location::parse("s3://bucket/a/b/"),
            Ok(Location::Object {
                store: ObjectStoreKind::S3,
                bucket: "bucket".into(),
                prefix: "a/b".into()
            })
        );
        for text in [
            "/srv/x",
            "sftp://acme@[::1]:2222/~/in",
            "s3://bucket/a/b",
            "partner:outbox/",
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn h25_a_password_in_a_location_is_refused_without_being_repeated() {
        let error = Location::parse("sftp://acme:hunter2@host/x").unwrap_err();
        assert_eq!(error, LocationError::Password);
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "ftp://host/x",
            "sftp:///x",
            "s3://",
            "sftp://host:99999/x",
            "sftp://-oProxyCommand=x/",
        ] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}

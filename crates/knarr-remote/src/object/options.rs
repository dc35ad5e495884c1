//! Which bucket, and how to reach it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{
    AmazonS3Builder, AwsCredential, Checksum as StoreChecksum, S3ConditionalPut,
};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpClient;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, CredentialProvider};
use zeroize::Zeroizing;

use super::Store;
use super::credentials::{ChainCredentials, GivenCredentials};
use super::error::Failure;
use super::http::{self, SharedConnector};
use super::s3::S3Api;
use crate::error::{ErrorKind, RemoteError};

/// The smallest part that S3 takes (but for the last one of an upload), in bytes.
pub const MIN_PART_SIZE: u64 = 5 << 20;
const DEFAULT_REGION: &str = "us-east-1";

/// Which part of an object store a remote is, and how to talk to it.
#[derive(Debug, Clone)]
pub struct ObjectOptions {
    /// The bucket and the credentials.
    pub place: ObjectPlace,
    /// What all keys of this remote begin with, without the `/` at the end; may be empty.
    pub prefix: String,
    /// The length of a part in bytes, at least [`MIN_PART_SIZE`]. What is not longer goes in one
    /// request. Grows by itself for files that would need more than 10,000 parts.
    pub part_size: u64,
    /// How many parts of one file are under way at once; each is held in memory.
    pub parts_at_once: usize,
    /// How many transfers of small files make sense at once.
    pub transfers: usize,
    /// How long to wait for an answer, or for the next bytes of one.
    pub patience: Duration,
}

impl ObjectOptions {
    /// The whole of `place`, with parts of 8 MiB, four at once, and 32 small files at once.
    #[must_use]
    pub const fn new(place: ObjectPlace) -> Self {
        Self {
            place,
            prefix: String::new(),
            part_size: 8 << 20,
            parts_at_once: 4,
            transfers: 32,
            patience: Duration::from_secs(30),
        }
    }
}

/// A bucket (or container) and the credentials for it.
#[derive(Debug, Clone)]
pub enum ObjectPlace {
    /// Amazon S3 or anything that speaks its protocol.
    S3(S3Place),
    /// Google Cloud Storage.
    Gcs(GcsPlace),
    /// Azure Blob Storage.
    Azure(AzurePlace),
}

/// A bucket that speaks S3.
#[derive(Debug, Clone)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// `https://host[:port]` or `http://host[:port]`; nothing for Amazon's own.
    pub endpoint: Option<String>,
    /// The region; nothing for what the profile or the environment says, else `us-east-1`.
    pub region: Option<String>,
    /// Where in the address the bucket stands.
    pub addressing: Addressing,
    /// Where the access key comes from.
    pub credentials: S3Credentials,
    /// Whether the payload of uploads is part of the signature.
    pub payload: PayloadSigning,
    /// The checksum that goes with each upload and that the server verifies.
    pub checksum: Checksum,
}

impl S3Place {
    /// `bucket` at Amazon, with credentials found as every AWS tool finds them.
    #[must_use]
    pub const fn new(bucket: String) -> Self {
        Self {
            bucket,
            endpoint: None,
            region: None,
            addressing: Addressing::Automatic,
            credentials: S3Credentials::Chain { profile: None },
            payload: PayloadSigning::Automatic,
            checksum: Checksum::Crc64Nvme,
        }
    }
}

/// Where in the address the bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// In the path at a given endpoint, and for buckets with a dot in the name; else in the host.
    #[default]
    Automatic,
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    Host,
}

/// Whether the payload of uploads is part of the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadSigning {
    /// Over plain HTTP to another machine. TLS protects it otherwise, and on the own machine there is
    /// no line; the checksum goes with it in any case.
    #[default]
    Automatic,
    /// Always: costs a SHA-256 over everything, here and there.
    Signed,
    /// Never.
    Unsigned,
}

/// The checksum that goes with each upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// CRC-64/NVME, over the whole object also for uploads in parts.
    #[default]
    Crc64Nvme,
    /// SHA-256, for servers that do not know CRC-64/NVME.
    Sha256,
    /// None, for servers that refuse both.
    None,
}

/// Where the access key for S3 comes from.
#[derive(Clone)]
pub enum S3Credentials {
    /// Given.
    Given {
        /// The access key id.
        access_key: String,
        /// The secret access key.
        secret_key: Zeroizing<String>,
        /// The token of temporary credentials.
        session_token: Option<Zeroizing<String>>,
    },
    /// Found as every AWS tool finds them: environment, profile (also with SSO, a role or a process),
    /// web identity, container, instance.
    Chain {
        /// The profile, instead of the one that the environment names.
        profile: Option<String>,
    },
}

/// Never shows a secret (H-25).
impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given { access_key, .. } => f
                .debug_struct("Given")
                .field("access_key", access_key)
                .finish_non_exhaustive(),
            Self::Chain { profile } => f.debug_struct("Chain").field("profile", profile).finish(),
        }
    }
}

/// A bucket of Google Cloud Storage.
#[derive(Clone)]
pub struct GcsPlace {
    /// The bucket.
    pub bucket: String,
    /// Another address than Google's own.
    pub endpoint: Option<String>,
    /// The key of a service account, as JSON; nothing for the application default credentials.
    pub service_account_key: Option<Zeroizing<String>>,
}

/// Never shows a secret (H-25).
impl fmt::Debug for GcsPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcsPlace")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// A container of Azure Blob Storage.
#[derive(Clone)]
pub struct AzurePlace {
    /// The storage account.
    pub account: String,
    /// The container.
    pub container: String,
    /// Another address than Azure's own.
    pub endpoint: Option<String>,
    /// The key of the account; nothing for the identity of the machine.
    pub access_key: Option<Zeroizing<String>>,
}

/// Never shows a secret (H-25).
impl fmt::Debug for AzurePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzurePlace")
            .field("account", &self.account)
            .field("container", &self.container)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// What opening a place gives.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Store>,
    pub(super) s3: Option<S3Api>,
    /// `s3://bucket`, without the prefix.
    pub(super) location: String,
    pub(super) endpoint: String,
}

/// Opens the place of `options`. Asks aws-config for a region, if none is given; asks nothing else.
pub(super) async fn open(options: &ObjectOptions) -> Result<Opened, RemoteError> {
    if options.part_size < MIN_PART_SIZE {
        return Err(invalid(format!(
            "parts have at least {MIN_PART_SIZE} bytes"
        )));
    }
    match &options.place {
        ObjectPlace::S3(place) => open_s3(place, options).await,
        ObjectPlace::Gcs(place) => open_gcs(place, options),
        ObjectPlace::Azure(place) => open_azure(place, options),
    }
}

fn invalid(message: impl Into<String>) -> RemoteError {
    RemoteError::new(ErrorKind::Unsupported, "open the bucket", message)
}

fn refused(error: &object_store::Error) -> RemoteError {
    Failure::store(error).into_remote("open the bucket", None)
}

async fn open_s3(place: &S3Place, options: &ObjectOptions) -> Result<Opened, RemoteError> {
    let endpoint = place.endpoint.as_deref().map(Endpoint::parse).transpose()?;
    let allow_http = endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.scheme == "http");
    let (client, client_options) =
        http::client(options.patience, allow_http).map_err(|error| refused(&error))?;
    let (credentials, found_region) = s3_credentials(place).await;
    let region = place
        .region
        .clone()
        .or(found_region)
        .unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let host = endpoint.as_ref().map_or_else(
        || format!("s3.{region}.amazonaws.com"),
        |endpoint| endpoint.host.clone(),
    );
    let scheme = endpoint
        .as_ref()
        .map_or("https", |endpoint| endpoint.scheme);
    let in_path = match place.addressing {
        Addressing::Automatic => endpoint.is_some() || place.bucket.contains('.'),
        Addressing::Path => true,
        Addressing::Host => false,
    };
    if !is_bucket_name(&place.bucket) {
        return Err(invalid("the name of the bucket is not valid"));
    }
    let bucket_url = if in_path {
        format!("{scheme}://{host}/{}", place.bucket)
    } else {
        format!("{scheme}://{}.{host}", place.bucket)
    };
    let unsigned = match place.payload {
        PayloadSigning::Automatic => {
            !allow_http || endpoint.as_ref().is_some_and(Endpoint::is_this_machine)
        }
        PayloadSigning::Signed => false,
        PayloadSigning::Unsigned => true,
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&place.bucket)
        .with_region(&region)
        // With this the endpoint is taken as the address of the bucket, whatever its style.
        .with_virtual_hosted_style_request(true)
        .with_endpoint(&bucket_url)
        .with_allow_http(allow_http)
        .with_client_options(client_options)
        .with_credentials(Arc::clone(&credentials))
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_unsigned_payload(unsigned)
        .with_retry(http::retries())
        .with_http_connector(SharedConnector(client.clone()));
    builder = match place.checksum {
        Checksum::Crc64Nvme => builder.with_checksum_algorithm(StoreChecksum::CRC64NVME),
        Checksum::Sha256 => builder.with_checksum_algorithm(StoreChecksum::SHA256),
        Checksum::None => builder,
    };
    let store = builder.build().map_err(|error| refused(&error))?;
    let patience = options.patience;
    Ok(Opened {
        store: Arc::new(store),
        s3: Some(S3Api {
            client,
            bucket_url,
            region,
            credentials,
            patience,
        }),
        location: format!("s3://{}", place.bucket),
        endpoint: format!("s3://{host}"),
    })
}

type S3CredentialProvider = Arc<dyn CredentialProvider<Credential = AwsCredential>>;

async fn s3_credentials(place: &S3Place) -> (S3CredentialProvider, Option<String>) {
    match &place.credentials {
        S3Credentials::Given {
            access_key,
            secret_key,
            session_token,
        } => {
            let credential = AwsCredential {
                key_id: access_key.clone(),
                secret_key: secret_key.as_str().to_owned(),
                token: session_token
                    .as_ref()
                    .map(|token| token.as_str().to_owned()),
            };
            (Arc::new(GivenCredentials(Arc::new(credential))), None)
        }
        S3Credentials::Chain { profile } => {
            let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest());
            if let Some(profile) = profile {
                loader = loader.profile_name(profile);
            }
            // Without this it would ask the instance for its region, which takes seconds elsewhere.
            if let Some(region) = &place.region {
                loader = loader.region(aws_config::Region::new(region.clone()));
            }
            let config = loader.load().await;
            let region = config.region().map(|region| region.as_ref().to_owned());
            match config.credentials_provider() {
                Some(provider) => (Arc::new(ChainCredentials::new(provider)), region),
                None => (Arc::new(NoCredentials), region),
            }
        }
    }
}

#[derive(Debug)]
struct NoCredentials;

#[async_trait::async_trait]
impl CredentialProvider for NoCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Err(object_store::Error::Unauthenticated {
            path: String::new(),
            source: "no credentials were found".into(),
        })
    }
}

fn is_bucket_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

struct Endpoint {
    scheme: &'static str,
    /// With the port, and the path if there is one, without a `/` at the end.
    host: String,
}

impl Endpoint {
    fn parse(text: &str) -> Result<Self, RemoteError> {
        let (scheme, rest) = if let Some(rest) = text.strip_prefix("https://") {
            ("https", rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            ("http", rest)
        } else {
            return Err(invalid(
                "the endpoint has to begin with https:// or http://",
            ));
        };
        let host = rest.trim_end_matches('/');
        if host.is_empty() || host.contains(['?', '#', ' ']) {
            return Err(invalid("the endpoint has no valid host"));
        }
        if host.contains('@') {
            return Err(invalid("the endpoint must not hold a user or password"));
        }
        Ok(Self {
            scheme,
            host: host.to_owned(),
        })
    }

    fn is_this_machine(&self) -> bool {
        let host = self.host.split('/').next().unwrap_or_default();
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        name == "localhost"
            || name
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

fn plain_client(
    endpoint: Option<&str>,
    options: &ObjectOptions,
) -> Result<(HttpClient, ClientOptions, bool), RemoteError> {
    let endpoint = endpoint.map(Endpoint::parse).transpose()?;
    let allow_http = endpoint.is_some_and(|endpoint| endpoint.scheme == "http");
    let (client, client_options) =
        http::client(options.patience, allow_http).map_err(|error| refused(&error))?;
    Ok((client, client_options, allow_http))
}

fn open_gcs(place: &GcsPlace, options: &ObjectOptions) -> Result<Opened, RemoteError> {
    let (client, client_options, _) = plain_client(place.endpoint.as_deref(), options)?;
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&place.bucket)
        .with_client_options(client_options)
        .with_retry(http::retries())
        .with_http_connector(SharedConnector(client));
    if let Some(endpoint) = &place.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if let Some(key) = &place.service_account_key {
        builder = builder.with_service_account_key(key.as_str());
    }
    let store = builder.build().map_err(|error| refused(&error))?;
    Ok(Opened {
        store: Arc::new(store),
        s3: None,
        location: format!("gs://{}", place.bucket),
        endpoint: place
            .endpoint
            .clone()
            .unwrap_or_else(|| "gs://storage.googleapis.com".to_owned()),
    })
}

fn open_azure(place: &AzurePlace, options: &ObjectOptions) -> Result<Opened, RemoteError> {
    let (client, client_options, allow_http) = plain_client(place.endpoint.as_deref(), options)?;
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(&place.account)
        .with_container_name(&place.container)
        .with_client_options(client_options)
        .with_allow_http(allow_http)
        .with_retry(http::retries())
        .with_http_connector(SharedConnector(client));
    if let Some(endpoint) = &place.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(key) = &place.access_key {
        builder = builder.with_access_key(key.as_str());
    }
    let store = builder.build().map_err(|error| refused(&error))?;
    Ok(Opened {
        store: Arc::new(store),
        s3: None,
        location: format!("az://{}/{}", place.account, place.container),
        endpoint: format!("az://{}", place.account),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_this_machine() {
        for (endpoint, is) in [
            ("http://127.0.0.1:9000", true),
            ("http://localhost", true),
            ("http://[::1]:9000/", true),
            ("http://127.0.0.1.example:9000", false),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(
                Endpoint::parse(endpoint).unwrap().is_this_machine(),
                is,
                "{endpoint}"
            );
        }
    }

    #[test]
    fn h25_an_endpoint_with_a_password_is_refused_without_showing_it() {
        let Err(error) = Endpoint::parse("https://user:sentinel@host") else {
            panic!("it was taken");
        };
        assert!(!error.to_string().contains("sentinel"));
    }
}

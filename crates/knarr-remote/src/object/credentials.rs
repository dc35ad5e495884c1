//! Where the access key comes from: given, or found by aws-config as every AWS tool finds it.
//!
//! Constraints: nothing in here is ever shown (H-25). What aws-config finds is kept until shortly
//! before it expires, as every request asks for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use knarr_core::Timestamp;
use knarr_core::time::{Clock as _, SystemClock};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

/// How long before the end a credential is renewed.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// How long a credential without an end is kept, so that an edited profile is noticed.
const KEEP: Duration = Duration::from_mins(15);

/// The chain of aws-config: environment, profile, SSO, web identity, container, instance.
pub(super) struct ChainCredentials {
    provider: SharedCredentialsProvider,
    clock: SystemClock,
    current: Mutex<Option<(Arc<AwsCredential>, Timestamp)>>,
}

impl ChainCredentials {
    pub(super) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            provider,
            clock: SystemClock,
            current: Mutex::new(None),
        }
    }
}

impl fmt::Debug for ChainCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainCredentials").finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for ChainCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut current = self.current.lock().await;
        let now = self.clock.now();
        if let Some((credential, until)) = &*current
            && now < *until
        {
            return Ok(Arc::clone(credential));
        }
        let found = self.provider.provide_credentials().await.map_err(|error| {
            object_store::Error::Unauthenticated {
                path: String::new(),
                source: Box::new(error),
            }
        })?;
        let until = match found
            .expiry()
            .and_then(|expiry| expiry.duration_since(std::time::UNIX_EPOCH).ok())
        {
            Some(expiry) => Timestamp::from_seconds(0)
                .after(expiry)
                .before(RENEW_BEFORE),
            None => now.after(KEEP),
        };
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *current = Some((Arc::clone(&credential), until));
        drop(current);
        Ok(credential)
    }
}

/// Credentials that were given.
pub(super) struct GivenCredentials(pub(super) Arc<AwsCredential>);

impl fmt::Debug for GivenCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenCredentials").finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for GivenCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(Arc::clone(&self.0))
    }
}

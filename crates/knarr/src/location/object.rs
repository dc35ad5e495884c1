//! Opens buckets.

use std::sync::Arc;

use knarr_core::location::ObjectStoreKind;
use knarr_remote::Remote;
use knarr_remote::object::{
    Addressing, AzurePlace, GcsPlace, ObjectOptions, ObjectPlace, ObjectRemote, S3Credentials,
    S3Place,
};

use crate::command_error::CommandError;
use crate::config::{Limits, ObjectSettings};
use crate::secrets::Secrets;

/// Opens a prefix in a bucket.
///
/// # Errors
/// If a secret is not known, or the settings contradict each other.
pub(super) async fn open(
    settings: &ObjectSettings,
    limits: Limits,
    secrets: &Secrets<'_>,
) -> Result<Arc<dyn Remote>, CommandError> {
    let place = match settings.store {
        ObjectStoreKind::S3 => s3(settings, secrets).await?,
        ObjectStoreKind::Gcs => ObjectPlace::Gcs(GcsPlace {
            bucket: settings.bucket.clone(),
            endpoint: settings.endpoint.clone(),
            service_account_key: secrets.get_if(settings.service_account.as_ref()).await?,
        }),
        ObjectStoreKind::Azure => ObjectPlace::Azure(AzurePlace {
            account: settings.account.clone().ok_or_else(|| {
                CommandError::usage("an az:// location does not say in which account it is")
                    .hint("name it as an endpoint with `type: azure` and `account` in knarr.yaml")
            })?,
            container: settings.bucket.clone(),
            endpoint: settings.endpoint.clone(),
            access_key: secrets.get_if(settings.access_key.as_ref()).await?,
        }),
    };
    let mut options = ObjectOptions::new(place);
    options.prefix.clone_from(&settings.prefix);
    if let Some(bytes) = settings.part_bytes {
        options.part_size = bytes;
    }
    if let Some(transfers) = limits.transfers {
        options.transfers = transfers;
    }
    if let Some(connections) = limits.connections {
        options.parts_at_once = options.parts_at_once.min(connections);
    }
    Ok(Arc::new(ObjectRemote::open(options).await?))
}

async fn s3(settings: &ObjectSettings, secrets: &Secrets<'_>) -> Result<ObjectPlace, CommandError> {
    let mut place = S3Place::new(settings.bucket.clone());
    place.endpoint.clone_from(&settings.endpoint);
    place.region.clone_from(&settings.region);
    place.addressing = match settings.path_style {
        None => Addressing::Automatic,
        Some(true) => Addressing::Path,
        Some(false) => Addressing::Host,
    };
    let access_key = secrets.get_if(settings.access_key.as_ref()).await?;
    let secret_key = secrets.get_if(settings.secret_key.as_ref()).await?;
    place.credentials = match (access_key, secret_key) {
        (Some(access_key), Some(secret_key)) => S3Credentials::Given {
            access_key: access_key.to_string(),
            secret_key,
            session_token: None,
        },
        _ => S3Credentials::Chain {
            profile: settings.profile.clone(),
        },
    };
    Ok(ObjectPlace::S3(place))
}

//! Who is let in, and how that is proved.
//!
//! Constraints:
//!
//! * A user that is not there costs as much work to refuse as one whose password is wrong.
//! * Each decision is made on one snapshot of the users. Who is removed, switched off or changed loses the
//!   connections that began before.
//! * An error anywhere is a refusal.

pub(crate) mod certificate;
mod keys;
mod network;
pub(crate) mod password;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use russh::keys::PublicKey;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

pub use keys::{AuthorizedKey, KeyError, public_key};
pub use network::{Network, NetworkError};
pub use password::{PasswordError, PasswordHash};

use crate::event::LogIn;
use crate::places::{PlaceError, UserFiles, UserPlaces};

/// What a user has to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Requirement {
    /// A key, a certificate or a password.
    #[default]
    Any,
    /// A key or certificate, and then the password.
    KeyAndPassword,
}

/// Whether a user may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Standing {
    /// Yes.
    #[default]
    Enabled,
    /// No.
    Disabled,
}

/// Somebody who may log in.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// The name.
    pub name: String,
    /// Whether the user may log in.
    pub standing: Standing,
    /// When that ends.
    pub expires: Option<Timestamp>,
    /// From where the user may come; empty for everywhere.
    pub networks: Vec<Network>,
    /// Keys that are the user's.
    pub keys: Vec<AuthorizedKey>,
    /// Whose certificates are taken that name the user.
    pub authorities: Vec<PublicKey>,
    /// The password.
    pub password: Option<PasswordHash>,
    /// What has to be proved.
    pub requirement: Requirement,
    /// The most connections at once; nothing for as many as the server takes.
    pub connections: Option<usize>,
    /// What the user sees.
    pub places: UserPlaces,
}

impl User {
    /// A user with nothing to log in by, yet.
    #[must_use]
    pub fn new(name: impl Into<String>, places: UserPlaces) -> Self {
        Self {
            name: name.into(),
            standing: Standing::Enabled,
            expires: None,
            networks: Vec::new(),
            keys: Vec::new(),
            authorities: Vec::new(),
            password: None,
            requirement: Requirement::Any,
            connections: None,
            places,
        }
    }

    /// Why the user may not log in from `address` at `now`, whatever is proved.
    pub(crate) fn obstacle(&self, address: IpAddr, now: Timestamp) -> Option<LogIn> {
        if self.standing == Standing::Disabled {
            Some(LogIn::Disabled)
        } else if self.expires.is_some_and(|expires| now >= expires) {
            Some(LogIn::Expired)
        } else if !self.networks.is_empty()
            && !self
                .networks
                .iter()
                .any(|network| network.contains(address))
        {
            Some(LogIn::Network)
        } else {
            None
        }
    }
}

/// A user as the server knows them.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) user: User,
    /// Cancelled when the user is changed or removed.
    pub(crate) ended: CancellationToken,
    connections: AtomicUsize,
    files: OnceCell<Arc<UserFiles>>,
}

impl Known {
    fn new(user: User) -> Self {
        Self {
            user,
            ended: CancellationToken::new(),
            connections: AtomicUsize::new(0),
            files: OnceCell::new(),
        }
    }

    /// What the user sees, opened and measured when it is first asked for. Shared by all connections, as the quota
    /// is.
    pub(crate) async fn files(&self) -> Result<Arc<UserFiles>, PlaceError> {
        let opened = self.files.get_or_try_init(|| async {
            let files = self.user.places.open().await?;
            Ok(Arc::new(files))
        });
        opened.await.map(Arc::clone)
    }

    /// Takes a connection of the user, if there is one left.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Presence> {
        let most = self.user.connections.unwrap_or(usize::MAX);
        let taken = |now: usize| (now < most).then_some(now + 1);
        let entered = self
            .connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, taken);
        entered.ok().map(|_| Presence {
            known: Arc::clone(self),
        })
    }
}

/// A connection of a user, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    pub(crate) known: Arc<Known>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.known.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// All users. They can be replaced while the server runs.
#[derive(Debug, Default)]
pub struct Users {
    by_name: RwLock<BTreeMap<String, Arc<Known>>>,
}

impl Users {
    /// These users. Of two with one name the later counts.
    #[must_use]
    pub fn new(users: impl IntoIterator<Item = User>) -> Self {
        let all = Self::default();
        all.replace(users);
        all
    }

    /// Puts others in their place. Users that stay as they are keep their connections; all others lose them.
    pub fn replace(&self, users: impl IntoIterator<Item = User>) {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *by_name);
        for user in users {
            let known = match before.remove(&user.name) {
                Some(known) if known.user == user => known,
                other => {
                    if let Some(changed) = other {
                        changed.ended.cancel();
                    }
                    Arc::new(Known::new(user))
                }
            };
            by_name.insert(known.user.name.clone(), known);
        }
        for removed in before.into_values() {
            removed.ended.cancel();
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Known>> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).cloned()
    }

    /// Whether certificates are taken at all: then any key may be that of one, before it was shown.
    pub(crate) fn take_certificates(&self) -> bool {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name
            .values()
            .any(|known| !known.user.authorities.is_empty())
    }
}

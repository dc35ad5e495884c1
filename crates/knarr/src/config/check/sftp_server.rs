//! Checks the section `sftp_server`.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use knarr_core::location::Location;
use knarr_core::units::Span;
use knarr_serve::files::{Permission, Permissions, Rule};
use knarr_serve::places::{Missing, Quota, UserPlaces};
use knarr_serve::ssh::ServerOptions;
use knarr_serve::users::{
    AuthorizedKey, Network, PasswordHash, Requirement, Standing, User, public_key,
};

use crate::config::check::{Checker, Place};
use crate::config::node::{Key, Node, Value};
use crate::config::problem::Problem;
use crate::config::read::{At, Many, read};
use crate::config::resolved::{ServedMount, ServedUser, SftpServer, UserPassword};
use crate::config::shape::{
    GivenPermissions, PermissionName, PermissionSet, RequireShape, ServerLimitsShape,
    ServerUserShape, SftpServerShape,
};

/// Where the server listens unless it is told: nobody but this machine reaches it.
const USUAL_ADDRESS: &str = "127.0.0.1:2022";
/// `knarr run` waits 10 seconds for everything.
const MOST_STOPPING: Duration = Duration::from_secs(8);
const LEAST: Duration = Duration::from_secs(1);

impl Checker<'_> {
    /// The server, if there is such a section and all in it is right.
    pub(super) fn sftp_server(&mut self, root: &Node) -> Option<SftpServer> {
        let (key, node) = root.get("sftp_server")?;
        let place = Place("sftp_server");
        let shape: Option<SftpServerShape> = self.keep(read(node, place.0, &key.span))?;
        let shape = shape.unwrap_or_default();
        let listen = self.listen(&shape.listen, place);
        let options = self.server_limits(&shape.limits, Place("sftp_server.limits"));
        let mut users = Vec::new();
        let keys = user_keys(node);
        for (name, user) in &shape.users {
            let key = keys.iter().find(|key| key.name == *name);
            let Some(key) = key else { continue };
            self.name_of("user", "sftp_server.users", key);
            let place = format!("sftp_server.users.{name}");
            users.extend(self.served_user(key, user, shape.home.as_ref(), Place(&place)));
        }
        Some(SftpServer {
            listen,
            host_keys: shape.host_keys.map(|path| self.path(&path.value)),
            options,
            users,
        })
    }

    fn listen(&mut self, listen: &Many<At<String>>, place: Place<'_>) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for address in &listen.0 {
            match address.value.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => {
                    let message = format!("`{}` is no address with a port", address.value);
                    let help = "write 127.0.0.1:2022, 0.0.0.0:2022 for every network, or [::]:2022";
                    self.helped(place.of("listen"), &address.span, message, help);
                }
            }
        }
        if listen.0.is_empty() {
            addresses.extend(USUAL_ADDRESS.parse::<SocketAddr>());
        }
        addresses
    }

    fn networks(&mut self, networks: &Many<At<String>>, place: &str) -> Vec<Network> {
        let mut parsed = Vec::new();
        for network in &networks.0 {
            match Network::parse(&network.value) {
                Ok(network) => parsed.push(network),
                Err(error) => self.problem(place, &network.span, error.to_string()),
            }
        }
        parsed
    }

    fn server_limits(&mut self, shape: &ServerLimitsShape, place: Place<'_>) -> ServerOptions {
        let mut options = ServerOptions::default();
        for (name, number) in [
            ("connections", &shape.connections),
            ("log_in_tries", &shape.log_in_tries),
        ] {
            if let Some(number) = number.as_ref().filter(|number| number.value == 0) {
                self.problem(place.of(name), &number.span, "this has to be at least 1");
            }
        }
        let number = |given: &Option<At<u32>>, usual| {
            given.as_ref().map_or(usual, |number| {
                usize::try_from(number.value).unwrap_or(usual)
            })
        };
        options.connections = number(&shape.connections, options.connections);
        options.log_in_tries = number(&shape.log_in_tries, options.log_in_tries);
        let span =
            |given: &Option<At<Span>>, usual| given.as_ref().map_or(usual, |span| span.value.0);
        options.log_in_grace = span(&shape.log_in, options.log_in_grace);
        if let Some(log_in) = shape.log_in.as_ref().filter(|span| span.value.0 < LEAST) {
            self.problem(
                place.of("log_in"),
                &log_in.span,
                "this has to be at least 1s",
            );
        }
        if let Some(idle) = &shape.idle {
            options.idle = (!idle.value.0.is_zero()).then_some(idle.value.0);
            if options.idle.is_some_and(|idle| idle < LEAST) {
                self.problem(
                    place.of("idle"),
                    &idle.span,
                    "this has to be at least 1s, or 0s for ever",
                );
            }
        }
        options.stopping = span(&shape.stopping, options.stopping);
        if let Some(stopping) = shape
            .stopping
            .as_ref()
            .filter(|span| span.value.0 > MOST_STOPPING)
        {
            self.problem(
                place.of("stopping"),
                &stopping.span,
                "this may be 8s at most",
            );
        }
        options.penalties.exempt = self.networks(&shape.unpunished, &place.of("unpunished"));
        options
    }

    pub(in crate::config) fn served_user(
        &mut self,
        key: &Key,
        shape: &ServerUserShape,
        home: Option<&At<String>>,
        place: Place<'_>,
    ) -> Option<ServedUser> {
        let mut user = User::new(&key.name, UserPlaces::default());
        if shape.enabled == Some(false) {
            user.standing = Standing::Disabled;
        }
        user.expires = shape
            .expires
            .as_ref()
            .and_then(|expires| self.expiry(expires, place));
        user.networks = self.networks(&shape.networks, &place.of("networks"));
        for line in &shape.key.0 {
            match AuthorizedKey::parse(&line.value) {
                Ok(key) => user.keys.push(key),
                Err(error) => self.problem(place.of("key"), &line.span, error.to_string()),
            }
        }
        for line in &shape.authority.0 {
            match public_key(&line.value) {
                Ok(key) => user.authorities.push(key),
                Err(error) => self.problem(place.of("authority"), &line.span, error.to_string()),
            }
        }
        if let Some(most) = shape.connections.as_ref().filter(|most| most.value == 0) {
            self.problem(
                place.of("connections"),
                &most.span,
                "this has to be at least 1",
            );
        }
        user.connections = shape
            .connections
            .as_ref()
            .and_then(|most| usize::try_from(most.value).ok());
        let password = self.password(shape, place);
        user.requirement = self.requirement(key, shape, password.is_some(), place);
        let mounts = self.mounts(key, shape, home, place)?;
        Some(ServedUser {
            user,
            password,
            key_files: shape
                .key_file
                .0
                .iter()
                .map(|file| self.path(&file.value))
                .collect(),
            mounts,
            quota: Quota {
                bytes: shape.quota.size.as_ref().map(|size| size.value.0),
                files: shape.quota.files.as_ref().map(|files| files.value),
            },
        })
    }

    fn expiry(&mut self, expires: &At<String>, place: Place<'_>) -> Option<jiff::Timestamp> {
        let text = &expires.value;
        let date = text.parse::<jiff::civil::Date>();
        let parsed = match date {
            Ok(date) if !text.contains('T') => date
                .to_zoned(jiff::tz::TimeZone::UTC)
                .map(|zoned| zoned.timestamp())
                .ok(),
            _ => text.parse().ok(),
        };
        if parsed.is_none() {
            let message = format!("`{text}` is no date and no time");
            let help = "write 2027-01-01, or 2027-01-01T12:00:00Z";
            self.helped(place.of("expires"), &expires.span, message, help);
        }
        parsed
    }

    fn password(&mut self, shape: &ServerUserShape, place: Place<'_>) -> Option<UserPassword> {
        if let Some(hash) = &shape.password_hash {
            if shape.password.is_some() {
                let message = "there is a `password` already";
                self.problem(place.of("password_hash"), &hash.span, message);
            }
            return match PasswordHash::parse(&hash.value) {
                Ok(hash) => Some(UserPassword::Hash(hash)),
                Err(error) => {
                    let problem = Problem::new(error.to_string())
                        .in_place(place.of("password_hash"))
                        .at(Some(hash.span.clone()));
                    // Perhaps somebody wrote the password itself.
                    self.problems.push(problem.hiding_span());
                    None
                }
            };
        }
        shape.password.clone().map(UserPassword::Secret)
    }

    fn requirement(
        &mut self,
        key: &Key,
        shape: &ServerUserShape,
        has_password: bool,
        place: Place<'_>,
    ) -> Requirement {
        let has_key = !(shape.key.0.is_empty()
            && shape.key_file.0.is_empty()
            && shape.authority.0.is_empty());
        if !has_key && !has_password && shape.password_hash.is_none() {
            let message = "this user has nothing to log in by".to_owned();
            let help = "give a `key`, a `key_file`, an `authority` or a `password`";
            self.helped(place.0.to_owned(), &key.span, message, help);
        }
        let wants = |what| shape.require.0.iter().find(|wanted| wanted.value == what);
        for (wanted, is_there, name) in [
            (wants(RequireShape::Key), has_key, "key"),
            (wants(RequireShape::Password), has_password, "password"),
        ] {
            if let Some(wanted) = wanted.filter(|_| !is_there) {
                let message = format!("a {name} is required, and this user has none");
                self.problem(place.of("require"), &wanted.span, message);
            }
        }
        match (wants(RequireShape::Key), wants(RequireShape::Password)) {
            (Some(_), Some(_)) => Requirement::KeyAndPassword,
            (Some(only), None) | (None, Some(only)) if has_key && has_password => {
                let message = "with one of the two, leave the other out of the user".to_owned();
                let help = "write `require: [key, password]` if both are wanted";
                self.helped(place.of("require"), &only.span, message, help);
                Requirement::Any
            }
            _ => Requirement::Any,
        }
    }

    fn mounts(
        &mut self,
        key: &Key,
        shape: &ServerUserShape,
        home: Option<&At<String>>,
        place: Place<'_>,
    ) -> Option<Vec<ServedMount>> {
        let user = key.name.as_str();
        let usual = shape
            .permissions
            .as_ref()
            .map_or(Permissions::ALL, |given| permissions(&given.value));
        let rules = self.rules(shape, place);
        let (root, missing) = match (&shape.root, home) {
            (Some(root), _) => (Some(root), Missing::Fail),
            (None, home) => (home, Missing::Make),
        };
        if shape.mounts.is_empty() {
            let Some(root) = root else {
                let message = "this user sees nothing".to_owned();
                let help = "give a `root`, `mounts`, or a `home` for all users";
                self.helped(place.0.to_owned(), &key.span, message, help);
                return None;
            };
            let location = self.location_of(user, root, place.of("root"))?;
            return Some(vec![ServedMount {
                name: String::new(),
                location,
                missing,
                permissions: usual,
                rules,
            }]);
        }
        if let Some(root) = &shape.root {
            self.problem(
                place.of("root"),
                &root.span,
                "a user has a `root` or `mounts`, not both",
            );
        }
        let mut mounts = Vec::new();
        for (written, mount) in &shape.mounts {
            let name = written.trim_matches('/');
            let here = place.of(&format!("mounts.{written}"));
            if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
                let message =
                    format!("`{written}` cannot be the name of a mount point: /NAME is wanted");
                self.problem(here, &mount.root.span, message);
                continue;
            }
            let location = self.location_of(user, &mount.root, here)?;
            let given = mount.permissions.as_ref();
            mounts.push(ServedMount {
                name: name.to_owned(),
                location,
                missing: Missing::Fail,
                permissions: given.map_or(usual, |given| permissions(&given.value)),
                rules: below(&rules, name),
            });
        }
        self.rules_lie_in(&mounts, &rules, shape, place);
        Some(mounts)
    }

    /// A rule for what no mount point holds is a mistake.
    fn rules_lie_in(
        &mut self,
        mounts: &[ServedMount],
        rules: &[Rule],
        shape: &ServerUserShape,
        place: Place<'_>,
    ) {
        for rule in rules {
            let first = rule
                .prefix
                .split(|byte| *byte == b'/')
                .next()
                .unwrap_or_default();
            if !mounts.iter().any(|mount| mount.name.as_bytes() == first) {
                let path = String::from_utf8_lossy(&rule.prefix).into_owned();
                let span = rule_span(shape, &path);
                let message = format!("`/{path}` lies in none of the mount points");
                self.problem(place.of("paths"), &span, message);
            }
        }
    }

    fn rules(&mut self, shape: &ServerUserShape, place: Place<'_>) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (path, given) in &shape.paths {
            let has_dots = path.split('/').any(|name| matches!(name, "." | ".."));
            let trimmed = path.trim_matches('/');
            if trimmed.is_empty() || has_dots || trimmed.contains("//") {
                let message = format!("`{path}` is no path of a directory from the user's `/`");
                self.problem(place.of("paths"), &given.span, message);
                continue;
            }
            rules.push(Rule {
                prefix: trimmed.as_bytes().to_vec(),
                permissions: permissions(&given.value),
            });
        }
        rules
    }

    fn location_of(&mut self, user: &str, written: &At<String>, place: String) -> Option<Location> {
        let text = written.value.replace("{user}", user);
        if text.contains(['{', '}']) {
            let message = "only {user} is possible as a placeholder here";
            self.problem(place, &written.span, message);
            return None;
        }
        self.location(&text, &written.span, place)
    }
}

fn rule_span(shape: &ServerUserShape, path: &str) -> Range<usize> {
    let mut all = shape.paths.iter();
    let found = all.find(|(written, _)| written.trim_matches('/') == path);
    found.map_or(0..0, |(_, given)| given.span.clone())
}

/// The rules for what lies below a mount point, from there.
fn below(rules: &[Rule], mount: &str) -> Vec<Rule> {
    let inside = |rule: &Rule| {
        let rest = rule.prefix.strip_prefix(mount.as_bytes())?;
        let prefix = match rest.split_first() {
            None => Vec::new(),
            Some((b'/', rest)) => rest.to_vec(),
            Some(_) => return None,
        };
        Some(Rule {
            prefix,
            permissions: rule.permissions,
        })
    };
    rules.iter().filter_map(inside).collect()
}

fn permissions(given: &GivenPermissions) -> Permissions {
    match given {
        GivenPermissions::Set(PermissionSet::All) => Permissions::ALL,
        GivenPermissions::Set(PermissionSet::ReadOnly) => Permissions::READ_ONLY,
        GivenPermissions::Set(PermissionSet::DropBox) => Permissions::DROP_BOX,
        GivenPermissions::Set(PermissionSet::None) => Permissions::NONE,
        GivenPermissions::List(names) => names.iter().fold(Permissions::NONE, |set, name| {
            set.with(match name {
                PermissionName::List => Permission::List,
                PermissionName::Download => Permission::Download,
                PermissionName::Upload => Permission::Upload,
                PermissionName::Overwrite => Permission::Overwrite,
                PermissionName::Delete => Permission::Delete,
                PermissionName::Rename => Permission::Rename,
                PermissionName::Mkdir => Permission::MakeDirectory,
                PermissionName::Link => Permission::Link,
                PermissionName::SetAttributes => Permission::SetAttributes,
            })
        }),
    }
}

/// The keys of the users, which know where they stand.
fn user_keys(section: &Node) -> Vec<Key> {
    match section.get("users") {
        Some((
            _,
            Node {
                value: Value::Map(entries),
                ..
            },
        )) => entries.iter().map(|(key, _)| key.clone()).collect(),
        _ => Vec::new(),
    }
}

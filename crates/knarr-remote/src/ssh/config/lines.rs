//! The lines of `ssh_config`.

use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

/// One line that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Host(Vec<String>),
    Match(Vec<Criterion>),
    /// Around what an `Include` brought in.
    BlockStart,
    BlockEnd,
    HostName(String),
    Port(u16),
    User(String),
    IdentityFile(String),
    IdentitiesOnly(bool),
    ProxyJump(Vec<String>),
    UserKnownHosts(Vec<String>),
    GlobalKnownHosts(Vec<String>),
}

/// One criterion of a `Match`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Criterion {
    pub(super) negated: bool,
    pub(super) what: What,
    pub(super) patterns: Vec<String>,
}

/// What a criterion is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    All,
    Host,
    OriginalHost,
    User,
    LocalUser,
}

impl Line {
    /// The start of a block that always applies.
    pub(super) fn everywhere() -> Self {
        Self::Host(vec!["*".to_owned()])
    }

    /// The line of a keyword (in lower case) and its arguments, if it matters.
    pub(super) fn from_parts(
        keyword: &str,
        arguments: Vec<String>,
    ) -> Result<Option<Self>, String> {
        let one = |arguments: &[String]| match arguments {
            [argument] => Ok(argument.clone()),
            _ => Err(format!(
                "`{keyword}` takes one argument, not {}",
                arguments.len()
            )),
        };
        let line = match keyword {
            "host" => Self::Host(arguments),
            "match" => match criteria(&arguments)? {
                Some(criteria) => Self::Match(criteria),
                // Never applies.
                None => Self::Host(Vec::new()),
            },
            "hostname" => Self::HostName(one(&arguments)?),
            "port" => {
                let text = one(&arguments)?;
                Self::Port(
                    text.parse()
                        .map_err(|_number| format!("`{text}` is not a port"))?,
                )
            }
            "user" => Self::User(one(&arguments)?),
            "identityfile" => Self::IdentityFile(one(&arguments)?),
            "identitiesonly" => match one(&arguments)?.to_ascii_lowercase().as_str() {
                "yes" | "true" => Self::IdentitiesOnly(true),
                "no" | "false" => Self::IdentitiesOnly(false),
                other => return Err(format!("`{other}` is neither yes nor no")),
            },
            "proxyjump" => {
                let text = one(&arguments)?;
                if text.eq_ignore_ascii_case("none") {
                    Self::ProxyJump(Vec::new())
                } else {
                    let jumps = text.split(',').map(|jump| jump.trim().to_owned());
                    Self::ProxyJump(jumps.filter(|jump| !jump.is_empty()).collect())
                }
            }
            "userknownhostsfile" => Self::UserKnownHosts(arguments),
            "globalknownhostsfile" => Self::GlobalKnownHosts(arguments),
            _ => return Ok(None),
        };
        Ok(Some(line))
    }
}

/// The criteria of a `Match`; nothing if one of them is not supported.
fn criteria(arguments: &[String]) -> Result<Option<Vec<Criterion>>, String> {
    let mut criteria = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(word) = arguments.next() {
        let word = word.to_ascii_lowercase();
        let (negated, name) = match word.strip_prefix('!') {
            Some(name) => (true, name),
            None => (false, word.as_str()),
        };
        let what = match name {
            "all" => What::All,
            "host" => What::Host,
            "originalhost" => What::OriginalHost,
            "user" => What::User,
            "localuser" => What::LocalUser,
            other => {
                tracing::warn!(
                    "a `Match {other}` of the SSH configuration is not supported and never applies"
                );
                return Ok(None);
            }
        };
        let patterns = if what == What::All {
            Vec::new()
        } else {
            let list = arguments
                .next()
                .ok_or_else(|| format!("`Match {name}` needs a pattern"))?;
            list.split(',').map(str::to_owned).collect()
        };
        criteria.push(Criterion {
            negated,
            what,
            patterns,
        });
    }
    if criteria.is_empty() {
        return Err("`Match` needs a criterion".to_owned());
    }
    Ok(Some(criteria))
}

/// The keyword in lower case and the arguments of a line; nothing if it is empty or a comment.
pub(super) fn split_line(text: &str) -> Result<Option<(String, Vec<String>)>, String> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let end = text
        .find(|c: char| c.is_ascii_whitespace() || c == '=')
        .unwrap_or(text.len());
    let (keyword, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    Ok(Some((keyword.to_ascii_lowercase(), words(rest)?)))
}

/// Words, in quotes where they contain blanks, up to a comment.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.peek().is_some_and(char::is_ascii_whitespace) {
            characters.next();
        }
        match characters.peek().copied() {
            None | Some('#') => return Ok(words),
            Some(_) => {}
        }
        let mut word = String::new();
        let mut quoted = false;
        while let Some(character) = characters.peek().copied() {
            match character {
                '"' => quoted = !quoted,
                blank if blank.is_ascii_whitespace() && !quoted => break,
                other => word.push(other),
            }
            characters.next();
        }
        if quoted {
            return Err("a quotation mark is not closed".to_owned());
        }
        words.push(word);
    }
}

/// Reads a file that should not be longer than `limit`; what is behind it is an error.
pub(super) fn read_limited(path: &Path, limit: u64) -> std::io::Result<String> {
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > limit {
        let message = format!("it is longer than {limit} bytes");
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            message,
        ));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The files that an absolute path with `*` and `?` in it means, sorted; at most `limit`.
pub(super) fn glob(pattern: &Path, limit: usize) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let Component::Normal(name) = component else {
            for path in &mut found {
                path.push(component);
            }
            continue;
        };
        let text = name.to_string_lossy();
        if !text.contains(['*', '?']) {
            for path in &mut found {
                path.push(name);
            }
            continue;
        }
        let mut next = Vec::new();
        for directory in found {
            // What cannot be listed matches nothing, as in a shell.
            let Ok(entries) = std::fs::read_dir(&directory) else {
                continue;
            };
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            names.retain(|name| super::name_matches(&text, &name.to_string_lossy()));
            names.sort();
            next.extend(
                names
                    .into_iter()
                    .take(limit)
                    .map(|name| directory.join(name)),
            );
        }
        found = next;
        found.truncate(limit);
    }
    found
}

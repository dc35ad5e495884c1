//! `sftp-server hash-password`: what stands in the configuration instead of a password.

use std::io::Read as _;

use knarr_serve::users::PasswordHash;
use zeroize::Zeroizing;

use crate::cli::context::Context;
use crate::command_error::{CommandError, CommandResult, Outcome};
use crate::output::Output;
use crate::terminal;

/// No password is longer, in bytes, with an end of line.
const LONGEST: u64 = 1026;

pub(super) fn run(context: &Context, output: &mut Output) -> CommandResult {
    let password = if context.environment.stdin_is_terminal {
        let ask = |question| terminal::ask_secret(question).map_err(CommandError::failed);
        let first = ask("Password: ")?.unwrap_or_default();
        let second = ask("The same again: ")?.unwrap_or_default();
        if *first != *second {
            return Err(CommandError::usage("the two are not the same"));
        }
        first
    } else {
        let mut text = Zeroizing::new(String::with_capacity(2048));
        let stdin = std::io::stdin().lock();
        stdin
            .take(LONGEST)
            .read_to_string(&mut text)
            .map_err(CommandError::failed)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned())
    };
    let hash = PasswordHash::of(&password).map_err(CommandError::usage)?;
    output.line(hash.to_text())?;
    Ok(Outcome::Done)
}

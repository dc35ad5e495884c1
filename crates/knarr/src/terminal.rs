//! Asks the person at the terminal.
//!
//! Constraints: what is typed without echo is wiped when it is dropped; the terminal is always left as
//! it was found, also after Ctrl-C (which arrives here as a character, because signals are off while a
//! secret is typed).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use async_trait::async_trait;
use knarr_core::path::printable;
use knarr_remote::ssh::{Prompter, Question, Secret};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use zeroize::Zeroizing;

/// The longest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const CTRL_U: u8 = 0x15;

/// The terminal of the process.
struct Terminal(File);

/// Puts the terminal back when it is dropped.
struct Quiet<'t> {
    terminal: &'t File,
    before: Termios,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _gone: Result<(), _> =
            rustix::termios::tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

impl Terminal {
    fn open() -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/tty")
            .map(Self)
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.flush()
    }

    /// A line that is not shown while it is typed; nothing if it was broken off.
    fn hidden_line(&mut self) -> io::Result<Option<Zeroizing<String>>> {
        let before = rustix::termios::tcgetattr(&self.0)?;
        let mut raw = before.clone();
        raw.local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        rustix::termios::tcsetattr(&self.0, OptionalActions::Flush, &raw)?;
        let quiet = Quiet {
            terminal: &self.0,
            before,
        };
        let line = read_keys(quiet.terminal);
        drop(quiet);
        self.say("\n")?;
        let Some(bytes) = line? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes)
            .map_err(|_error| io::Error::new(io::ErrorKind::InvalidData, "this is not UTF-8"))?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte)? == 1 {
            match byte {
                [b'\n'] => return Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
                [other] if bytes.len() < MAX_ANSWER_BYTES => bytes.push(other),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Reads keys up to the end of the line; nothing after Ctrl-C or Ctrl-D.
fn read_keys(mut terminal: &File) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // Reserved at once, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
    let mut key = Zeroizing::new([0]);
    loop {
        if terminal.read(&mut *key)? == 0 {
            return Ok(None);
        }
        match key[0] {
            b'\n' | b'\r' => return Ok(Some(bytes)),
            CTRL_C | CTRL_D => return Ok(None),
            CTRL_U => bytes.clear(),
            0x7f | 0x08 => {
                // One character, not one byte.
                while bytes.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            other if bytes.len() < MAX_ANSWER_BYTES => bytes.push(other),
            _ => {}
        }
    }
}

/// Asks for a secret; nothing if the person broke it off.
///
/// # Errors
/// If there is no terminal.
pub(crate) fn ask_secret(question: &str) -> io::Result<Option<Zeroizing<String>>> {
    let mut terminal = Terminal::open()?;
    terminal.say(question)?;
    terminal.hidden_line()
}

/// Asks for a line; nothing if the person broke it off.
///
/// # Errors
/// If there is no terminal.
pub(crate) fn ask(question: &str) -> io::Result<Option<String>> {
    let mut terminal = Terminal::open()?;
    terminal.say(question)?;
    terminal.line()
}

/// Answers the questions of a log-in by asking at the terminal.
#[derive(Debug)]
pub(crate) struct AtTerminal;

impl AtTerminal {
    async fn hidden(question: String) -> Option<Secret> {
        let asked = tokio::task::spawn_blocking(move || ask_secret(&question));
        let answer = asked.await.ok()?.ok()??;
        Some(Secret::new(answer.as_str()))
    }
}

#[async_trait]
impl Prompter for AtTerminal {
    async fn passphrase(&self, key: &Path) -> Option<Secret> {
        let key = key.as_os_str().as_encoded_bytes();
        Self::hidden(format!("Passphrase of {}: ", printable(key))).await
    }

    async fn password(&self, target: &str) -> Option<Secret> {
        Self::hidden(format!("Password of {}: ", printable(target.as_bytes()))).await
    }

    async fn answer(&self, question: &Question) -> Option<Secret> {
        let mut text = String::new();
        if !question.instructions.trim().is_empty() {
            text = format!("{}\n", printable(question.instructions.trim().as_bytes()));
        }
        let shown = format!(
            "{text}{} asks: {} ",
            printable(question.target.as_bytes()),
            printable(question.prompt.trim().as_bytes())
        );
        if !question.echo {
            return Self::hidden(shown).await;
        }
        let asked = tokio::task::spawn_blocking(move || ask(&shown));
        asked.await.ok()?.ok()?.map(Secret::new)
    }
}

/// Gives the same answer to every hidden question, as the configuration says.
#[derive(Debug)]
pub(crate) struct GivenAnswer(pub(crate) Secret);

#[async_trait]
impl Prompter for GivenAnswer {
    async fn passphrase(&self, _key: &Path) -> Option<Secret> {
        None
    }

    async fn password(&self, _target: &str) -> Option<Secret> {
        None
    }

    async fn answer(&self, question: &Question) -> Option<Secret> {
        (!question.echo).then(|| self.0.clone())
    }
}

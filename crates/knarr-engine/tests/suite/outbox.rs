//! Hooks and alerts reach whoever is to hear of them.

mod command;
mod mail;
mod notifier;
mod rules;
pub(crate) mod support;
mod webhook;

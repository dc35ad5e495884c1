//! What the fuzz target and the replay of its corpus run: any bytes, and what must hold for them.

use std::path::Path;

use crate::config::{self, Bases, Colour};

/// The longest message about a configuration of the corpus's size, in bytes: a person has to read it.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Any bytes as a configuration: no panic, and the same verdict each time; what is wrong can be told, and
/// the message cannot drive a terminal; what is accepted hangs together.
///
/// # Panics
/// If one of that does not hold.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let bases = Bases {
        directory: Path::new("/srv/knarr"),
        home: Some(Path::new("/home/somebody")),
    };
    let file = Path::new("knarr.yaml");
    let again = config::parse(&text, file, bases);
    match config::parse(&text, file, bases) {
        Ok(config) => {
            assert!(again.is_ok(), "accepted once and refused once");
            for job in config.jobs.values() {
                assert!(!job.name.is_empty() && !job.watch.is_empty());
                assert!(job.watch.iter().all(|directory| directory.is_absolute()));
            }
        }
        Err(problems) => {
            let message = problems.render(Colour::No);
            assert_eq!(
                again.err().map(|problems| problems.render(Colour::No)),
                Some(message.clone())
            );
            assert!(!message.is_empty());
            assert!(
                message.len() <= MAX_MESSAGE_BYTES,
                "{} bytes of {} to read",
                message.len(),
                bytes.len()
            );
            let drives = |c: char| c.is_control() && c != '\n';
            assert!(!message.contains(drives), "{message:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
        let directory =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/configuration");
        let entries = std::fs::read_dir(directory).expect("the corpus is part of the repository");
        let files: Vec<_> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                (path, bytes)
            })
            .collect();
        assert!(files.len() >= 30, "only {} files", files.len());
        files
    }

    #[test]
    fn h59_the_corpus_of_configurations_is_replayed() {
        for (path, bytes) in corpus() {
            assert!(bytes.len() < 64 << 10, "{} is too long", path.display());
            super::configuration(&bytes);
        }
    }

    #[test]
    fn h59_a_configuration_cut_at_any_byte_or_with_a_byte_changed_is_read_or_refused() {
        let (_path, whole) = corpus()
            .into_iter()
            .find(|(path, _bytes)| path.ends_with("good-everything"))
            .expect("the corpus has it");
        for cut in 0..whole.len() {
            super::configuration(whole.get(..cut).unwrap());
        }
        for at in (0..whole.len()).step_by(3) {
            for byte in [b'\n', b'*', b'{', 0x1b] {
                let mut changed = whole.clone();
                *changed.get_mut(at).unwrap() = byte;
                super::configuration(&changed);
            }
        }
    }
}

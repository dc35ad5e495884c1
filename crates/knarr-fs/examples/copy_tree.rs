//! Copies or lists a tree with this crate alone, for measuring it without the rest of Knarr:
//! `copy_tree list A [B]` or `copy_tree copy A B [threads] [files per batch] [relaxed]`.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use knarr_core::entry::Kind;
use knarr_core::tree::TreeItem;
use knarr_fs::Root;
use knarr_fs::commit::Durability;
use knarr_fs::copy::{CopyOptions, CopyRequest, NoObserver, copy_batch};
use knarr_fs::root::Replace;
use knarr_fs::walk::{WalkOptions, Walker};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["list", roots @ ..] => std::thread::scope(|scope| {
            let walks: Vec<_> = roots
                .iter()
                .map(|root| scope.spawn(|| list(root)))
                .collect();
            for walk in walks {
                let count = walk.join().map_err(|_| "a walk panicked")??;
                writeln!(std::io::stdout(), "{count} items")?;
            }
            Ok(())
        }),
        ["copy", from, to, rest @ ..] => {
            let number = |at: usize| rest.get(at).and_then(|text| text.parse().ok());
            let durability = if rest.contains(&"relaxed") {
                Durability::Relaxed
            } else {
                Durability::Durable
            };
            copy(
                from,
                to,
                number(0).unwrap_or(2),
                number(1).unwrap_or(1000),
                durability,
            )
        }
        _ => Err("usage: list A [B] | copy A B [threads] [files per batch] [relaxed]".into()),
    }
}

fn list(root: &str) -> Result<usize, String> {
    let root = Root::open(Path::new(root)).map_err(|error| error.to_string())?;
    let mut walker =
        Walker::new(&root, WalkOptions::default()).map_err(|error| error.to_string())?;
    let mut items = Vec::new();
    let mut count = 0;
    loop {
        let more = walker.next_batch(&mut items, 1024);
        count += items.len();
        items.clear();
        if !more {
            return Ok(count);
        }
    }
}

fn copy(
    from: &str,
    to: &str,
    threads: usize,
    per_batch: usize,
    durability: Durability,
) -> Result<(), Box<dyn Error>> {
    let (source, destination) = (Root::open(Path::new(from))?, Root::create(Path::new(to))?);
    let walker = Mutex::new((Walker::new(&source, WalkOptions::default())?, 0_u64));
    let options = CopyOptions {
        durability,
        ..CopyOptions::default()
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut items = Vec::new();
                loop {
                    let mut requests = Vec::new();
                    let more = {
                        let Ok(mut guard) = walker.lock() else { return };
                        let (walker, next) = &mut *guard;
                        items.clear();
                        let more = walker.next_batch(&mut items, per_batch);
                        for item in items.drain(..) {
                            let TreeItem::Entry(entry) = item else {
                                continue;
                            };
                            if entry.kind != Kind::File {
                                continue;
                            }
                            *next += 1;
                            requests.push(CopyRequest {
                                source: entry.path.clone(),
                                destination: entry.path,
                                id: *next,
                                replace: Replace::Nothing,
                            });
                        }
                        more
                    };
                    let results =
                        copy_batch(&source, &destination, &requests, &options, &NoObserver);
                    for result in results {
                        if let Err(error) = result {
                            tracing::error!(%error, "not copied");
                        }
                    }
                    if !more {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

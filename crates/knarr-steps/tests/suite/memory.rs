//! Large streams in little memory. Each test is a process of its own under nextest, and the peak counts for
//! what ran in it before.

use std::sync::Arc;

use bytes::Bytes;
use knarr_steps::{Emitted, Head, Pipeline, Recipe};

use crate::files::{context, context_with, path, peak_memory_kib, steps};
use crate::openpgp::{ED25519, two_keys};

const MIB: usize = 1 << 20;
const TOTAL_MIB: usize = 256;
const MOST_KIB: u64 = 96 << 10;

/// The next piece of input for a pipeline; nothing at the end.
type Source<'a> = Box<dyn FnMut() -> Option<Bytes> + 'a>;

/// A mebibyte at a time, zeros or noise, until there are so many.
fn pieces(count: usize) -> impl FnMut() -> Option<Bytes> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = count;
    move || {
        left = left.checked_sub(1)?;
        // Three of four are quick to compress.
        if !left.is_multiple_of(4) {
            return Some(Bytes::from(vec![0; MIB]));
        }
        let mut piece = Vec::with_capacity(MIB);
        while piece.len() < MIB {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.extend(state.to_le_bytes());
        }
        Some(Bytes::from(piece))
    }
}

/// Pulls until there is a chunk of content; counts files on the way.
fn next_chunk(pipeline: &mut Pipeline, source: &mut Source<'_>, open: &mut Open) -> Option<Bytes> {
    loop {
        match pipeline.pull().unwrap() {
            Emitted::Chunk(bytes) => return Some(bytes),
            Emitted::Begin(_) | Emitted::End => {}
            Emitted::Finished => return None,
            Emitted::NeedsInput => match *open {
                Open::Before => {
                    let mut head = Head::file(path("a"));
                    head.size = None;
                    pipeline.begin(head).unwrap();
                    *open = Open::Within;
                }
                Open::Within => match source() {
                    Some(bytes) => pipeline.feed(bytes).unwrap(),
                    None => {
                        pipeline.end().unwrap();
                        *open = Open::Behind;
                    }
                },
                Open::Behind => pipeline.finish().unwrap(),
            },
        }
    }
}

#[derive(Clone, Copy)]
enum Open {
    Before,
    Within,
    Behind,
}

/// Runs 256 MiB through one pipeline and its opposite, and counts what comes out.
fn flow(mut there: Pipeline, mut back: Pipeline) {
    let mut content: Source<'_> = Box::new(pieces(TOTAL_MIB));
    let mut open_there = Open::Before;
    let mut between: Source<'_> =
        Box::new(move || next_chunk(&mut there, &mut content, &mut open_there));
    let (mut open_back, mut total) = (Open::Before, 0);
    while let Some(bytes) = next_chunk(&mut back, &mut between, &mut open_back) {
        total += bytes.len();
    }
    assert_eq!(total, TOTAL_MIB * MIB);
    let peak_kib = peak_memory_kib();
    assert!(peak_kib < MOST_KIB, "{peak_kib} KiB");
}

#[test]
fn h21_256_mib_of_openpgp_flow_through_in_flat_memory() {
    let (_gpg, keys) = two_keys(ED25519);
    let context = context_with(keys);
    let encrypt = "[{ encrypt: { pgp: { recipients: [ours.asc] } } }]";
    let decrypt = "[{ decrypt: { pgp: our-key } }]";
    let pipeline = |yaml| Pipeline::new(&steps(yaml), &context).unwrap();
    flow(pipeline(encrypt), pipeline(decrypt));
}

#[test]
fn h12_256_mib_of_archives_flow_through_in_flat_memory() {
    let context = context();
    let pipeline = |yaml| Pipeline::new(&steps(yaml), &context).unwrap();
    flow(
        pipeline("[{ archive: { format: tar.zst, level: 1 } }]"),
        pipeline("[extract]"),
    );
}

#[test]
fn h12_256_mib_of_zip_flow_through_in_flat_memory() {
    let context = context();
    let pipeline = |yaml| Pipeline::new(&steps(yaml), &context).unwrap();
    flow(
        pipeline("[{ archive: { format: zip, level: 1 } }]"),
        pipeline("[extract]"),
    );
}

#[test]
fn a_recipe_makes_pipelines_on_any_thread_and_one_that_is_dropped_ends_its_thread() {
    let (_gpg, keys) = two_keys(ED25519);
    let recipe = Recipe::new(
        &steps("[{ encrypt: { pgp: { recipients: [ours.asc] } } }]"),
        &context_with(keys),
    );
    let recipe = Arc::new(recipe.unwrap());
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let recipe = Arc::clone(&recipe);
            std::thread::spawn(move || {
                let mut pipeline = recipe.pipeline().unwrap();
                pipeline.begin(Head::file(path("a"))).unwrap();
                assert_eq!(pipeline.pull(), Ok(Emitted::NeedsInput));
                drop(pipeline);
            })
        })
        .collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while threads() > before && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(threads() <= before, "the threads of the steps have ended");
}

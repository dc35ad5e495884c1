//! Many at once.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use super::Fixture;
use super::support::{chain, file_options, listed_files, pattern, read_all, relative, try_put};
use crate::remote::{ReadOptions, Remote, Replace};
use crate::upload::StagedId;

pub(super) async fn many_files_are_written_at_once(fixture: Fixture) {
    let path = |number: usize| relative(&format!("{}/{}/file {number:03}", number % 3, number % 5));
    let content = |number: usize| pattern(number as u64, (number * 7_919) % 300_000);
    // Tasks, not only futures of one task: a place is used from many threads.
    let tasks = (0..96).map(|number| {
        let remote: Arc<dyn Remote> = Arc::clone(&fixture.subject);
        tokio::spawn(async move {
            let (path, content) = (path(number), content(number));
            let options = file_options(&path, content.len(), Replace::Nothing);
            if let Err(error) = try_put(&*remote, &path, options, &content).await {
                panic!("writing \"{path}\" failed: {}", chain(&error));
            }
            let read = match read_all(&*remote, &path, ReadOptions::default()).await {
                Ok(read) => read,
                Err(error) => panic!("reading \"{path}\" failed: {}", chain(&error)),
            };
            assert!(
                read == content,
                "\"{path}\" holds other bytes than were written"
            );
        })
    });
    for task in join_all(tasks).await {
        task.expect("no writer failed");
    }
    assert_eq!(
        listed_files(&*fixture.subject).await.len(),
        96,
        "all files are there"
    );
}

pub(super) async fn k2_of_many_writers_of_one_path_one_wins_whole(fixture: Fixture) {
    for replace in [Replace::Anything, Replace::Nothing] {
        let path = relative(&format!("one path, {replace:?}"));
        let versions: Vec<Bytes> = (0..8)
            .map(|seed| pattern(seed, 350_000 + seed as usize))
            .collect();
        let writers = versions.iter().enumerate().map(|(number, content)| {
            let (remote, path, content) =
                (Arc::clone(&fixture.subject), path.clone(), content.clone());
            let mut options = file_options(&path, content.len(), replace.clone());
            // Each on behalf of another installation.
            options.staged_id = StagedId::derive(&number.to_le_bytes(), &path);
            tokio::spawn(async move { try_put(&*remote, &path, options, &content).await })
        });
        let mut winners = Vec::new();
        let mut losers = Vec::new();
        for (task, content) in join_all(writers).await.into_iter().zip(&versions) {
            match task.expect("no writer panicked") {
                Ok(_) => winners.push(content),
                Err(error) => losers.push(chain(&error)),
            }
        }
        assert!(!winners.is_empty(), "all writers lost: {losers:?}");
        let read = match read_all(&*fixture.subject, &path, ReadOptions::default()).await {
            Ok(read) => read,
            Err(error) => panic!("reading \"{path}\" failed: {}", chain(&error)),
        };
        assert!(
            winners.iter().any(|content| **content == read),
            "the {} bytes at \"{path}\" are no version of a writer that was told it is there",
            read.len()
        );
        let listed = listed_files(&*fixture.subject).await;
        assert!(
            listed.contains(&path.to_string()) && listed.len() <= 2,
            "what the losers staged is listed: {listed:?}"
        );
    }
}

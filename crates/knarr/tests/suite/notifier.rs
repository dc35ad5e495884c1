//! Everything that happens to files, as rows of a PostgreSQL server.

use std::fs;

use knarr_testkit::postgres::{PASSWORD, Postgres, USER};
use knarr_testkit::wait_until;

use crate::faults::support::{PATIENCE, Running, large_file};
use crate::program::Place;

fn place(server: &Postgres) -> Place {
    let place = Place::new();
    for name in ["outbox", "slow", "in"] {
        fs::create_dir_all(place.path(name)).unwrap();
    }
    place
        .run_with_input(&["secret", "set", "monitor"], PASSWORD.as_bytes())
        .good();
    place.write(
        "knarr.yaml",
        format!(
            "node: {{ name: edge-1 }}\ntargets:\n  monitor:\n    postgres:\n      host: 127.0.0.1\n      port: {}\n      \
             database: knarr\n      user: {USER}\n      password: {{ secret: monitor }}\n      security: tls\n      \
             ca: {}\n      batch: 20\njobs:\n  sensors:\n    watch: outbox/\n    match: {{ settle: 0s }}\n    \
             to: in/\n    retry: {{ attempts: 2, from: 50ms, to: 50ms }}\n  large:\n    watch: slow/\n    \
             match: {{ settle: 0s }}\n    to: in/\n    bandwidth: 1MiB\n",
            server.port(),
            server.certificate().path().display()
        ),
    );
    place
}

fn count(server: &Postgres, condition: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM knarr_events WHERE {condition}");
    let counted = server.try_sql(&sql).unwrap_or_default();
    counted.trim().parse().unwrap_or(0)
}

#[test]
fn k8_every_step_of_every_file_is_a_row_through_outages_of_the_server_and_of_the_node() {
    let mut server = Postgres::start();
    let place = place(&server);
    let tested = place.run(&["alert", "test", "monitor"]).good();
    assert!(tested.contains("delivered  monitor"), "{tested}");
    let node = Running::start(&place);
    for number in 0..30 {
        place.write(&format!("outbox/first-{number}"), "x");
    }
    wait_until(PATIENCE, "the first rows", || {
        count(&server, "event = 'completed' AND path LIKE 'first-%'") == 30
    });
    // The server is gone; files come and go all the same.
    server.kill();
    for number in 0..30 {
        place.write(&format!("outbox/second-{number}"), "x");
    }
    wait_until(PATIENCE, "the second files", || {
        fs::read_dir(place.path("in")).unwrap().count() == 60
    });
    // The node dies, too, before anybody took its rows.
    node.kill();
    let node = Running::start(&place);
    for number in 0..30 {
        place.write(&format!("outbox/third-{number}"), "x");
    }
    server.restart();
    wait_until(PATIENCE, "all rows", || {
        count(&server, "event = 'completed'") == 90
    });
    node.terminate();
    // Each once, in the order in which it happened. What the killed node delivered and could not record was
    // found there.
    assert_eq!(
        count(
            &server,
            "event = 'completed' AND action IN ('created', 'adopted')"
        ),
        90
    );
    let doubles = server.sql(
        "SELECT count(*) FROM (SELECT path FROM knarr_events WHERE event = 'completed' GROUP BY path \
         HAVING count(*) > 1) AS doubled",
    );
    assert_eq!(doubles.trim(), "0");
    let unannounced = server.sql(
        "SELECT count(*) FROM knarr_events AS done WHERE event = 'completed' AND NOT EXISTS \
         (SELECT 1 FROM knarr_events AS before WHERE before.path = done.path AND before.id < done.id \
         AND before.event = 'enqueued')",
    );
    assert_eq!(unannounced.trim(), "0", "each was enqueued before");
    let last = server
        .sql("SELECT count(*) FROM knarr_files WHERE event = 'completed' AND job = 'sensors'");
    assert_eq!(last.trim(), "90");
}

#[test]
fn a_large_file_shows_its_progress_at_most_once_a_second_and_a_failure_its_reason() {
    let server = Postgres::start();
    let place = place(&server);
    let node = Running::start(&place);
    large_file(&place.path("slow/large.bin"), 1, 5 << 20);
    // What cannot be written where a directory is.
    fs::create_dir(place.path("in/blocked")).unwrap();
    fs::write(place.path("in/blocked/inside"), "x").unwrap();
    place.write("outbox/blocked", "x");
    wait_until(PATIENCE, "the large file", || {
        count(&server, "event = 'completed' AND path = 'large.bin'") == 1
    });
    wait_until(PATIENCE, "the failure", || {
        count(
            &server,
            "event = 'failed' AND path = 'blocked' AND message <> ''",
        ) > 0
    });
    node.terminate();
    let of_large = |event: &str| {
        count(
            &server,
            &format!("path = 'large.bin' AND event = '{event}'"),
        )
    };
    assert!(of_large("started") >= 1);
    let progress = of_large("progress");
    assert!((1..=8).contains(&progress), "{progress}");
    let hasty = server.sql(
        "SELECT count(*) FROM (SELECT at - lag(at) OVER (PARTITION BY path ORDER BY id) AS pause \
         FROM knarr_events WHERE event = 'progress') AS pauses WHERE pause < interval '1 second'",
    );
    assert_eq!(hasty.trim(), "0");
    let sizes = server
        .sql("SELECT min(size), bool_and(done <= size) FROM knarr_events WHERE event = 'progress'");
    assert_eq!(sizes.trim(), format!("{}|t", 5 << 20));
}

#[test]
fn a_job_that_is_run_by_hand_is_in_the_table_when_the_command_ends() {
    let server = Postgres::start();
    let place = place(&server);
    let text = fs::read_to_string(place.path("knarr.yaml")).unwrap();
    place.write(
        "knarr.yaml",
        text.replacen("watch: outbox/", "from: outbox/", 1),
    );
    place.write("outbox/a", "x");
    place.run(&["job", "run", "sensors"]).good();
    for event in ["enqueued", "completed"] {
        assert_eq!(
            count(&server, &format!("path = 'a' AND event = '{event}'")),
            1,
            "{event}"
        );
    }
    let run = server.sql("SELECT DISTINCT run FROM knarr_events WHERE path = 'a'");
    assert_eq!(run.trim(), "1");
}

//! Calls over HTTP that run jobs.

use std::fs;

use crate::control::{call, json, start};
use crate::program::Place;

#[test]
fn a_job_is_run_by_a_call_with_its_token_and_by_no_other() {
    let place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let token = "a-token-of-some-length";
    fs::create_dir(place.path("in")).unwrap();
    place.write(
        "knarr.yaml",
        format!(
            "node: {{ http: {{ listen: \"127.0.0.1:{port}\" }} }}\njobs:\n  \
             called: {{ from: in/, to: out/, match: {{ settle: 0s }}, http_token: {{ secret: call }} }}\n  \
             short: {{ from: in/, to: out2/, http_token: {{ secret: short }} }}\n  \
             other: {{ from: in/, to: out3/ }}\n"
        ),
    );
    place
        .run_with_input(&["secret", "set", "call"], token.as_bytes())
        .good();
    place
        .run_with_input(&["secret", "set", "short"], b"short")
        .good();
    let node = start(&place);
    place.write("in/a", "a");
    let post = |path: &str, token: &str| {
        let authorization = format!("Authorization: Bearer {token}\r\n");
        call(
            port,
            &format!("POST {path} HTTP/1.1\r\nHost: h\r\n{authorization}Content-Length: 0\r\n\r\n"),
        )
    };
    for (path, given) in [
        ("/v1/jobs/called/run", "a-token-of-some-lengtX"),
        ("/v1/jobs/called/run", ""),
        ("/v1/jobs/short/run", "short"),
        ("/v1/jobs/other/run", ""),
        ("/v1/jobs/missing/run", ""),
    ] {
        let refused = post(path, given);
        assert!(
            refused.starts_with("HTTP/1.1 401"),
            "{path} {given}: {refused}"
        );
    }
    for path in [
        "/",
        "/v1/jobs",
        "/v1/jobs/called",
        "/metrics",
        "/v1/jobs/../called/run",
    ] {
        let refused = post(path, token);
        assert!(refused.starts_with("HTTP/1.1 404"), "{path}: {refused}");
    }
    let get = call(port, "GET /v1/jobs/called/run HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(get.starts_with("HTTP/1.1 405"), "{get}");
    let called = post("/v1/jobs/called/run", token);
    assert!(called.starts_with("HTTP/1.1 202"), "{called}");
    let body = called.split("\r\n\r\n").nth(1).unwrap();
    let run = json(body)[0]["run"].as_u64().unwrap().to_string();
    place.run(&["run", "follow", &run]).good();
    let run = json(&place.run(&["run", "show", &run, "--json"]).good());
    assert_eq!(
        (run[0]["cause"].as_str(), run[0]["job"].as_str()),
        (Some("http"), Some("called"))
    );
    assert!(place.path("out/a").exists());
    let limited = (0..60).map(|_| post("/v1/jobs/called/run", "wrong"));
    assert!(
        limited
            .into_iter()
            .any(|answer| answer.starts_with("HTTP/1.1 429"))
    );
    node.terminate();
    assert!(!crate::program::contains(&place.all_bytes("log"), token));
}

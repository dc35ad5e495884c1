//! The HTTP fault proxy, in front of a real S3 server.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use knarr_testkit::http_fault::{Answer, HttpAction, HttpFaultProxy, Rule};
use knarr_testkit::s3::{Moto, S3Server as _};

/// moto wants to see a signature, and takes any.
const AUTHORIZATION: &str = "Authorization: AWS4-HMAC-SHA256 \
     Credential=key/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// One request on a connection of its own; `None` if it was cut.
fn call(proxy: &HttpFaultProxy, method: &str, target: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\
         {AUTHORIZATION}\r\n\r\n",
        proxy.address(),
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..split]).into_owned();
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, answer[split + 4..].to_vec()))
}

#[test]
fn rules_answer_drop_cut_and_pass_as_they_say() {
    let moto = Moto::start();
    let proxy = HttpFaultProxy::start(moto.address());
    let target = format!("/{}/cargo", moto.bucket());
    let target = target.as_str();

    proxy.rule(Rule::on("PUT", HttpAction::Answer(Answer::slow_down())).containing("cargo"));
    let (status, body) = call(&proxy, "PUT", target, b"first").unwrap();
    assert_eq!(status, 503);
    assert!(String::from_utf8_lossy(&body).contains("<Code>SlowDown</Code>"));
    assert_eq!(
        call(&proxy, "GET", target, b"").unwrap().0,
        404,
        "the server never saw it"
    );

    assert_eq!(call(&proxy, "PUT", target, b"second").unwrap().0, 200);
    assert_eq!(
        call(&proxy, "GET", target, b"").unwrap(),
        (200, b"second".to_vec())
    );

    proxy.rule(Rule::on("PUT", HttpAction::DropResponse));
    assert!(call(&proxy, "PUT", target, b"third").is_none());
    assert_eq!(
        call(&proxy, "GET", target, b"").unwrap().1,
        b"third",
        "the server did it"
    );

    proxy.rule(Rule::on(
        "PUT",
        HttpAction::AnswerAfterwards(Answer::ok_with_error()),
    ));
    let (status, body) = call(&proxy, "PUT", target, b"fourth").unwrap();
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&body).contains("InternalError"));
    assert_eq!(call(&proxy, "GET", target, b"").unwrap().1, b"fourth");

    proxy.rule(
        Rule::on(
            "GET",
            HttpAction::CutResponse {
                after_body_bytes: 3,
            },
        )
        .nth(2),
    );
    assert_eq!(call(&proxy, "GET", target, b"").unwrap().1, b"fourth");
    assert!(call(&proxy, "GET", target, b"").is_none_or(|(_, body)| body.len() <= 3));

    proxy.rule(Rule::on(
        "PUT",
        HttpAction::CutRequest {
            after_body_bytes: 2,
        },
    ));
    assert!(call(&proxy, "PUT", target, b"fifth").is_none());
    assert_eq!(call(&proxy, "GET", target, b"").unwrap().1, b"fourth");

    let puts = proxy.requests_like("PUT", "cargo");
    assert_eq!(puts.len(), 5);
    assert_eq!(puts[1].body_bytes, 6);
    assert_eq!(puts.iter().filter(|request| request.faulty).count(), 4);
}
